"""What is measured of one running server: the workloads, start, memory, idle use of the processor."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from quire.bench.figures import summarise
from quire.bench.load import Load, send_all
from quire.bench.workloads import WORKLOADS, make_workload, random_workload
from quire.cli.child import ServerProcess

_WARM_UP_SEED = 12345
_HELP_RUNS = 5


@dataclass(frozen=True)
class Measure:
    """``figure`` picks the number out of a run's summary. ``repeats`` runs have fresh prompts each; the median counts.

    Seeds count from ``seed``, which keeps the draws apart: under one seed W2's prompt is the head of W3's, and cached.

    ``bar`` is the ratio to the best peer that Quire must reach: at least, or at most where ``lower`` is better.
    """

    label: str
    figure: tuple[str, ...]
    bar: float
    seed: int
    lower: bool = False
    repeats: int = 1
    scale: float = 1.0
    inverse: bool = False


MEASURES: dict[str, Measure] = {
    "w1": Measure("W1 output tokens/s", ("output_tokens_per_s",), 1.5, seed=100),
    "w2": Measure("W2 decode tokens/s", ("tpot_ms", "p50"), 1.2, seed=200, repeats=3, scale=1000, inverse=True),
    "w3": Measure(
        "W3 prefill tokens/s", ("ttft_ms", "p50"), 1.25, seed=300, repeats=3, scale=1024 * 1000, inverse=True
    ),
    "w4": Measure("W4 seconds", ("seconds",), 0.5, seed=400, lower=True),
}


def value_of(measure: Measure, summary: dict[str, Any]) -> float:
    number: Any = summary
    for key in measure.figure:
        number = number[key]
    return measure.scale / float(number) if measure.inverse else measure.scale * float(number)


async def run_workload(server: ServerProcess, model: str, name: str) -> dict[str, Any]:
    """The median of a workload's repeats, with the summaries it comes from."""
    summaries = []
    for repeat in range(MEASURES[name].repeats):
        requests = make_workload(name, seed=MEASURES[name].seed + repeat)
        timings, wall = await send_all(server.client, model, requests, Load(WORKLOADS[name].concurrency))
        summaries.append(summarise(timings, wall))
    failed = sum(s["failed"] for s in summaries)
    if failed:
        raise RuntimeError(f"{name}: {failed} requests failed: {[s['errors'] for s in summaries]}")
    values = [value_of(MEASURES[name], s) for s in summaries]
    return {"value": statistics.median(values), "values": values, "summaries": summaries}


async def warm_up(server: ServerProcess, model: str) -> None:
    """One short request: what an engine does on first use is not part of the workloads."""
    await send_all(server.client, model, random_workload(1, 16, 8, seed=_WARM_UP_SEED), Load())


def peak_memory_mb(pid: int) -> float:
    """Sum over the process tree of each process's peak resident set, in 10^6 bytes."""
    return sum(_peak_bytes(p.pid) for p in tree(pid)) / 1e6


def tree(pid: int) -> Iterable[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


async def idle_share(pid: int, seconds: float) -> float:
    """Cores in use over ``seconds`` without requests."""
    await asyncio.sleep(2)
    before, start = _cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    return (_cpu_seconds(pid) - before) / (time.perf_counter() - start)


class Bystanders:
    """How busy everybody else keeps the machine: between start and ``cores()``, without our tree and this process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start = time.perf_counter()
        self._machine, self._own = _machine_seconds(), _cpu_seconds(pid) + time.process_time()

    def cores(self) -> float:
        machine = _machine_seconds() - self._machine
        own = _cpu_seconds(self._pid) + time.process_time() - self._own
        return max(0.0, machine - own) / (time.perf_counter() - self._start)


def help_seconds() -> float:
    """The median time of ``quire --help``."""
    command = [str(Path(sys.executable).with_name("quire")), "--help"]
    times = []
    for _ in range(_HELP_RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _cpu_seconds(pid: int) -> float:
    return float(sum(t.user + t.system for t in (p.cpu_times() for p in tree(pid))))


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait)


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
