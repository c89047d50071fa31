"""Steps of common sizes as CUDA graphs: from the slots' state to logits in one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from quire.ops.backend import SampleStep


@dataclass(frozen=True)
class StepShape:
    """Sizes of a step, padding included. ``decode``: one token a row; ``shared``: rows with pages in common."""

    tokens: int
    rows: int
    decode: bool
    shared: bool = False


@dataclass(frozen=True)
class StepOutput:
    hidden: torch.Tensor  # [tokens, hidden]
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

    def capture(self, shapes: Iterable[StepShape]) -> None:
        """The largest first: smaller ones fit into its memory. Every row must be padding, every kernel loaded."""
        for shape in sorted(shapes, key=lambda s: s.tokens, reverse=True):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = self._run(shape)
            self._pool = self._pool or graph.pool()
            self._graphs[shape] = _Graph(graph, output)

    def run(self, shape: StepShape) -> StepOutput:
        graph = self._graphs.get(shape)
        if graph is None:
            return self._run(shape)
        graph.graph.replay()
        return graph.output


def decode_sizes(most: int) -> list[int]:
    """Batch sizes of decode graphs: each batch is padded to the next."""
    small = [1, 2, 4, 8]
    return [n for n in small if n < most] + list(range(16, most, 16 if most <= 256 else 32)) + [most]


def mixed_sizes(most: int) -> list[int]:
    """Token counts of graphs for steps with prompts; what is larger hides its launches behind its arithmetic."""
    return [n for n in (32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048) if n <= most]
