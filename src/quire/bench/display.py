"""What a benchmark shows: its progress, tables and plots of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_RATES = {
    "requests": "requests",
    "failed": "failed",
    "seconds": "wall time, s",
    "prompt_tokens": "prompt tokens",
    "cached_tokens": "of them from the prefix cache",
    "output_tokens": "output tokens",
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "all tokens/s",
}
_LATENCIES = {
    "ttft_ms": "time to first token, ms",
    "tpot_ms": "time per output token, ms",
    "itl_ms": "between events, ms",
    "e2e_ms": "whole request, ms",
}


def show(figures: Mapping[str, Any], title: str) -> None:
    """Print figures as ``summarise`` makes them."""
    console = Console()
    console.print(title, style="bold", markup=False)
    table = Table("figure", "value")
    for key, label in _RATES.items():
        if key in figures:
            value = figures[key]
            table.add_row(label, f"{value:,.2f}" if isinstance(value, float) else f"{value:,}")
    console.print(table)
    spreads = {label: figures[key] for key, label in _LATENCIES.items() if figures.get(key)}
    if spreads:
        columns = list(next(iter(spreads.values())))
        latencies = Table("latency", *columns)
        for label, spread in spreads.items():
            latencies.add_row(label, *(f"{spread[c]:,.1f}" for c in columns))
        console.print(latencies)
    for error in figures.get("errors", ()):
        console.print(f"failed: {error}", style="red", markup=False)


def bars() -> Progress:
    """A bar for things that are counted, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def plot(path: str, runs: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw into a PNG, for each latency, what share of each named run's values lies below which time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [key for key in _LATENCIES if any(run.get(key) for run in runs.values())]
    figure, axes = pyplot.subplots(1, max(1, len(measured)), figsize=(5 * max(1, len(measured)), 4), squeeze=False)
    for axis, key in zip(axes[0], measured, strict=False):
        for name, run in runs.items():
            if run.get(key):
                axis.ecdf(run[key], label=name)
        axis.set(xlabel=_LATENCIES[key], ylabel="share of all", xlim=(0, None), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
