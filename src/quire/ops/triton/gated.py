"""The product of a gated layer and its activation in one kernel, for the many rows of a prompt.

cuBLAS is at the limit of the card's power there, and what an activation of its own takes is the time to write two
numbers for each output, read them and write one. ``quack``'s kernel applies it to the sums in registers. An H100,
cuBLAS and activation against it, microseconds:

    rows                       1,024      2,048      4,096       8,192
    28672 x 4096 (8B)       386  372   759  755  1529 1438   3048 2714
     6144 x 1024 (0.6B)    26.6 20.5  53.4 40.8   108   82    216  160
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

from quire.ops.triton.ahead import compiled_apart
from quire.ops.triton.cute import bare_quack, gated_products, hopper

log = logging.getLogger("quire.ops")

MIN_ROWS = 1024  # with fewer, cuBLAS and the activation are as fast
_NAMES = {"silu": "swiglu", "gelu_tanh": "geglu", "relu": "reglu"}
# The best on the whole for both shapes above, of five that were tried.
_TILES = {"tile_M": 256, "tile_N": 192, "cluster_M": 2, "cluster_N": 1}


def takes(x: torch.Tensor, outputs: int, activation: str) -> bool:
    """Whether ``gated_linear`` can serve the case, and is faster. ``outputs``: of gate and up together."""
    return (
        x.shape[0] >= MIN_ROWS
        and activation in _NAMES
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.shape[1] % 8 == 0
        and outputs % 16 == 0
        and hopper(x.device)
        and (_apart(x.dtype, activation) or _works(x.device, x.dtype, activation))
    )


def _apart(dtype: torch.dtype, activation: str) -> bool:
    return compiled_apart("gated", dtype=dtype, activation=activation)


@cache
def _works(device: torch.device, dtype: torch.dtype, activation: str) -> bool:
    """Whether the kernel compiles and runs: it is not ours, and there is another way."""
    if gated_products() is None:
        return False
    x, matrix = (torch.zeros(rows, 64, dtype=dtype, device=device) for rows in (MIN_ROWS, 208))
    try:
        gated_linear(x, matrix, activation)
    except Exception as error:
        log.warning("The fused products of quack cannot be used, so prompts take longer: %s", error)
        return False
    return True


def gated_linear(x: torch.Tensor, matrix: torch.Tensor, activation: str) -> torch.Tensor:
    """``act(gate) * up`` of the halves of ``x [T, K] @ matrix.T``, ``matrix [2F, K]``: ``[T, F]``."""
    out = torch.empty(x.shape[0], matrix.shape[0] // 2, dtype=x.dtype, device=x.device)
    if _apart(x.dtype, activation):
        return out
    _gemm(x.contiguous(), matrix, out, activation)
    return out


def _gemm(x: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor, activation: str, **options: Any) -> None:
    products = gated_products()
    if products is None:
        raise RuntimeError("quack is not installed: pip install quack-kernels")
    with bare_quack():
        products(_NAMES[activation]).gemm(
            x, matrix, None, epi_args={"mAuxOut": out}, concat_layout=("B",), **_TILES, **options
        )


def prepare() -> None:
    gated_products()


def compile_variant(dtype: str, activation: str) -> None:
    """Compile what ``gated_linear`` takes for such a case, on fake tensors."""
    x, matrix, out = (
        torch.zeros(shape, dtype=getattr(torch, dtype), device="cuda")
        for shape in ((MIN_ROWS, 64), (208, 64), (MIN_ROWS, 104))
    )
    _gemm(x, matrix, out, activation, _launch=False)
