"""The parts of hybrids: layers with the gated delta rule, and attention whose outputs are gated."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from quire.model.inventory import DeltaTensors, LinearTensors
from quire.model.linear import Linear
from quire.model.recurrent import GatedDelta
from quire.model.source import Source
from quire.model.spec import AttentionSpec, DeltaSpec
from quire.ops.backend import DeltaWeights
from quire.ops.layouts import Layout


def gated_delta(tensors: DeltaTensors, source: Source) -> GatedDelta:
    layouts = [source.matrix(matrix) for matrix in tensors.inputs.weights]
    inputs = source.pack(_by_kind(tensors.spec, *layouts) if len(layouts) == 2 else layouts)
    return GatedDelta(
        tensors.spec,
        inputs=Linear(inputs),
        weights=DeltaWeights(
            kernel=source.vector(tensors.kernel)[:, 0],
            decay=-source.vector(tensors.decay).exp(),
            decay_bias=source.vector(tensors.decay_bias),
        ),
        norm=source.vector(tensors.norm),
        eps=tensors.eps,
        out=Linear(source.pack(source.matrix(matrix) for matrix in tensors.out.weights)),
    )


def _by_kind(spec: DeltaSpec, wide: Layout, rates: Layout) -> Iterable[Layout]:
    """Qwen3-Next has the rows of each key head together: query, key, its values, its gates; and its betas, decays."""
    values = spec.value_heads // spec.key_heads
    of_wide = (spec.key_dim, spec.key_dim, values * spec.value_dim, values * spec.value_dim)
    for layout, parts in ((wide, of_wide), (rates, (values, values))):
        rows = torch.arange(layout.shape[0]).view(spec.key_heads, -1).split(parts, dim=1)
        yield from (layout.rows(part.flatten()) for part in rows)


def gated_qkv(a: AttentionSpec, tensors: LinearTensors, source: Source) -> tuple[Linear, Linear]:
    """Queries, keys and values, and gates; the checkpoint has each head's gate after its query."""
    queries, keys, values = (source.matrix(matrix) for matrix in tensors.weights)
    rows = torch.arange(queries.shape[0]).view(a.heads, 2, a.head_dim)
    qkv = source.pack([queries.rows(rows[:, 0].flatten()), keys, values])
    return Linear(qkv), Linear(source.pack([queries.rows(rows[:, 1].flatten())]))
