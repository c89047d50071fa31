"""CUDA graphs are captured whatever garbage there is."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from quire.ops.triton import TritonOps
from quire.ops.triton.capture import uncollected


@pytest.fixture
def eager_collector() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


def test_nothing_is_collected_within(eager_collector: None) -> None:
    ends: list[int] = []

    class Knot:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ends.append(1)

    with uncollected():
        Knot()
        _ = [[] for _ in range(1000)]
        assert not ends
    assert gc.isenabled()
    gc.collect()
    assert ends == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")
def test_a_graph_in_the_garbage(eager_collector: None) -> None:
    ops = TritonOps("cuda")
    x = torch.ones(8, device="cuda")
    graphs = [ops.record(lambda: x + 1) for _ in range(2)]  # the body runs once before the capture

    def body() -> torch.Tensor:
        knot: dict[str, Any] = {"replay": graphs.pop()}
        knot["itself"] = knot
        del knot
        return torch.stack([x * i for i in range(100)]).sum()

    replay = ops.record(body)
    assert replay is not None
    assert float(replay()) == 8 * 4950
