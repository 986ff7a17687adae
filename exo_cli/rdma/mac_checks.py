"""Whether RDMA over Thunderbolt would work on one Mac, as far as that Mac can tell.

The checks follow the way from the system to the wire. One that fails for good ends the walk: what
comes after it would only repeat it. Nothing is concluded from a text that could not be read. Knows
nothing of the other Macs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from exo_cli.rdma.errnos import meaning
from exo_cli.rdma.mac import Mac
from exo_cli.rdma.port_checks import check_active, port_down
from exo_cli.rdma.sources import SOURCES
from exo_cli.rdma.words import found
from exo_cli.schemas.findings import Finding

_LARGE_FRAMES: Final = (26, 3)
_QUEUE_PAIRS_TAKEN: Final = 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one Mac."""

    findings: tuple[Finding, ...]
    down: dict[str, Finding]
    """Interface -> its finding `port-down`: another Mac may explain it."""
    stopped: bool
    """Whether the Mac as a whole cannot do RDMA as it is."""


def check_mac(mac: Mac) -> Verdict:
    walk = _Walk(mac)
    findings = list(walk.steps())
    findings += _unread(mac, needed=walk.needed)
    findings += _last_attempt(mac, findings)
    return Verdict(tuple(findings), walk.down, walk.stopped)


def _unread(mac: Mac, *, needed: Iterable[str]) -> Iterator[Finding]:
    for name, why in mac.troubles.items():
        matters = name in needed
        yield found(
            "unreadable" if matters else "not-read",
            "failure" if matters else "info",
            mac.name,
            f"could not read {name}: {why}",
            "nothing is concluded from it, so whether RDMA would work is not known" if matters else None,
            f"look at what {mac.name} prints: {SOURCES['darwin'][name].words}" if matters else None,
            where=name,
        )


class _Walk:
    """The checks of one Mac in their order."""

    def __init__(self, mac: Mac) -> None:
        self.mac = mac
        self.needed: list[str] = []
        self.down: dict[str, Finding] = {}
        self.stopped = False

    def steps(self) -> Iterator[Finding]:
        for step in (self._system, self._thunderbolt, self._enabled, self._devices, self._peers):
            for finding in step():
                self.stopped = self.stopped or finding.level == "failure"
                yield finding
            if self.stopped:
                return
        yield from self._mlx()
        self.needed += ["hardware_ports", "ifconfig"]
        for port in self.mac.ports or ():
            if any(peer.behind is None for peer in port.peers):
                down = port_down(self.mac, port)
                if down is not None:
                    self.down[self.mac.shown_interface(port)] = down
                    yield down
                else:
                    yield from check_active(self.mac, self.mac.interface(port))
        yield from self._queue_pairs()
        yield from self._environment()

    def _system(self) -> Iterator[Finding]:
        mac = self.mac
        self.needed.append("sw_vers")
        if mac.hardware is not None and mac.hardware.arm64 is False:
            yield found(
                "not-apple-silicon",
                "failure",
                mac.name,
                f"the processor is {mac.hardware.chip or 'of another kind'}",
                "RDMA over Thunderbolt needs Apple silicon; no setting changes that. This Mac can be a node "
                "over Ethernet",
            )
        elif mac.system is None or mac.generation == "thunderbolt-4":
            return
        elif mac.is_old:
            yield found(
                "os-too-old",
                "failure",
                mac.name,
                f"{mac.system.text} ({mac.system.build})",
                "macOS 26.2 is the first with RDMA over Thunderbolt",
                "update macOS to 26.2 or later, the same build on every Mac",
                "exo rdma-check",
            )
        else:
            yield found("system", "ok", mac.name, f"{mac.system.text} ({mac.system.build})")
            if mac.system.version < _LARGE_FRAMES:
                yield found(
                    "small-frames",
                    "warning",
                    mac.name,
                    mac.system.text,
                    "before macOS 26.3 jaccl sends frames of 4 KiB instead of up to 512 KiB, which costs "
                    "bandwidth",
                    "update macOS to 26.3 or later, the same build on every Mac",
                )

    def _thunderbolt(self) -> Iterator[Finding]:
        mac = self.mac
        self.needed.append("thunderbolt")
        if mac.generation == "thunderbolt-4":
            speeds = sorted({port.gbit_per_s for port in mac.ports or () if port.gbit_per_s})
            said = " and ".join(f"{speed} Gb/s" for speed in speeds)
            yield found(
                "thunderbolt-4",
                "failure",
                mac.name,
                f"the Thunderbolt ports do {said} at most" + self._chip(),
                f"{mac.name} has Thunderbolt 4 and RDMA needs Thunderbolt 5: no setting, cable or update "
                "changes that, whatever rdma_ctl says",
                f"use {mac.name} as a node over TCP: an Ethernet or Thunderbolt cable, and exo discover",
            )
        elif mac.generation is not None:
            yield found("thunderbolt", "ok", mac.name, "Thunderbolt 5" + self._chip())

    def _chip(self) -> str:
        chip = self.mac.hardware.chip if self.mac.hardware else None
        return f" ({chip})" if chip else ""

    def _enabled(self) -> Iterator[Finding]:
        mac = self.mac
        self.needed.append("rdma_ctl")
        if mac.enabled is False and mac.generation is not None:
            yield found(
                "rdma-disabled",
                "failure",
                mac.name,
                "rdma_ctl status: disabled",
                "the hardware can do it and it was never enabled; that is done by hand at the machine, "
                "nothing can do it from afar",
                f"shut {mac.name} down, and start it in Recovery (hold the power button)",
                "there, in Utilities > Terminal: rdma_ctl enable",
                "restart, then: exo rdma-check",
            )
        elif mac.enabled:
            yield found("rdma-enabled", "ok", mac.name, "rdma_ctl status: enabled")

    def _devices(self) -> Iterator[Finding]:
        mac = self.mac
        self.needed += ["ibv_devices", "ibv_devinfo"]
        if mac.devices == () and mac.enabled and mac.generation is not None:
            yield found(
                "no-device",
                "failure",
                mac.name,
                "RDMA is enabled, and ibv_devices lists nothing",
                "it was enabled without a restart since, or the driver did not start",
                f"restart {mac.name}, then: exo rdma-check",
                "if that changes nothing: rdma_ctl status, and the system report's Thunderbolt section",
            )
        for device in (mac.devices or ())[:1]:
            pairs, regions = device.limits.get("max_qp"), device.limits.get("max_mr")
            if pairs and regions:
                seen = f"each device has {pairs} queue pairs and {regions} memory regions"
                yield found("limits", "ok", mac.name, seen)

    def _peers(self) -> Iterator[Finding]:
        ports = self.mac.ports
        if ports is None:
            return
        direct = [port for port in ports if any(peer.behind is None for peer in port.peers)]
        hubs = {peer.behind: peer.name for port in ports for peer in port.peers if peer.behind is not None}
        things = [
            f"{thing} on Thunderbolt {port.receptacle}"
            for port in ports
            for thing in port.devices
            if thing not in hubs
        ]
        if hubs:
            yield found(
                "hub-between",
                "failure" if not direct else "warning",
                self.mac.name,
                "; ".join(f"{mac} is behind {hub}" for hub, mac in hubs.items()),
                "RDMA goes from port to port: a hub or dock between two Macs carries their network, and no "
                "RDMA",
                "take the hub or dock out: one Thunderbolt 5 cable from Mac to Mac",
            )
        elif not direct and things:
            yield found(
                "drive-not-mac",
                "failure",
                self.mac.name,
                "; ".join(things),
                "what is connected is no Mac: a drive or another device",
                "connect another Mac with a Thunderbolt 5 cable, port to port",
            )
        elif not direct:
            yield found(
                "no-peer",
                "failure",
                self.mac.name,
                "nothing is on any Thunderbolt port",
                "RDMA needs another Mac at the other end of a cable",
                "connect another Mac with a Thunderbolt 5 cable, port to port",
                "on a Mac Studio, leave the port next to Ethernet free",
            )

    def _mlx(self) -> Iterator[Finding]:
        mlx = self.mac.mlx
        self.needed.append("mlx")
        if mlx is None or self.mac.system is None:
            # An old macOS has no jaccl either, and then another MLX is no remedy.
            return
        if mlx.mlx is not None and mlx.has("jaccl") and mlx.librdma is not False:
            yield found("jaccl", "ok", self.mac.name, f"MLX {mlx.mlx} has jaccl, and librdma loads")
            return
        seen = f"MLX {mlx.mlx} has no jaccl" if mlx.mlx is not None else "MLX is not installed"
        if mlx.has("jaccl"):
            seen = "librdma.dylib does not load"
        yield found(
            "jaccl-missing",
            "failure",
            self.mac.name,
            seen,
            "without it MLX uses its ring over TCP, whatever the ports can do",
            "pip install --upgrade mlx mlx-lm   (a wheel for macOS 26 or later)",
        )

    def _queue_pairs(self) -> Iterator[Finding]:
        attempt = self.mac.attempt
        self.needed.append("jaccl_error")
        if attempt is None or attempt.errno != _QUEUE_PAIRS_TAKEN:
            return
        line = meaning(attempt)
        if line is not None and "queue-pairs-exhausted" in line.causes:
            yield found(
                "queue-pairs-exhausted",
                "failure",
                self.mac.name,
                f"the last attempt ended with: {attempt.text}",
                f"{line.means}; this does not pass by itself",
                "end the process that holds them: exo unload on every node, and other programs that use MLX",
                "if nothing holds them: restart this Mac",
            )

    def _environment(self) -> Iterator[Finding]:
        value = (self.mac.environment or {}).get("MLX_METAL_FAST_SYNCH", "")
        if value not in ("", "0"):
            yield found(
                "fast-synch-set",
                "warning",
                self.mac.name,
                f"MLX_METAL_FAST_SYNCH={value}",
                "it saves some time a step, and can leave the GPU stuck until the Mac restarts",
                "unset MLX_METAL_FAST_SYNCH   (and take it out of what sets it)",
            )


def _last_attempt(mac: Mac, findings: list[Finding]) -> Iterator[Finding]:
    """An error of the last attempt that no finding explains."""
    attempt = mac.attempt
    if attempt is None:
        return
    line = meaning(attempt)
    failures = {finding.id for finding in findings if finding.level in ("failure", "warning")}
    if line is not None and failures & set(line.causes):
        return
    yield found(
        "attempt-failed",
        "failure",
        mac.name,
        f"the last attempt ended with: {attempt.text}",
        line.means if line else "nobody has written down what this error means",
        line.do if line else "exo rdma-check --capture DIR keeps what this Mac says, for a report",
        source=line.source if line else None,
    )
