"""From a spec and its tensors to the decoder's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch

from quire.model.assemble_hybrid import gated_delta, gated_qkv
from quire.model.attention import Attention
from quire.model.decoder import DecoderParts
from quire.model.embedding import Embedding
from quire.model.inventory import (
    AttentionTensors,
    DecoderTensors,
    DeltaTensors,
    ExpertTensors,
    LatentTensors,
    LayerTensors,
    LinearTensors,
    MlpTensors,
    MoeTensors,
    NormTensors,
)
from quire.model.latent import LatentAttention
from quire.model.layer import Layer, Parallel, PostNorm, PreNorm
from quire.model.linear import Linear
from quire.model.mlp import Mlp
from quire.model.moe import Experts, Moe
from quire.model.norm import Norm
from quire.model.recurrent import GatedDelta
from quire.model.source import Source
from quire.model.spec import AttentionSpec, DecoderSpec
from quire.ops.backend import Weight
from quire.ops.layouts import Dense, Fp8, Int8Channel, Layout, join

Each = Callable[[Callable[[LayerTensors], Layer], Iterable[LayerTensors]], Iterable[Layer]]


def assemble(tensors: DecoderTensors, source: Source, each: Each = map) -> DecoderParts:
    """Reads and packs all weights. ``each``: ``map``, or one that works on several layers at a time."""
    spec, embedding = tensors.spec, _embedding(tensors, source)
    head = embedding.tokens
    if tensors.head is not None:
        head = source.pack(_head(spec, source.matrix(matrix)) for matrix in tensors.head.weights)
    head_bias = source.vector(tensors.head_bias).to(source.dtype) if tensors.head_bias else None
    layers = tuple(each(partial(_layer, source), tensors.layers))
    norm = _norm(tensors.final_norm, source)
    if spec.logit_scale != 1.0:  # the head is linear: its input may be scaled instead
        bias = None if norm.bias is None else norm.bias * spec.logit_scale
        norm = Norm(norm.spec, norm.weight * spec.logit_scale, bias)
    return DecoderParts(embedding, layers, norm, Linear(head, head_bias))


def _embedding(tensors: DecoderTensors, source: Source) -> Embedding:
    spec = tensors.spec
    positions = source.vector(tensors.positions)[spec.position_offset :] if tensors.positions else None
    norm = _norm(tensors.embedding_norm, source) if tensors.embedding_norm else None
    return Embedding(_linear(tensors.embedding, source).weight, spec.embedding_multiplier, positions, norm)


def _head(spec: DecoderSpec, head: Layout) -> Layout:
    if not spec.unit_head:
        return head
    kind = head.weight.dtype if isinstance(head, Dense) else torch.float16
    return Dense(torch.nn.functional.normalize(head.dequantize()).to(kind))


def _norm(tensors: NormTensors, source: Source) -> Norm:
    spec = tensors.spec
    if tensors.weight is None:
        return Norm(spec, source.constant(torch.ones(tensors.shape)))
    bias = source.vector(tensors.bias) if tensors.bias else None
    return Norm(spec, source.vector(tensors.weight) + spec.weight_offset, bias)


def _layer(source: Source, tensors: LayerTensors) -> Layer:
    placement = tensors.spec.placement
    attention, mlp = _attention(tensors.attention, source), _mlp_or_moe(tensors.mlp, source)
    norms = [_norm(norm, source) for norm in tensors.norms]
    if placement == "post":
        return PostNorm(attention, mlp, *norms)
    if placement in ("parallel", "parallel_norms"):
        return Parallel(attention, mlp, *norms)
    norm, mlp_norm, *after = norms
    readers = replace(norm, reader=_reader(attention)), replace(mlp_norm, reader=_reader(mlp))
    return PreNorm(attention, mlp, *readers, *after)


def _attention(
    tensors: AttentionTensors | LatentTensors | DeltaTensors, source: Source
) -> Attention | LatentAttention | GatedDelta:
    match tensors:
        case LatentTensors():
            return _latent(tensors, source)
        case DeltaTensors():
            return gated_delta(tensors, source)
    return _of_heads(tensors, source)


def _of_heads(tensors: AttentionTensors, source: Source) -> Attention:
    a = tensors.spec
    norms = _qk_norms(tensors, source)
    fused = a.qk_norm is not None and a.qk_norm.kind == "rms" and a.qk_norm_over == "head"
    qkv, gate = gated_qkv(a, tensors.qkv, source) if a.gated else (_qkv(tensors, source), None)
    return Attention(
        a,
        qkv=qkv,
        out=_linear(tensors.out, source),
        q_norm=norms[0].weight[0] if norms and fused else None,
        k_norm=norms[1].weight[0] if norms and fused else None,
        qk_norms=((0, norms[0]), (a.heads * a.head_dim, norms[1])) if norms and not fused else (),
        slopes=source.constant(torch.tensor(a.alibi)) if a.alibi else None,
        sinks=source.vector(tensors.sinks) if tensors.sinks else None,
        gate=gate,
    )


def _qkv(tensors: AttentionTensors, source: Source) -> Linear:
    if not tensors.by_group:
        return _linear(tensors.qkv, source)
    a = tensors.spec
    rows = torch.arange((a.heads + 2 * a.kv_heads) * a.head_dim).view(a.kv_heads, -1, a.head_dim)
    order = torch.cat([rows[:, :-2].flatten(), rows[:, -2].flatten(), rows[:, -1].flatten()])
    return _linear(tensors.qkv, source, order)


def _qk_norms(tensors: AttentionTensors, source: Source) -> tuple[Norm, Norm] | None:
    """Of queries and keys, their weights ``[n, width]`` for n parts."""
    a = tensors.spec
    if a.qk_norm is None:
        return None
    return _qk_norm(a, a.heads, tensors.q_norms, source), _qk_norm(a, a.kv_heads, tensors.k_norms, source)


def _qk_norm(a: AttentionSpec, heads: int, tensors: tuple[NormTensors, ...], source: Source) -> Norm:
    norms = [_norm(norm, source) for norm in tensors]
    if len(norms) > 1:
        return Norm(norms[0].spec, torch.stack([norm.weight for norm in norms]))
    (norm,) = norms
    rows = heads if a.qk_norm_over != "all" else 1
    bias = None if norm.bias is None else norm.bias.expand(rows, -1).contiguous()
    return Norm(norm.spec, norm.weight.expand(rows, -1).contiguous(), bias)


def _latent(tensors: LatentTensors, source: Source) -> LatentAttention:
    keys, values = _heads(tensors, source)
    return LatentAttention(
        tensors.spec,
        tensors.latent,
        tensors.eps,
        q_down=_linear(tensors.q_down, source) if tensors.q_down else None,
        q_norm=source.vector(tensors.q_norm) if tensors.q_norm else None,
        q=_linear(tensors.q, source),
        kv_down=_linear(tensors.kv_down, source),
        kv_norm=source.vector(tensors.kv_norm),
        keys=keys,
        values=values,
        out=_linear(tensors.out, source),
    )


def _heads(tensors: LatentTensors, source: Source) -> tuple[Weight, Weight]:
    """Stacks of each head's key matrix, transposed, and value matrix."""
    m, layout = tensors.latent, source.matrix(tensors.kv_up)
    width = m.plain + m.value_dim
    starts = [head * width for head in range(tensors.spec.heads)]
    keys = (layout.rows(slice(at, at + m.plain)).dequantize().T.contiguous() for at in starts)
    values = (_for_any_inputs(layout.rows(slice(at + m.plain, at + width))) for at in starts)
    kind = layout.weight.dtype if isinstance(layout, Dense) else torch.float16
    return source.pack_stack(Dense(key.to(kind)) for key in keys), source.pack_stack(values)


def _mlp_or_moe(tensors: MlpTensors | MoeTensors, source: Source) -> Mlp | Moe:
    return _moe(tensors, source) if isinstance(tensors, MoeTensors) else _mlp(tensors, source)


def _mlp(tensors: MlpTensors, source: Source) -> Mlp:
    return Mlp(tensors.spec, gate_up=_linear(tensors.gate_up, source), down=_linear(tensors.down, source))


def _moe(tensors: MoeTensors, source: Source) -> Moe:
    return Moe(
        tensors.spec,
        router=_linear(tensors.router, source),
        experts=_experts(tensors, source),
        correction=source.vector(tensors.correction) if tensors.correction else None,
        shared=_mlp(tensors.shared, source) if tensors.shared else None,
        shared_gate=_linear(tensors.shared_gate, source) if tensors.shared_gate else None,
    )


def _experts(tensors: MoeTensors, source: Source) -> Experts:
    order = None
    if tensors.interleaved:
        order = torch.arange(2 * tensors.spec.expert_size).view(-1, 2).T.flatten()
    bias = source.vector(tensors.gate_up_bias) if tensors.gate_up_bias else None
    return Experts(
        _stack(tensors.gate_up, source, order),
        _stack(tensors.down, source),
        bias if bias is None or order is None else bias[:, order],
        source.vector(tensors.down_bias) if tensors.down_bias else None,
    )


def _stack(tensors: ExpertTensors, source: Source, order: torch.Tensor | None = None) -> Weight:
    if tensors.apart:
        return source.pack_stack(_one(map(source.matrix, modules)) for modules in tensors.apart)
    layouts, (first, *_) = [source.matrix(matrix) for matrix in tensors.together], tensors.together
    rows = torch.arange(first.outputs) if order is None else order
    return source.pack_stack(_one(w.rows(e * first.outputs + rows) for w in layouts) for e in range(first.stack))


def _linear(tensors: LinearTensors, source: Source, order: torch.Tensor | None = None) -> Linear:
    """``order``: where each output lies in a module that holds them all."""
    layouts = (source.matrix(matrix) for matrix in tensors.weights)
    weight = source.pack(w if order is None else w.rows(order) for w in layouts)
    if not tensors.biases:
        return Linear(weight)
    bias = torch.cat([source.vector(vector) for vector in tensors.biases])
    return Linear(weight, (bias if order is None else bias[order]).to(source.dtype))


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
