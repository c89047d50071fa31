"""Every family on the GPU's ops: as exact as on the CPU in float32, and within bfloat16's rounding of it.

On a GPU all variants run; in Triton's interpreter, which is slow, one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from quire.ops.triton import TritonOps
from tests.model import layer_norm_cases, rms_cases, test_moe_families
from tests.model.agreement import (
    TOKENS,
    Close,
    Open,
    check_batch,
    check_chunks,
    check_recorded,
    check_shared_prefix,
    expected,
)
from tests.model.harness import Harness
from tests.model.narrow import InBfloat16, in_bfloat16

GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if GPU else []
EXPERTS = {name: {**test_moe_families.COMMON, **case} for name, case in test_moe_families.CASES.items()}
CASES: dict[str, dict[str, Any]] = {**rms_cases.CASES, **layer_norm_cases.CASES, **EXPERTS}
INTERPRETED = ("llama",)
WAYS = (check_chunks, check_batch, check_shared_prefix, check_recorded)


@pytest.fixture(params=CASES if GPU else INTERPRETED, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InBfloat16:
    settings = CASES[request.param]
    if settings["model_type"] not in CONFIG_MAPPING:
        pytest.skip("this Transformers has no such class")
    return in_bfloat16(settings, tmp_path_factory.mktemp(request.param), request.param in EXPERTS)


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual.float().cpu(), wanted, atol=2e-4, rtol=2e-4)


@pytest.fixture(scope="module")
def exact() -> TritonOps:
    return TritonOps("cuda" if GPU else "cpu", torch.float32)


@pytest.fixture(scope="module")
def narrow() -> TritonOps:
    return TritonOps("cuda" if GPU else "cpu", torch.bfloat16)


def check_briefly(model: Any, opened: Open, close: Close) -> None:
    """A chunk, then a prompt beside a decode."""
    harness = opened([TOKENS[:19], TOKENS[30:37]])
    close(harness.step({0: 18})[0], expected(model, TOKENS[:18]))
    last, first = harness.step({0: 1, 1: 7})
    close(last, expected(model, TOKENS[:19])[-1:])
    close(first, expected(model, TOKENS[30:37]))


@pytest.mark.parametrize("way", WAYS if GPU else [check_briefly], ids=lambda way: way.__name__)
def test_float32(case: InBfloat16, exact: TritonOps, way: Any) -> None:
    way(case.model, lambda sequences: Harness(case.path, sequences, ops=exact), close)


@pytest.mark.skipif(not GPU, reason="the interpreter multiplies the bits of bfloat16")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_bfloat16(case: InBfloat16, narrow: TritonOps, way: Any) -> None:
    way(case.model, lambda sequences: Harness(case.path, sequences, ops=narrow), case.near)


@pytest.mark.skipif(not GPU, reason="the interpreter multiplies the bits of bfloat16")
def test_greedy_in_bfloat16(case: InBfloat16, narrow: TritonOps) -> None:
    """The token taken is Transformers', or within rounding of it."""
    wanted = expected(case.model, TOKENS)
    logits = Harness(case.path, [TOKENS], ops=narrow).step({0: len(TOKENS)})[0].float().cpu()
    chosen = wanted.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
    short = (wanted.max(dim=1).values - chosen) / wanted.std(dim=1)
    assert short.median() == 0
    if not case.experts:
        assert short.max() < 4 * (case.worst + 0.02)
