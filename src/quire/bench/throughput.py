"""``quire bench throughput``: how many tokens a second a batch of requests makes, without a server."""

from __future__ import annotations

from typing import Any

from quire.bench.display import show
from quire.bench.figures import save
from quire.bench.offline import OfflineRun, open_llm, run_offline
from quire.bench.workloads import requests_of
from quire.config.bench import WorkloadConfig
from quire.config.engine import EngineConfig


def run(engine: EngineConfig, work: WorkloadConfig) -> int:
    requests = requests_of(work)
    figures = throughput(run_offline(open_llm(engine), requests))
    show(figures, f"{work.workload}, offline")
    if work.result:
        save(work.result, {"model": engine.model, "workload": work.workload, **figures})
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
