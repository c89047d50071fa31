"""A recording gives what the same calls give, on whatever its inputs hold by then."""

from __future__ import annotations

import torch

from quire.ops.cpu.ops import CpuOps
from quire.ops.layouts import Dense


def test_replay_computes_on_new_inputs() -> None:
    ops = CpuOps(threads=2)
    weights = [ops.pack(Dense(torch.randn(48, 48))) for _ in range(20)]
    norm = torch.rand(48)
    x = torch.randn(3, 48)

    def run() -> torch.Tensor:
        y, residual = ops.rms_norm(ops.linear(x, weights[0]), norm, 1e-6)
        for weight in weights:
            y, residual = ops.rms_norm(ops.linear(y, weight), norm, 1e-6, residual.narrow(0, 0, 3))
        return y

    first = run()
    replay = ops.record(run)
    assert replay is not None
    torch.testing.assert_close(replay(), first, rtol=0, atol=0)
    other = ops.record(run)  # shares the first one's memory
    assert other is not None
    x.copy_(torch.randn(3, 48))
    wanted = run()
    assert not torch.equal(wanted, first)
    torch.testing.assert_close(other(), wanted, rtol=0, atol=0)
    torch.testing.assert_close(replay(), wanted, rtol=0, atol=0)


def test_results_share_few_blocks() -> None:
    ops = CpuOps(threads=1)
    weight, x = ops.pack(Dense(torch.randn(64, 64))), torch.randn(4, 64)

    def run() -> torch.Tensor:
        y = x
        for _ in range(100):
            y = ops.linear(y, weight)
        return y

    assert ops.record(run) is not None
    assert len(ops._arena._free) <= 3


def test_arithmetic_of_torch_cannot_be_recorded() -> None:
    ops = CpuOps(threads=1)
    weight, x = ops.pack(Dense(torch.randn(16, 16))), torch.randn(1, 16)
    assert ops.record(lambda: ops.linear(x, weight) + 1) is None
    assert ops.record(lambda: ops.linear(x, weight)) is not None
