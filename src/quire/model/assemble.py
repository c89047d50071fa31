"""From a spec and the names of its weights to the decoder's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from quire.model.attention import Attention
from quire.model.decoder import DecoderWeights, LayerWeights
from quire.model.latent import LatentAttention
from quire.model.linear import Linear
from quire.model.mlp import Mlp
from quire.model.moe import Experts, Moe
from quire.model.source import Source
from quire.model.spec import AttentionSpec, DecoderSpec, LatentSpec, MlpSpec, MoeSpec
from quire.model.weight_map import WeightMap
from quire.ops.layouts import Dense, Layout, join

Each = Callable[[Callable[[int], LayerWeights], Iterable[int]], Iterable[LayerWeights]]


def assemble(spec: DecoderSpec, names: WeightMap, source: Source, each: Each = map) -> DecoderWeights:
    """All weights that the spec calls for. ``each``: ``map``, or one that works on several layers at a time."""
    embedding = source.pack([source.matrix(names.embedding, spec.vocab_size, spec.hidden_size)])
    head = Linear(embedding)
    if not spec.tied_head:
        head = Linear(source.pack([source.matrix(names.head, spec.vocab_size, spec.hidden_size)]))
    layers = tuple(each(lambda i: _Layer(spec, names, source, i).weights(), range(len(spec.layers))))
    final_norm = source.vector(names.final_norm + ".weight", spec.hidden_size) + spec.final_norm.weight_offset
    return DecoderWeights(embedding, layers, final_norm, head)


class _Layer:
    """One layer's weights."""

    def __init__(self, spec: DecoderSpec, names: WeightMap, source: Source, index: int) -> None:
        self._hidden = spec.hidden_size
        self._spec = spec.layers[index]
        self._names = names
        self._source = source
        self._index = index

    def weights(self) -> LayerWeights:
        names, layer = self._names, self._spec
        sandwich = layer.placement == "sandwich"
        return LayerWeights(
            attention_norm=self._norm(names.attention_norm),
            attention=self._attention(layer.attention),
            post_attention_norm=self._norm(names.post_attention_norm) if sandwich else None,
            mlp_norm=self._norm(names.mlp_norm),
            mlp=self._moe(layer.mlp) if isinstance(layer.mlp, MoeSpec) else self._mlp(layer.mlp),
            post_mlp_norm=self._norm(names.post_mlp_norm) if sandwich else None,
        )

    def _attention(self, a: AttentionSpec) -> Attention | LatentAttention:
        if a.latent is not None:
            return self._latent(a, a.latent)
        names, q, kv = self._names, a.heads * a.head_dim, a.kv_heads * a.head_dim
        offset = a.qk_norm.weight_offset if a.qk_norm else 0.0
        return Attention(
            a,
            qkv=self._linear(names.qkv, (q, kv, kv), self._hidden, a.qkv_bias),
            out=self._linear(names.out, (self._hidden,), q, a.out_bias),
            q_norm=self._vector(names.q_norm + ".weight", a.head_dim) + offset if a.qk_norm else None,
            k_norm=self._vector(names.k_norm + ".weight", a.head_dim) + offset if a.qk_norm else None,
            sinks=self._vector(names.sinks, a.heads) if a.sinks else None,
        )

    def _latent(self, a: AttentionSpec, m: LatentSpec) -> LatentAttention:
        names = self._names.latent
        queries, bias = a.heads * (m.plain + m.rotary), a.qkv_bias
        keys, values = self._heads(names.kv_up, a.heads, m)
        q_down = self._linear((names.q_down,), (m.q_rank,), self._hidden, bias) if m.q_rank else None
        return LatentAttention(
            a,
            m,
            self._spec.norm.eps,
            q_down=q_down,
            q_norm=self._vector(names.q_norm + ".weight", m.q_rank) if m.q_rank else None,
            q=self._linear((names.q_up if m.q_rank else names.q,), (queries,), m.q_rank or self._hidden, False),
            kv_down=self._linear((names.kv_down,), (m.rank + m.rotary,), self._hidden, bias),
            kv_norm=self._vector(names.kv_norm + ".weight", m.rank),
            keys=keys,
            values=values,
            out=self._linear(self._names.out, (self._hidden,), a.heads * m.value_dim, a.out_bias),
        )

    def _heads(self, module: str, heads: int, m: LatentSpec) -> tuple[Any, Any]:
        """Stacks of each head's key matrix, transposed, and value matrix."""
        width = m.plain + m.value_dim
        layout = self._source.matrix(self._named(module), heads * width, m.rank)
        starts = [head * width for head in range(heads)]
        keys = (layout.rows(slice(at, at + m.plain)).dequantize().T.contiguous() for at in starts)
        values = (layout.rows(slice(at + m.plain, at + width)) for at in starts)
        kind = layout.weight.dtype if isinstance(layout, Dense) else torch.float16
        return self._source.pack_stack(Dense(key.to(kind)) for key in keys), self._source.pack_stack(values)

    def _mlp(self, mlp: MlpSpec, gate_up: tuple[str, ...] = (), down: tuple[str, ...] = ()) -> Mlp:
        return Mlp(
            mlp,
            gate_up=self._linear(gate_up or self._names.gate_up, (mlp.size,) * 2, self._hidden, mlp.bias),
            down=self._linear(down or self._names.down, (self._hidden,), mlp.size, mlp.bias),
        )

    def _moe(self, moe: MoeSpec) -> Moe:
        names = self._names.moe
        shared = self._mlp(moe.shared, names.shared_gate_up, (names.shared_down,)) if moe.shared else None
        return Moe(
            moe,
            router=self._linear((names.router,), (moe.experts,), self._hidden, moe.router_bias),
            experts=self._experts(moe),
            correction=self._vector(names.correction, moe.experts) if moe.correction else None,
            shared=shared,
            shared_gate=self._linear((names.shared_gate,), (1,), self._hidden, False) if moe.shared_gate else None,
        )

    def _experts(self, moe: MoeSpec) -> Experts:
        names, size, hidden = self._names.moe, moe.expert_size, self._hidden
        turns = torch.arange(2 * size).view(size, 2).T.flatten() if names.interleaved else None
        gate_up = self._stack(moe.experts, names.gate_up, 2 * size, hidden, turns)
        down = self._stack(moe.experts, (names.down,), hidden, size)
        if not moe.expert_bias:
            return Experts(gate_up, down)
        gate_up_bias = self._vector(names.gate_up[0] + names.bias_suffix, moe.experts, 2 * size)
        down_bias = self._vector(names.down + names.bias_suffix, moe.experts, hidden)
        return Experts(gate_up, down, gate_up_bias if turns is None else gate_up_bias[:, turns], down_bias)

    def _stack(
        self, experts: int, modules: Sequence[str], outputs: int, inputs: int, turns: torch.Tensor | None = None
    ) -> Any:
        if "{e}" in modules[0]:
            return self._source.pack_stack(self._separate(experts, modules, outputs, inputs))
        name = self._named(modules[0])
        layout = self._source.transposed(name, experts, outputs, inputs) if self._names.moe.transposed else None
        if layout is None:
            layout = self._source.matrix(name, outputs, inputs, stack=experts)
        order = torch.arange(outputs) if turns is None else turns
        return self._source.pack_stack(layout.rows(e * outputs + order) for e in range(experts))

    def _separate(self, experts: int, modules: Sequence[str], outputs: int, inputs: int) -> Iterator[Layout]:
        """Each expert's matrices, end to end."""
        rows = outputs // len(modules)
        for e in range(experts):
            parts = join(self._source.matrix(self._named(module, e), rows, inputs) for module in modules)
            yield parts[0] if len(parts) == 1 else Dense(torch.cat([part.dequantize() for part in parts]))

    def _linear(self, modules: Sequence[str], outputs: Sequence[int], inputs: int, bias: bool) -> Linear:
        """Modules side by side: their outputs one after another."""
        named = [self._named(module) for module in modules]
        weight = self._source.pack(self._source.matrix(m, n, inputs) for m, n in zip(named, outputs, strict=True))
        if not bias:
            return Linear(weight)
        vectors = [self._source.vector(m + ".bias", n) for m, n in zip(named, outputs, strict=True)]
        return Linear(weight, torch.cat(vectors))

    def _norm(self, module: str) -> torch.Tensor:
        return self._vector(module + ".weight", self._hidden) + self._spec.norm.weight_offset

    def _vector(self, name: str, *shape: int) -> torch.Tensor:
        return self._source.vector(self._named(name), *shape)

    def _named(self, name: str, expert: int = 0) -> str:
        return name.format(i=self._index, e=expert)
