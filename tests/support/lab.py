"""A small network inside this machine: namespaces on bridges, and exo processes in them.

Needs root on Linux with iproute2. Everything is torn down by `close`, also what a test killed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def why_not() -> str | None:
    """Why no lab can be built here."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    done = subprocess.run(["ip", "netns", "add", "exo-try"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "exo-try"], capture_output=True, check=False)
    return None if done.returncode == 0 else f"ip netns add fails: {done.stderr.decode().strip()}"


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass
class Process:
    """An exo process whose output goes to files."""

    popen: "subprocess.Popen[bytes]"
    stdout: Path
    stderr: Path

    def out(self) -> str:
        return self.stdout.read_text()

    def err(self) -> str:
        return self.stderr.read_text()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(10)

    def terminate(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(15)


@dataclass
class Host:
    """One namespace with a home of its own."""

    lab: "Lab"
    name: str
    namespace: str
    home: Path
    address: str
    processes: list[Process] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "EXO_DEBUG": "1",
            # No home of these compiles kernels of its own.
            "EXO_NUMERICS": "exact",
        }

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "exo_cli", *arguments]

    def exo(self, *arguments: str, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def topology(self, *arguments: str) -> dict[str, Any]:
        done = self.exo("discover", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def start(self, *arguments: str) -> Process:
        number = len(self.processes)
        out, err = self.home / f"{number}.out", self.home / f"{number}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = subprocess.Popen(
                self.command(*arguments),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        process = Process(popen, out, err)
        self.processes.append(process)
        return process

    def serve(self, *arguments: str, verb: str = "serve-shard") -> Process:
        """A node, once it is ready."""
        extra = ("--announce",) if verb == "discover" else ()
        process = self.start(verb, "--json", *extra, "--name", self.name, *arguments)
        wait_until(
            lambda: '"type":"ready"' in process.out() or process.popen.poll() is not None,
            30,
            lambda: f"{self.name}: {process.err()}",
        )
        assert process.popen.poll() is None, process.err()
        return process


class Lab:
    """Namespaces, each with one interface on one bridge."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tag = f"x{os.getpid() % 100000}"
        self._namespaces: list[str] = []
        self._count = 0
        self.hosts: dict[str, Host] = {}

    def _namespace(self, name: str) -> str:
        full = f"{self._tag}{name}"
        run("ip", "netns", "add", full)
        self._namespaces.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def bridge(self, name: str) -> str:
        """A switch: a bridge in a namespace of its own."""
        namespace = self._namespace(name)
        run("ip", "-n", namespace, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", namespace, "link", "set", "br0", "up")
        return namespace

    def plug(self, namespace: str, bridge: str, interface: str, address: str | None) -> None:
        """A cable from a namespace to a switch."""
        self._count += 1
        port = f"p{self._count}"
        run(
            "ip",
            "link",
            "add",
            f"{self._tag}{port}",
            "type",
            "veth",
            "peer",
            "name",
            interface,
            "netns",
            namespace,
        )
        run("ip", "link", "set", f"{self._tag}{port}", "netns", bridge, "name", port)
        run("ip", "-n", bridge, "link", "set", port, "master", "br0", "up")
        # No duplicate address detection: an address is usable at once.
        run(
            "ip",
            "netns",
            "exec",
            namespace,
            "sh",
            "-c",
            f"echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad",
        )
        run("ip", "-n", namespace, "link", "set", interface, "up")
        if address is not None:
            run("ip", "-n", namespace, "addr", "add", address, "dev", interface, "brd", "+")

    def host(self, name: str, bridge: str, address: str, *, gateway: str | None = None) -> Host:
        namespace = self._namespace(name)
        self.plug(namespace, bridge, "eth0", address)
        if gateway is not None:
            run("ip", "-n", namespace, "route", "add", "default", "via", gateway)
        home = self._directory / name
        home.mkdir(parents=True)
        host = self.hosts[name] = Host(self, name, namespace, home, address.split("/")[0])
        return host

    def router(self, name: str, sides: dict[str, str]) -> str:
        """Forwards between switches: bridge -> the router's address on it."""
        namespace = self._namespace(name)
        for number, (bridge, address) in enumerate(sides.items()):
            self.plug(namespace, bridge, f"eth{number}", address)
        run("ip", "netns", "exec", namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        return namespace

    def shape(self, host: Host, rate: str, interface: str = "eth0") -> None:
        """Limit what leaves a host."""
        run(
            *("tc", "-n", host.namespace, "qdisc", "replace", "dev", interface, "root"),
            *("tbf", "rate", rate, "burst", "32kbit", "latency", "50ms"),
        )

    def key(self, *hosts: Host) -> str:
        """One new cluster key for all of these; returns its fingerprint."""
        first = hosts[0]
        made = first.exo("key", "new", "--json")
        assert made.returncode == 0, made.stderr
        exported = first.home / "exported.key"
        assert first.exo("key", "export", "-o", str(exported)).returncode == 0
        for other in hosts[1:]:
            joined = other.exo("key", "join", str(exported))
            assert joined.returncode == 0, joined.stderr
        exported.unlink()
        shown: dict[str, Any] = json.loads(first.exo("key", "show", "--json").stdout)
        return str(shown["fingerprints"][0])

    def close(self) -> None:
        for host in self.hosts.values():
            for process in host.processes:
                if process.popen.poll() is None:
                    process.popen.send_signal(signal.SIGCONT)
                    process.popen.kill()
                process.popen.wait(10)
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def wait_until(
    true: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "it did not happen"
) -> None:
    """Wait for something that other processes do."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise AssertionError(f"after {seconds:g} s: {why()}")
        time.sleep(0.05)
