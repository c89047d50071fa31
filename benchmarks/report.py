"""Print a result of compare_cpu.py as a Markdown table, for docs/benchmarks.md: ``report.py RESULT.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from measure import MEASURES

_OTHERS = {"ready_s": "start to ready, s", "peak_mb": "peak memory, MB", "idle_cores": "idle, share of a core"}


def markdown(figures: dict[str, Any]) -> str:
    """The medians, with the ratio to the best peer of each workload."""
    median: dict[str, dict[str, float]] = figures["median"]
    peers = [name for name in median if name != "quire"]
    lines = ["| | " + " | ".join(median) + " | ratio to best peer |", "|---" * (len(median) + 2) + "|"]
    for key, measure in MEASURES.items():
        if key not in median["quire"]:
            continue
        best = (min if measure.lower else max)((median[p][key] for p in peers), default=float("nan"))
        cells = [f"{each[key]:.1f}" for each in median.values()]
        lines.append(f"| {measure.label} | " + " | ".join(cells) + f" | {median['quire'][key] / best:.2f} |")
    for key, label in _OTHERS.items():
        cells = [f"{each[key]:.3g}" if key in each else "" for each in median.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " | |")
    machine = figures["machine"]
    where = f"{machine['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, {len(figures['rounds'])} rounds"
    return "\n".join([*lines, "", f"{where}; `{machine['command']}`; `quire --help` {figures['help_s']:.2f} s."])


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
