"""From a spec and the names of its weights to the decoder's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from quire.model.assemble_hybrid import gated_delta, gated_qkv
from quire.model.attention import Attention
from quire.model.decoder import DecoderParts
from quire.model.embedding import Embedding
from quire.model.latent import LatentAttention
from quire.model.layer import Layer, Parallel, PostNorm, PreNorm
from quire.model.linear import Linear
from quire.model.mlp import Mlp
from quire.model.moe import Experts, Moe
from quire.model.norm import Norm
from quire.model.recurrent import GatedDelta
from quire.model.source import Source
from quire.model.spec import AttentionSpec, DecoderSpec, DeltaSpec, LatentSpec, MlpSpec, MoeSpec, NormSpec
from quire.model.weight_map import DeltaNames, WeightMap
from quire.ops.backend import Weight
from quire.ops.layouts import Dense, Fp8, Int8Channel, Layout, join

Each = Callable[[Callable[[int], Layer], Iterable[int]], Iterable[Layer]]


def assemble(spec: DecoderSpec, names: WeightMap, source: Source, each: Each = map) -> DecoderParts:
    """All weights that the spec calls for. ``each``: ``map``, or one that works on several layers at a time."""
    embedding = _embedding(spec, names, source)
    head = embedding.tokens
    if not spec.tied_head:
        head = source.pack([_head(spec, source.matrix(names.head, spec.vocab_size, spec.hidden_size))])
    head_bias = source.vector(names.head + ".bias", spec.vocab_size).to(source.dtype) if spec.head_bias else None
    layers = tuple(each(lambda i: _Layer(spec, names, source, i).layer(), range(len(spec.layers))))
    norm = _norm(source, names.final_norm, spec.final_norm, spec.hidden_size)
    if spec.logit_scale != 1.0:  # the head is linear: its input may be scaled instead
        bias = None if norm.bias is None else norm.bias * spec.logit_scale
        norm = Norm(norm.spec, norm.weight * spec.logit_scale, bias)
    return DecoderParts(embedding, layers, norm, Linear(head, head_bias))


def _head(spec: DecoderSpec, head: Layout) -> Layout:
    if not spec.unit_head:
        return head
    kind = head.weight.dtype if isinstance(head, Dense) else torch.float16
    return Dense(torch.nn.functional.normalize(head.dequantize()).to(kind))


def _embedding(spec: DecoderSpec, names: WeightMap, source: Source) -> Embedding:
    hidden, positions = spec.hidden_size, None
    if spec.learned_positions is not None:
        rows = spec.position_offset + spec.learned_positions
        positions = source.vector(names.positions + ".weight", rows, hidden)[spec.position_offset :]
    return Embedding(
        source.pack([source.matrix(names.embedding, spec.vocab_size, hidden)]),
        spec.embedding_multiplier,
        positions,
        _norm(source, names.embedding_norm, spec.embedding_norm, hidden) if spec.embedding_norm else None,
    )


def _norm(source: Source, module: str, spec: NormSpec, *shape: int) -> Norm:
    if not spec.affine:
        return Norm(spec, source.constant(torch.ones(shape)))
    weight = source.vector(module + ".weight", *shape) + spec.weight_offset
    return Norm(spec, weight, source.vector(module + ".bias", *shape) if spec.bias else None)


class _Layer:
    """Builds one layer."""

    def __init__(self, spec: DecoderSpec, names: WeightMap, source: Source, index: int) -> None:
        self._hidden = spec.hidden_size
        self._spec = spec.layers[index]
        self._names = names
        self._source = source
        self._index = index

    def layer(self) -> Layer:
        names, spec = self._names, self._spec
        attention = self._attention(spec.attention)
        mlp = self._moe(spec.mlp) if isinstance(spec.mlp, MoeSpec) else self._mlp(spec.mlp)
        if spec.placement == "post":
            return PostNorm(attention, mlp, self._norm(names.post_attention_norm), self._norm(names.post_mlp_norm))
        if spec.placement == "parallel_norms":
            norms = names.parallel_norms or (names.attention_norm, names.mlp_norm)
            return Parallel(attention, mlp, *(self._norm(name) for name in norms))
        norm = self._norm(names.attention_norm)
        if spec.placement == "parallel":
            return Parallel(attention, mlp, norm)
        norm = replace(norm, reader=_reader(attention))
        mlp_norm = replace(self._norm(names.mlp_norm), reader=_reader(mlp))
        if spec.placement == "pre":
            return PreNorm(attention, mlp, norm, mlp_norm)
        after = self._norm(names.post_attention_norm), self._norm(names.post_mlp_norm)
        return PreNorm(attention, mlp, norm, mlp_norm, *after)

    def _attention(self, a: AttentionSpec | DeltaSpec) -> Attention | LatentAttention | GatedDelta:
        if isinstance(a, DeltaSpec):
            delta = self._names.delta or DeltaNames(())
            return gated_delta(a, delta, self._source, self._named, self._hidden, self._spec.norm.eps)
        if a.latent is not None:
            return self._latent(a, a.latent)
        names, q, kv = self._names, a.heads * a.head_dim, a.kv_heads * a.head_dim
        norms = self._qk_norms(a, a.qk_norm) if a.qk_norm else None
        fused = a.qk_norm is not None and a.qk_norm.kind == "rms" and a.qk_norm_over == "head"
        gate = None
        if a.gated:
            qkv, gate = gated_qkv(a, names, self._source, self._named, self._hidden)
        else:
            qkv = self._linear(names.qkv, (q, kv, kv), self._hidden, a.qkv_bias, self._turned(a))
        return Attention(
            a,
            qkv=qkv,
            out=self._linear(names.out, (self._hidden,), q, a.out_bias),
            q_norm=norms[0].weight[0] if norms and fused else None,
            k_norm=norms[1].weight[0] if norms and fused else None,
            qk_norms=((0, norms[0]), (q, norms[1])) if norms and not fused else (),
            slopes=self._source.constant(torch.tensor(a.alibi)) if a.alibi else None,
            sinks=self._vector(names.sinks, a.heads) if a.sinks else None,
            gate=gate,
        )

    def _turned(self, a: AttentionSpec) -> torch.Tensor | None:
        """Where the rows of queries, then keys, then values, lie in a module that has them group by group."""
        if not self._names.qkv_by_group or a.kv_heads == 1:
            return None
        rows = torch.arange((a.heads + 2 * a.kv_heads) * a.head_dim).view(a.kv_heads, -1, a.head_dim)
        return torch.cat([rows[:, :-2].flatten(), rows[:, -2].flatten(), rows[:, -1].flatten()])

    def _qk_norms(self, a: AttentionSpec, spec: NormSpec) -> tuple[Norm, Norm]:
        """Of queries and keys, their weights ``[n, width]`` for n parts."""
        q, k = self._names.q_norm, self._names.k_norm
        return self._qk_norm(q, a, spec, a.heads), self._qk_norm(k, a, spec, a.kv_heads)

    def _qk_norm(self, module: str, a: AttentionSpec, spec: NormSpec, heads: int) -> Norm:
        if "{h}" in module:
            parts = [_norm(self._source, self._named(module, head=h), spec, a.head_dim) for h in range(heads)]
            return Norm(spec, torch.stack([part.weight for part in parts]))
        shape = {"head": (a.head_dim,), "heads": (heads, a.head_dim), "all": (heads * a.head_dim,)}[a.qk_norm_over]
        norm = _norm(self._source, self._named(module), spec, *shape)
        rows = heads if a.qk_norm_over != "all" else 1
        bias = None if norm.bias is None else norm.bias.expand(rows, -1).contiguous()
        return Norm(spec, norm.weight.expand(rows, -1).contiguous(), bias)

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
        values = (_for_any_inputs(layout.rows(slice(at + m.plain, at + width))) for at in starts)
        kind = layout.weight.dtype if isinstance(layout, Dense) else torch.float16
        return self._source.pack_stack(Dense(key.to(kind)) for key in keys), self._source.pack_stack(values)

    def _mlp(self, mlp: MlpSpec, gate_up: tuple[str, ...] = (), down: tuple[str, ...] = ()) -> Mlp:
        return Mlp(
            mlp,
            gate_up=self._linear(gate_up or self._names.gate_up, (mlp.size,) * (1 + mlp.gated), self._hidden, mlp.bias),
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
        rows = outputs // len(modules)
        stacked = [self._named(module.replace(".{e}", "")) for module in modules]
        if "{e}" in modules[0] and not self._source.has(stacked[0] + ".weight"):
            return self._source.pack_stack(self._expert(modules, e, rows, inputs) for e in range(experts))
        layouts = [self._stacked(name, rows, inputs, experts) for name in stacked]
        order = torch.arange(rows) if turns is None else turns
        return self._source.pack_stack(_one(w.rows(e * rows + order) for w in layouts) for e in range(experts))

    def _expert(self, modules: Sequence[str], expert: int, rows: int, inputs: int) -> Layout:
        return _one(self._source.matrix(self._named(module, expert), rows, inputs) for module in modules)

    def _stacked(self, name: str, outputs: int, inputs: int, experts: int) -> Layout:
        if self._names.moe.transposed and self._source.has(name):
            return self._source.transposed(name, experts, outputs, inputs)
        return self._source.matrix(name, outputs, inputs, experts)

    def _linear(
        self,
        modules: Sequence[str],
        outputs: Sequence[int],
        inputs: int,
        bias: bool,
        turned: torch.Tensor | None = None,
    ) -> Linear:
        """Modules side by side, their outputs one after another; a single one may hold them all.

        ``turned``: where each output lies in that one.
        """
        sizes = [sum(outputs)] if len(modules) == 1 else list(outputs)
        named = list(zip((self._named(module) for module in modules), sizes, strict=True))
        layouts = (self._matrix(module, size, inputs) for module, size in named)
        weight = self._source.pack(w if turned is None else w.rows(turned) for w in layouts)
        if not bias:
            return Linear(weight)
        vector = torch.cat([self._source.vector(module + ".bias", size) for module, size in named])
        return Linear(weight, (vector if turned is None else vector[turned]).to(self._source.dtype))

    def _matrix(self, module: str, outputs: int, inputs: int) -> Layout:
        if self._names.transposed and self._source.has(module + ".weight"):
            return self._source.transposed(module + ".weight", 1, outputs, inputs)
        return self._source.matrix(module, outputs, inputs)

    def _norm(self, module: str) -> Norm:
        return _norm(self._source, self._named(module), self._spec.norm, self._hidden)

    def _vector(self, name: str, *shape: int) -> torch.Tensor:
        return self._source.vector(self._named(name), *shape)

    def _named(self, name: str, expert: int = 0, head: int = 0) -> str:
        return name.format(i=self._index, e=expert, h=head)


def _reader(part: Attention | LatentAttention | GatedDelta | Mlp | Moe) -> Weight | None:
    """The weight of the product that alone reads what the part is given, if it is one."""
    match part:
        case Attention(gate=None):
            return part.qkv.weight
        case Mlp():
            return part.gate_up.weight
    return None


def _for_any_inputs(layout: Layout) -> Layout:
    """``layout`` without the rounding of its inputs, which is for those of the checkpoint's module alone."""
    return replace(layout, activation=None) if isinstance(layout, Int8Channel | Fp8) else layout


def _one(layouts: Iterable[Layout]) -> Layout:
    """Layouts end to end, in plain numbers where they are of different kinds."""
    parts = join(layouts)
    return parts[0] if len(parts) == 1 else Dense(torch.cat([part.dequantize() for part in parts]))
