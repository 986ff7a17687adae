"""Joules, where this machine's processor counts them and lets us read it (RAPL on Linux); else nothing.

What is counted is the whole machine's processor, whatever runs on it. Knows nothing of requests.
"""

from dataclasses import dataclass, field
from pathlib import Path

_ZONES = Path("/sys/class/powercap")


@dataclass(slots=True)
class Energy:
    """Reads the counters, which begin again at zero now and then."""

    zones: Path = _ZONES
    _last: dict[Path, int] = field(default_factory=dict)
    _joules: float = 0.0

    def read(self) -> float | None:
        """Since the first call; None if no counter can be read."""
        found = False
        # intel-rapl:0 is a whole processor; intel-rapl:0:0 is a part of it.
        for zone in sorted(self.zones.glob("intel-rapl:*")):
            if zone.name.count(":") != 1:
                continue
            now = _number(zone / "energy_uj")
            if now is None:
                return None
            found = True
            passed = now - self._last.get(zone, now)
            if passed < 0:
                passed += _number(zone / "max_energy_range_uj") or 0
            self._last[zone] = now
            self._joules += max(passed, 0) / 1e6
        return self._joules if found else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
