"""Pages for any layer."""

from __future__ import annotations

import torch

from quire.model.spec import AttentionSpec, DeltaSpec
from quire.ops.backend import Ops, Pages
from quire.ops.states import StatePages


def new_pages(spec: AttentionSpec | DeltaSpec, ops: Ops, num_pages: int, page_size: int, dtype: torch.dtype) -> Pages:
    """Pages for one layer; ``dtype``: of keys and values."""
    if isinstance(spec, DeltaSpec):
        return StatePages.new(spec, num_pages, page_size, ops.device)
    values_from = None if spec.latent is None else spec.latent.rotary
    return ops.new_pages(num_pages, page_size, spec.kv_heads, spec.head_dim, dtype, values_from)
