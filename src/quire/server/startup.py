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
        self._before = age

    def close(self, engine_phases: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase; what lies between the parts that were measured is the last."""
        total = time.perf_counter() - self._began
        phases = {"launch": self._before, **engine_phases}
        phases["hand-over"] = max(0.0, total - sum(phases.values()))
        return phases


def process_age() -> float:
    """Seconds since this process began; 0 where the system doesn't say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
