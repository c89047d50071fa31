"""``quire bench serve``: load a running server and measure latencies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from rich.progress import Progress, TaskID

from quire.bench.display import bars, plot, show
from quire.bench.figures import latencies, save, summarise
from quire.bench.load import Load, Timing, send_all
from quire.bench.workloads import WORKLOADS, requests_of
from quire.client import ApiClient
from quire.config.bench import LoadConfig, ResultConfig, WorkloadConfig


def run(load: LoadConfig, work: WorkloadConfig, results: ResultConfig) -> int:
    named = WORKLOADS.get(work.workload)
    concurrency = load.max_concurrency or (named.concurrency if named and not load.request_rate else 0)
    rates: Sequence[float | None] = load.request_rate or (None,)
    timings = asyncio.run(_run_rates(load, work, concurrency, rates))
    runs = {}
    for rate, (each, wall) in timings.items():
        name = f"{work.workload}, {_described(rate, concurrency)}"
        runs[name] = summarise(each, wall)
        show(runs[name], name)
    if results.plot:
        plot(results.plot, {name: latencies(each) for name, (each, _) in zip(runs, timings.values(), strict=True)})
    if results.result:
        save(results.result, {"server": load.base_url, "runs": runs})
    return 1 if any(figures["failed"] for figures in runs.values()) else 0


def _described(rate: float | None, concurrency: int) -> str:
    if rate is not None:
        return f"{rate:g} requests/s"
    return f"concurrency {concurrency}" if concurrency else "all at once"


async def _run_rates(
    config: LoadConfig, work: WorkloadConfig, concurrency: int, rates: Sequence[float | None]
) -> dict[float | None, tuple[list[Timing], float]]:
    client = ApiClient(config.base_url, config.api_key)
    model = config.model or await client.first_model()
    results = {}
    with bars() as progress:
        for number, rate in enumerate(rates):
            requests = requests_of(work, number)
            task = progress.add_task(f"{rate:g} requests/s" if rate else "requests", total=len(requests))
            load = Load(concurrency, rate, text_prompts=config.text_prompts)
            results[rate] = await send_all(client, model, requests, load, partial(_advance, progress, task))
    return results


def _advance(progress: Progress, task: TaskID, _timing: Timing) -> None:
    progress.advance(task)
