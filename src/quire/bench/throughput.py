"""``quire bench throughput``: how many tokens a second a batch of requests makes, without a server."""

from __future__ import annotations

from typing import Any

from quire.bench.display import plot, show
from quire.bench.figures import save, spreads
from quire.bench.offline import OfflineRun, latencies, open_llm, run_offline
from quire.bench.workloads import requests_of
from quire.config.bench import ResultConfig, WorkloadConfig
from quire.config.engine import EngineConfig


def run(engine: EngineConfig, work: WorkloadConfig, results: ResultConfig) -> int:
    requests = requests_of(work)
    done = run_offline(open_llm(engine), requests)
    measured = latencies([done])
    figures = throughput(done) | spreads(measured)
    title = f"{work.workload}, offline"
    show(figures, title)
    if results.plot:
        plot(results.plot, {title: measured})
    if results.result:
        save(results.result, {"model": engine.model, "workload": work.workload, **figures})
    return 0


def throughput(run: OfflineRun) -> dict[str, Any]:
    prompt = sum(len(o.prompt_token_ids) for o in run.outputs)
    output = sum(len(c.token_ids) for o in run.outputs for c in o.outputs)
    return {
        "requests": len(run.outputs),
        "seconds": run.seconds,
        "prompt_tokens": prompt,
        "cached_tokens": sum(o.num_cached_tokens for o in run.outputs),
        "output_tokens": output,
        "requests_per_s": len(run.outputs) / run.seconds,
        "output_tokens_per_s": output / run.seconds,
        "total_tokens_per_s": (prompt + output) / run.seconds,
    }
