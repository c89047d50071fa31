"""``quire bench latency``: how long one batch of equal requests takes, run after run."""

from __future__ import annotations

from typing import Any

from quire.bench.display import show
from quire.bench.figures import save, spread
from quire.bench.offline import OfflineRun, open_llm, run_offline
from quire.bench.workloads import random_workload
from quire.config.bench import LatencyConfig
from quire.config.engine import EngineConfig


def run(engine: EngineConfig, config: LatencyConfig) -> int:
    llm = open_llm(engine)
    runs = []
    for i in range(config.num_iters_warmup + config.num_iters):
        # Fresh ids each time: the prefix cache must not answer for the prefill.
        requests = random_workload(config.batch_size, config.input_len, config.output_len, seed=i)
        runs.append(run_offline(llm, requests, progress=False))
    figures = latency(runs[config.num_iters_warmup :])
    show(figures, f"batch of {config.batch_size}, {config.input_len} in, {config.output_len} out")
    if config.result:
        save(config.result, {"model": engine.model, **figures})
    return 0


def latency(runs: list[OfflineRun]) -> dict[str, Any]:
    """Spreads in milliseconds over the runs: first token, each later token, the whole batch."""
    firsts, later = [], []
    for run in runs:
        for output in run.outputs:
            m = output.metrics
            if m is None or m.first_token_time is None or m.finished_time is None:
                continue
            firsts.append(1000 * (m.first_token_time - m.arrival_time))
            more = len(output.outputs[0].token_ids) - 1
            if more > 0:
                later.append(1000 * (m.finished_time - m.first_token_time) / more)
    return {
        "requests": sum(len(r.outputs) for r in runs),
        "ttft_ms": spread(firsts),
        "tpot_ms": spread(later),
        "e2e_ms": spread([1000 * r.seconds for r in runs]),
    }
