"""The parts of hybrids: layers with the gated delta rule, and attention whose outputs are gated."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from quire.model.linear import Linear
from quire.model.recurrent import GatedDelta
from quire.model.source import Source
from quire.model.spec import AttentionSpec, DeltaSpec
from quire.model.weight_map import DeltaNames, WeightMap
from quire.ops.backend import DeltaWeights
from quire.ops.layouts import Layout

Named = Callable[[str], str]


def gated_delta(
    spec: DeltaSpec, names: DeltaNames, source: Source, named: Named, hidden: int, eps: float
) -> GatedDelta:
    width = spec.value_heads * spec.value_dim
    layouts = _by_key_head if len(names.inputs) == 2 else _apart
    inputs = source.pack(layouts(spec, [named(module) for module in names.inputs], source, hidden))
    return GatedDelta(
        spec,
        inputs=Linear(inputs),
        weights=DeltaWeights(
            kernel=source.vector(named(names.kernel), spec.channels, 1, spec.kernel)[:, 0],
            decay=-source.vector(named(names.decay), spec.value_heads).exp(),
            decay_bias=source.vector(named(names.decay_bias), spec.value_heads),
        ),
        norm=source.vector(named(names.norm), spec.value_dim),
        eps=eps,
        out=Linear(source.pack([source.matrix(named(names.out), hidden, width)])),
    )


def _apart(spec: DeltaSpec, modules: list[str], source: Source, hidden: int) -> Iterable[Layout]:
    sizes = (spec.channels, spec.value_heads * spec.value_dim, spec.value_heads, spec.value_heads)
    return [source.matrix(module, size, hidden) for module, size in zip(modules, sizes, strict=True)]


def _by_key_head(spec: DeltaSpec, modules: list[str], source: Source, hidden: int) -> Iterable[Layout]:
    """Qwen3-Next has the rows of each key head together: query, key, its values, its gates; and its betas, decays."""
    values = spec.value_heads // spec.key_heads
    wide, rates = (spec.key_dim, spec.key_dim, values * spec.value_dim, values * spec.value_dim), (values, values)
    found = []
    for module, parts in zip(modules, (wide, rates), strict=True):
        layout = source.matrix(module, spec.key_heads * sum(parts), hidden)
        rows = torch.arange(layout.shape[0]).view(spec.key_heads, -1).split(parts, dim=1)
        found += [layout.rows(part.flatten()) for part in rows]
    return found


def gated_qkv(a: AttentionSpec, names: WeightMap, source: Source, named: Named, hidden: int) -> tuple[Linear, Linear]:
    """Queries, keys and values, and gates; the checkpoint has each head's gate after its query."""
    q, k, v = (named(module) for module in names.qkv)
    queries = source.matrix(q, 2 * a.heads * a.head_dim, hidden)
    rows = torch.arange(queries.shape[0]).view(a.heads, 2, a.head_dim)
    keys, values = (source.matrix(module, a.kv_heads * a.head_dim, hidden) for module in (k, v))
    qkv = source.pack([queries.rows(rows[:, 0].flatten()), keys, values])
    return Linear(qkv), Linear(source.pack([queries.rows(rows[:, 1].flatten())]))
