"""Tables and plots of figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from quire.bench.load import Timing
from quire.config.options import ConfigError

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


def plot(path: str, runs: Mapping[str, Sequence[Timing]]) -> None:
    """Draw cumulative shares of TTFT, event gaps and whole requests for each named run into a PNG."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("plot", "--plot needs matplotlib: pip install 'quire-llm[bench]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, Callable[[Timing], list[float]]] = {
        "time to first token, s": lambda t: [t.ttft],
        "between events, s": lambda t: t.gaps,
        "whole request, s": lambda t: [t.e2e],
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4))
    for axis, (label, values_of) in zip(axes, panels.items(), strict=True):
        for name, timings in runs.items():
            values = sorted(v for t in timings if t.error is None for v in values_of(t))
            axis.plot(values, [(i + 1) / len(values) for i in range(len(values))], label=name)
        axis.set(xlabel=label, ylabel="share of all", ylim=(0, 1))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
