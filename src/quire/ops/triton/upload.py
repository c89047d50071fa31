"""Differences from the host, written where they belong on the device: one copy and one launch for all of a step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.triton.launch import inputs_ready, launch


@triton.jit
def _scatter(runs_ptr, target_ptr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    inputs_ready(PDL)
    values_ptr = runs_ptr + tl.num_programs(0) * 3
    run = tl.program_id(0)
    source = tl.load(runs_ptr + run * 3)
    target = tl.load(runs_ptr + run * 3 + 1)
    length = tl.load(runs_ptr + run * 3 + 2)
    for start in tl.range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(values_ptr + source + at, mask=at < length)
        tl.store(target_ptr + target + at, value, mask=at < length)


def scatter(upload: torch.Tensor, runs: int, target: torch.Tensor) -> None:
    """``upload`` int32: ``runs`` triples (source, target, length), then values; sources count from the first value.

    Copies ``values[source : source + length]`` to ``target[target : target + length]`` (int32, one-dimensional). Runs
    must not overlap in the target.
    """
    launch(_scatter, (runs,), upload, target, BLOCK=256, num_warps=4)
