"""Cost of the engine itself: scheduled tokens a second with a runner that returns at once.

python benchmarks/engine_overhead.py [--batch 64] [--seconds 3]
"""

from __future__ import annotations

import argparse
import json
import time

from quire.config.engine import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.messages import EngineRequest
from quire.engine.plan import KVGroup, Landed, SlotResult, StepPlan
from quire.params import SamplingParams


class NoModel:
    """Samples token 1 everywhere."""

    ahead = 0
    slots = 64
    step_tokens = 1024
    max_model_len = 1 << 20
    vocab_size = 1000
    page_size = 16

    def __init__(self, windows: list[int | None]) -> None:
        self.groups = [KVGroup(window, 1 << 16) for window in windows]

    def submit(self, plan: StepPlan) -> Landed:
        return Landed([SlotResult(work.slot, 1) for work in plan.work if work.sample])


def measure(batch: int, seconds: float, prompt: int, output: int, windows: list[int | None]) -> dict[str, float]:
    """Keep ``batch`` requests running; count tokens, prompt and output, that went through ``step``."""
    core = EngineCore(NoModel(windows), EngineConfig(max_num_seqs=batch, max_num_batched_tokens=1024), bounded=False)
    made = finished = 0

    def refill(count: int) -> None:
        nonlocal made
        for _ in range(count):
            ids = [(made + i) % 1000 for i in range(prompt)]
            core.add(EngineRequest(str(made), ids, SamplingParams(max_tokens=output, ignore_eos=True)))
            made += 1

    refill(batch)
    cpu, begin = time.process_time(), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        done = sum(delta.finish_reason is not None for delta in core.step())
        finished += done
        refill(done)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - begin
    stats = core.stats()
    return {
        "tokens_per_s": stats.computed_tokens / wall,
        "tokens_per_cpu_s": stats.computed_tokens / cpu,
        "us_per_step": 1e6 * wall / stats.steps,
        "finished": finished,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    cases: dict[str, tuple[int, int, list[int | None]]] = {
        "decode": (16, 4096, [None]),
        "decode, two groups": (16, 4096, [None, 512]),
        "mixed 128 in, 64 out": (128, 64, [None]),
    }
    for name, (prompt, output, windows) in cases.items():
        result = measure(args.batch, args.seconds, prompt, output, windows)
        print(json.dumps({"case": name, "batch": args.batch} | {k: round(v, 1) for k, v in result.items()}))


if __name__ == "__main__":
    main()
