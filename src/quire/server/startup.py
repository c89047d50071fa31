"""Where the time of a start went."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path


class Ledger:
    """Phases of a start-up that add up to its whole time."""

    def __init__(self, age: float) -> None:
        """``age``: seconds since the process began."""
        self._began = time.perf_counter() - age
        self._launch: float | None = None

    def engine_begins(self) -> None:
        """The engine starts on its own phases."""
        self._launch = self._now()

    def close(self, engine_phases: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase, the last being what lies between those that were measured."""
        total = self._now()
        phases = {"launch": self._launch or total, **engine_phases}
        phases["hand-over"] = max(0.0, total - sum(phases.values()))
        return phases

    def _now(self) -> float:
        return time.perf_counter() - self._began


def process_age() -> float:
    """Seconds since this process began; 0 where the system doesn't say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
