"""Steps of common sizes as CUDA graphs: from the slots' state to logits in one launch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quire.ops.backend import SampleStep
from quire.ops.triton.capture import uncollected

PADDED = 2048  # tokens
LONGER_ROWS = 256  # beyond which FlashAttention-4 would take a variant of its own


@dataclass(frozen=True)
class StepShape:
    """Sizes of a step, padding included. ``decode``: one token a row; ``shared``: rows with pages in common;
    ``every``: hidden states of all tokens are asked for, not of each row's last alone. ``longer``: the most rows that
    have several tokens."""

    tokens: int
    rows: int
    decode: bool
    shared: bool = False
    every: bool = False
    longer: int = LONGER_ROWS


@dataclass(frozen=True)
class StepOutput:
    hidden: torch.Tensor  # [tokens, hidden] of steps with ``every``, else [rows, hidden]
    logits: torch.Tensor  # [rows, vocab], of each row's last token
    sample: SampleStep  # [rows]


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    output: StepOutput


class DeviceGraphs:
    """Graphs for some shapes; all share one pool of memory, so an output is valid until the next step."""

    def __init__(self, run: Callable[[StepShape], StepOutput]) -> None:
        self._run = run
        self._graphs: dict[StepShape, _Graph] = {}
        self._pool: Any = None  # torch has no public name for the type
        self._stream: torch.cuda.Stream | None = None  # one for all: a pool's memory belongs to it, and cuBLAS's does

    def capture(self, shapes: Iterable[StepShape]) -> None:
        """Every kernel must be loaded."""
        torch.cuda.empty_cache()  # the pool can't get what is cached while it captures
        pool, stream = self._pool, self._stream or torch.cuda.Stream()
        for shape in sorted(shapes, key=lambda s: s.tokens, reverse=True):  # smaller ones fit into the largest's memory
            graph = torch.cuda.CUDAGraph()
            # torch.cuda.graph would wait for the device and empty caches each time.
            with uncollected(), torch.cuda.stream(stream):
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    output = self._run(shape)
                finally:
                    graph.capture_end()
            pool = pool or graph.pool()
            output = StepOutput(_unclaimed(output.hidden), _unclaimed(output.logits), output.sample)
            self._graphs[shape] = _Graph(graph, output)
        self._pool, self._stream = pool, stream

    def run(self, shape: StepShape) -> StepOutput:
        graph = self._graphs.get(shape)
        if graph is None:
            return self._run(shape)
        graph.graph.replay()
        return graph.output


class _Memory:
    """A tensor's memory, for ``torch.as_tensor``."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": (tensor.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def _unclaimed(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory without keeping it: other graphs of the pool may use it too."""
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype).view(tensor.shape)


def at_least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of ``sizes``, which ascend, that holds ``wanted``."""
    return sizes[bisect_left(sizes, wanted)]


def decode_sizes(most: int) -> list[int]:
    """Batch sizes of decode graphs: each batch is padded to the next."""
    sizes = [1, 2, 4, 8, *range(16, 256, 16), *range(256, 512, 32), *range(512, 1024, 64), *range(1024, most, 128)]
    return [n for n in sizes if n < most] + [most]


def mixed_sizes(most: int) -> list[int]:
    """Token counts of graphs for steps with prompts. Beyond ``PADDED`` tokens only the fullest step has one: padding
    would cost more than launches do, which hide behind the arithmetic."""
    sizes = (32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, PADDED)
    return [n for n in sizes if n < most] + [most]


def row_sizes(most: int) -> list[int]:
    """Row counts of those graphs."""
    return [n for n in (256, 512, 1024, 2048) if n < most] + [most]
