"""From a checkpoint to the decoder's weights: names checked against the spec, tensors fused, packed in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from quire.model.decoder import Decoder, DecoderWeights, LayerWeights
from quire.model.linear import Linear
from quire.model.spec import DecoderSpec, LayerSpec
from quire.model.weight_map import WeightMap
from quire.ops.backend import Ops
from quire.ops.layouts import Dense, GroupedInt, Layout
from quire.quant.gguf import dequantize, unpack
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError


@dataclass(frozen=True)
class LinearShape:
    """The modules that make up one linear layer, with the outputs of each, their common inputs, and its bias."""

    modules: tuple[str, ...]
    outputs: tuple[int, ...]
    inputs: int
    bias: bool


class Loader:
    """Reads one checkpoint into kernel layouts. ``check`` looks at headers only; ``load`` reads."""

    def __init__(self, checkpoint: Checkpoint, spec: DecoderSpec, names: WeightMap, ops: Ops) -> None:
        self._checkpoint = checkpoint
        self.spec = spec
        self._names = names
        self._ops = ops

    def check(self) -> int:
        """Bytes of all tensors. Raises ``CheckpointError`` naming a tensor that is missing or has a wrong shape."""
        total = 0
        for name, shape in self._expected():
            info = self._checkpoint.info(name)
            if info.shape != shape:
                raise CheckpointError(
                    f"The tensor {name} has the shape {list(info.shape)}, but the config calls for {list(shape)}."
                )
            total += info.nbytes
        return total

    def decoder(self, threads: int, max_positions: int) -> Decoder:
        return Decoder(self.spec, self.load(threads), self._ops, max_positions)

    def load(self, threads: int) -> DecoderWeights:
        spec, names = self.spec, self._names
        embedding = self._ops.pack(self._layout(names.embedding + ".weight"))
        head = Linear((embedding,)) if spec.tied_head else self._linear(self._head_shape())
        with ThreadPoolExecutor(threads) as pool:
            layers = tuple(pool.map(self._layer, range(len(spec.layers))))
        return DecoderWeights(embedding, layers, self._norm(names.final_norm, spec.final_norm.weight_offset), head)

    def _layer(self, i: int) -> LayerWeights:
        names, layer = self._names, self.spec.layers[i]
        offset = layer.norm.weight_offset
        linears = {kind: self._linear(shape) for kind, shape in self._linears(i, layer).items()}
        qk = layer.attention.qk_norm
        sandwich = layer.placement == "sandwich"
        return LayerWeights(
            attention_norm=self._norm(names.attention_norm, offset, i),
            qkv=linears["qkv"],
            q_norm=self._norm(names.q_norm, qk.weight_offset, i) if qk else None,
            k_norm=self._norm(names.k_norm, qk.weight_offset, i) if qk else None,
            out=linears["out"],
            post_attention_norm=self._norm(names.post_attention_norm, offset, i) if sandwich else None,
            mlp_norm=self._norm(names.mlp_norm, offset, i),
            gate_up=linears["gate_up"],
            down=linears["down"],
            post_mlp_norm=self._norm(names.post_mlp_norm, offset, i) if sandwich else None,
        )

    def _linears(self, i: int, layer: LayerSpec) -> dict[str, LinearShape]:
        names, a, hidden = self._names, layer.attention, self.spec.hidden_size
        q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim

        def shape(modules: tuple[str, ...], outputs: tuple[int, ...], inputs: int, bias: bool) -> LinearShape:
            return LinearShape(tuple(m.format(i=i) for m in modules), outputs, inputs, bias)

        return {
            "qkv": shape(names.qkv, (q, kv, kv), hidden, a.qkv_bias),
            "out": shape(names.out, (hidden,), q, a.out_bias),
            "gate_up": shape(names.gate_up, (layer.mlp.size,) * 2, hidden, layer.mlp.bias),
            "down": shape(names.down, (hidden,), layer.mlp.size, layer.mlp.bias),
        }

    def _head_shape(self) -> LinearShape:
        return LinearShape((self._names.head,), (self.spec.vocab_size,), self.spec.hidden_size, bias=False)

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all tensors that the spec calls for."""
        spec, names = self.spec, self._names
        yield names.embedding + ".weight", (spec.vocab_size, spec.hidden_size)
        yield names.final_norm + ".weight", (spec.hidden_size,)
        if not spec.tied_head:
            yield names.head + ".weight", (spec.vocab_size, spec.hidden_size)
        for i, layer in enumerate(spec.layers):
            for linear in self._linears(i, layer).values():
                for module, outputs in zip(linear.modules, linear.outputs, strict=True):
                    yield module + ".weight", (outputs, linear.inputs)
                    if linear.bias:
                        yield module + ".bias", (outputs,)
            norms = [names.attention_norm, names.mlp_norm]
            if layer.placement == "sandwich":
                norms += [names.post_attention_norm, names.post_mlp_norm]
            for norm in norms:
                yield norm.format(i=i) + ".weight", (spec.hidden_size,)
            if layer.attention.qk_norm:
                for norm in (names.q_norm, names.k_norm):
                    yield norm.format(i=i) + ".weight", (layer.attention.head_dim,)

    def _layout(self, name: str) -> Layout:
        return unpack(self._checkpoint.read(name))

    def _vector(self, name: str) -> torch.Tensor:
        return dequantize(self._checkpoint.read(name))

    def _norm(self, module: str, offset: float, i: int = 0) -> torch.Tensor:
        return self._vector(module.format(i=i) + ".weight") + offset

    def _linear(self, shape: LinearShape) -> Linear:
        layouts = fuse([self._layout(m + ".weight") for m in shape.modules])
        bias = torch.cat([self._vector(m + ".bias") for m in shape.modules]) if shape.bias else None
        return Linear(tuple(self._ops.pack(layout) for layout in layouts), bias)


def fuse(layouts: Sequence[Layout]) -> list[Layout]:
    """Join neighbours of one kernel layout along their outputs, so that one call multiplies by all of them."""
    fused: list[Layout] = []
    for layout in layouts:
        joined = _join(fused[-1], layout) if fused else None
        if joined is None:
            fused.append(layout)
        else:
            fused[-1] = joined
    return fused


def _join(a: Layout, b: Layout) -> Layout | None:
    if isinstance(a, Dense) and isinstance(b, Dense) and a.weight.dtype == b.weight.dtype:
        return Dense(torch.cat([a.weight, b.weight]))
    if isinstance(a, GroupedInt) and isinstance(b, GroupedInt) and _kind(a) == _kind(b):
        minimum = None if a.minimum is None or b.minimum is None else torch.cat([a.minimum, b.minimum])
        return GroupedInt(torch.cat([a.q, b.q]), torch.cat([a.scale, b.scale]), minimum, a.bits, a.group)
    return None


def _kind(layout: GroupedInt) -> tuple[int, int, bool, torch.dtype]:
    return (layout.bits, layout.group, layout.minimum is None, layout.scale.dtype)
