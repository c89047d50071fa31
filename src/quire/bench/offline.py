"""What the offline benchmarks share: the requests of a config, and a timed run of them through ``LLM``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire.bench.workloads import Request
from quire.config.engine import EngineConfig
from quire.config.options import changed

if TYPE_CHECKING:
    from quire.llm import LLM
    from quire.outputs import RequestOutput


@dataclass(frozen=True)
class OfflineRun:
    outputs: list[RequestOutput]
    seconds: float


def open_llm(engine: EngineConfig) -> LLM:
    """The model of ``engine``, without a tokenizer: workloads are token ids."""
    from quire.llm import LLM

    return LLM(**{**changed(engine), "skip_tokenizer_init": True})


def run_offline(llm: LLM, requests: Sequence[Request], progress: bool = True) -> OfflineRun:
    """All requests as one batch, greedy, to their full lengths."""
    from quire.params import SamplingParams

    params = [
        SamplingParams(temperature=0, ignore_eos=True, max_tokens=r.max_tokens, detokenize=False) for r in requests
    ]
    prompts = [{"prompt_token_ids": r.prompt_token_ids} for r in requests]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=progress)
    return OfflineRun(outputs, time.perf_counter() - start)


def latencies(runs: Sequence[OfflineRun]) -> dict[str, list[float]]:
    """What the requests waited for, in milliseconds: the first token, each later one, the last."""
    found: dict[str, list[float]] = {"ttft_ms": [], "tpot_ms": [], "e2e_ms": []}
    for output in (output for run in runs for output in run.outputs):
        m = output.metrics
        if m is None or m.first_token_time is None or m.finished_time is None:
            continue
        found["ttft_ms"].append(1000 * (m.first_token_time - m.arrival_time))
        found["e2e_ms"].append(1000 * (m.finished_time - m.arrival_time))
        later = len(output.outputs[0].token_ids) - 1
        if later > 0:
            found["tpot_ms"].append(1000 * (m.finished_time - m.first_token_time) / later)
    return found
