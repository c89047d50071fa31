"""Every test of ops runs on all backends that this machine has."""

from __future__ import annotations

import pytest

from quire.ops.backend import Ops
from quire.ops.cpu import load
from quire.ops.reference import ReferenceOps

try:
    from quire.ops.cpu.ops import INSTRUCTION_SETS, CpuOps
except ImportError:  # no compiler here: the reference is all there is
    CpuOps = None  # type: ignore[assignment,misc]


def _backends() -> dict[str, Ops]:
    found: dict[str, Ops] = {"reference": ReferenceOps()}
    if CpuOps is not None:
        kinds = [name for name in INSTRUCTION_SETS if not name.endswith("vnni")]  # what is theirs is for int8 inputs
        found |= {name: CpuOps(2, name) for name in kinds}
        found["one-thread"] = CpuOps(1)
        found["cpu"] = load()
    return found


BACKENDS = _backends()


@pytest.fixture(params=list(BACKENDS))
def ops(request: pytest.FixtureRequest) -> Ops:
    return BACKENDS[request.param]


@pytest.fixture
def cpu_ops() -> Ops:
    if CpuOps is None:
        pytest.skip("the CPU kernels are not built")
    return BACKENDS["cpu"]
