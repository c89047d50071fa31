"""Passes that compile kernels run none of them."""

from __future__ import annotations

import torch

from quire.ops.triton.launch import compile_only
from quire.ops.triton.upload import scatter

from .conftest import DEVICE


def test_launches_only_compile_within_a_compiling_pass() -> None:
    upload = torch.tensor([0, 2, 3, 7, 8, 9], dtype=torch.int32, device=DEVICE)
    target = torch.zeros(6, dtype=torch.int32, device=DEVICE)
    with compile_only():
        scatter(upload, 1, target)
    assert target.tolist() == [0] * 6
    scatter(upload, 1, target)
    assert target.tolist() == [0, 0, 7, 8, 9, 0]
