"""FlashAttention-4 (package ``flash-attn-4``) where it is installed, the device has it and the case is one it does.

It takes what has more than one query a sequence; decode steps go to the own kernel, which splits contexts and was
faster in every case. On an H200 (H = 32, G = 8, D = 128, page 128), FlashAttention-4 and own, microseconds:

    prefill 4 x 2,048        261   439      decode 256 x 1,024   320   246
    prefill 1 x 8,192        803  1626      decode 64 x 4,096    259   245
    extend 8 x 512 on 2,048  249   438      decode 8 x 8,192      93    68
    32 x 64 on 1,024          78   157      decode 1 x 4,096      49    13

Limits on Hopper: no split of a context over programs, pages in the dtype of q (no fp8), head sizes of a multiple of 16
up to 256, no ALiBi. Its rows past the end of a sequence's last page must be finite: ``new_pages`` and the store see
to that. Pages of 128 tokens are its key tile for heads of up to 128 numbers; with others it takes a slower path.
"""

from __future__ import annotations

import torch

from quire.ops.backend import AttentionStep
from quire.ops.triton.ahead import compiled_apart
from quire.ops.triton.cute import flash_attention_function, hopper
from quire.ops.triton.pages import TritonPages, new_pages

_HALF = (torch.float16, torch.bfloat16)
_QUERIES = 512  # an upper bound serves, and below a tile's rows another variant would be compiled


def supports(q: torch.Tensor, pages: TritonPages, head_dim: int, alibi_slopes: torch.Tensor | None) -> bool:
    """Whether ``flash_attention`` can serve the case at all."""
    return (
        q.dtype in _HALF
        and pages.k.dtype is q.dtype
        and head_dim % 16 == 0
        and head_dim <= 256
        and alibi_slopes is None
        and hopper(q.device)
        and flash_attention_function() is not None
    )


def flash_attention(
    q: torch.Tensor,
    pages: TritonPages,
    step: AttentionStep,
    heads: int,
    head_dim: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """As ``Ops.attention``; raises ``RuntimeError`` where FlashAttention-4 is not there."""
    if compiled_apart(
        "flash",
        dtype=q.dtype,
        heads=heads,
        kv_heads=pages.k.shape[2],
        head_dim=head_dim,
        page_size=pages.page_size,
        window=window,
        softcap=softcap,
        sinks=None if sinks is None else sinks.dtype,
    ):
        return torch.empty_like(q)
    function = flash_attention_function()
    if function is None:
        raise RuntimeError("FlashAttention-4 is not installed: pip install flash-attn-4")
    result = function(
        q.view(-1, heads, head_dim),
        pages.k,
        pages.v,
        cu_seqlens_q=step.query_start,
        max_seqlen_q=max(step.max_query, _QUERIES),
        seqused_k=step.context_len,
        page_table=step.block_table,
        softmax_scale=scale,
        causal=True,
        window_size=(None if window is None else window - 1, 0 if window is not None else None),
        learnable_sink=sinks,
        softcap=softcap or 0.0,
    )
    out: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return out.view(q.shape[0], heads * head_dim)


def prepare() -> None:
    flash_attention_function()


def compile_variant(
    dtype: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    window: int | None,
    softcap: float | None,
    sinks: str | None,
) -> None:
    """Compile what ``flash_attention`` takes for such a case, on fake tensors."""
    cuda, kind = torch.device("cuda"), getattr(torch, dtype)
    one, two, table = (torch.zeros(shape, dtype=torch.int32, device=cuda) for shape in (1, 2, (1, 2)))
    step = AttentionStep(two, two, two, one, table, page_size, _QUERIES)
    flash_attention(
        torch.zeros(_QUERIES, heads * head_dim, dtype=kind, device=cuda),
        new_pages(2, page_size, kv_heads, head_dim, kind, cuda),
        step,
        heads,
        head_dim,
        1.0,
        window,
        softcap,
        torch.zeros(heads, dtype=getattr(torch, sinks), device=cuda) if sinks else None,
    )
