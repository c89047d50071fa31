"""Keys and values in pages ``[pages, page_size, kv_heads, head_dim]``, which is what FlashAttention-4 reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.ops.backend import Pages

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class TritonPages(Pages):
    """In fp8 each head of each token has a scale: ``k_scale``, ``v_scale [pages, kv_heads, page_size]`` float32."""

    k_scale: torch.Tensor
    v_scale: torch.Tensor
    values_from: int | None = None  # ``v`` is ``k``, and of use from there on

    @property
    def fp8(self) -> bool:
        return self.k.dtype is FP8


def new_pages(
    num_pages: int,
    page_size: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    values_from: int | None = None,
) -> TritonPages:
    """Zeroed pages: FlashAttention-4 multiplies masked rows of a sequence's last page by 0, so none may hold NaN."""
    shape = (num_pages, page_size, kv_heads, head_dim)
    scales = (num_pages, kv_heads, page_size) if dtype is FP8 else (1,)
    k, k_scale = torch.zeros(shape, dtype=dtype, device=device), torch.ones(scales, device=device)
    if values_from is not None:
        return TritonPages(k, k, page_size, k_scale, k_scale, values_from)
    return TritonPages(k, torch.zeros_like(k), page_size, k_scale, torch.ones_like(k_scale))


def triton_pages(pages: Pages, kv_heads: int, head_dim: int) -> TritonPages:
    """``pages`` if this backend made them for such heads; raises otherwise."""
    if not isinstance(pages, TritonPages):
        raise TypeError(f"These pages were made by another backend ({type(pages).__name__}).")
    if pages.k.shape[2:] != (kv_heads, head_dim):
        raise ValueError(f"Pages of {tuple(pages.k.shape)} do not fit {kv_heads} heads of {head_dim}.")
    return pages
