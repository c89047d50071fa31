"""The backend under test: on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from quire.ops.triton import TritonOps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if DEVICE.type == "cuda" and item.path.parent.name == "triton":
            item.add_marker(pytest.mark.gpu)


# The interpreter multiplies the bits of bfloat16.
NARROW = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16


@pytest.fixture(params=[torch.float32, NARROW], ids=["float32", "narrow"], scope="session")
def ops(request: pytest.FixtureRequest) -> TritonOps:
    return TritonOps(DEVICE, request.param)


@pytest.fixture(scope="session")
def float_ops() -> TritonOps:
    return TritonOps(DEVICE, torch.float32)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
