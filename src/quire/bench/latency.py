"""``quire bench latency``: how long one batch of equal requests takes, run after run."""

from __future__ import annotations

from quire.bench.display import bars, plot, show
from quire.bench.figures import save, spreads
from quire.bench.offline import latencies, open_llm, run_offline
from quire.bench.workloads import random_workload
from quire.config.bench import LatencyConfig, ResultConfig
from quire.config.engine import EngineConfig


def run(engine: EngineConfig, config: LatencyConfig, results: ResultConfig) -> int:
    llm = open_llm(engine)
    runs = []
    with bars() as progress:
        for i in progress.track(range(config.num_iters_warmup + config.num_iters), description="runs"):
            # Fresh ids each time: the prefix cache must not answer for the prefill.
            requests = random_workload(config.batch_size, config.input_len, config.output_len, seed=i)
            runs.append(run_offline(llm, requests, progress=False))
    timed = runs[config.num_iters_warmup :]
    # The batch counts as a whole: it is through when its last request is.
    measured = latencies(timed) | {"e2e_ms": [1000 * run.seconds for run in timed]}
    figures = {"requests": sum(len(run.outputs) for run in timed), **spreads(measured)}
    title = f"batch of {config.batch_size}, {config.input_len} in, {config.output_len} out"
    show(figures, title)
    if results.plot:
        plot(results.plot, {title: measured})
    if results.result:
        save(results.result, {"model": engine.model, **figures})
    return 0
