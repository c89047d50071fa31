"""What tensors a spec calls for, part by part: names and shapes only, so that headers are checked without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from quire.model.spec import AttentionSpec, DecoderSpec, DeltaSpec, LatentSpec, LayerSpec, MlpSpec, MoeSpec, NormSpec
from quire.model.weight_map import DeltaNames, WeightMap

Found = TypeVar("Found")


@dataclass(frozen=True)
class Vector:
    """A tensor that is not the weight of a linear layer."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Matrix:
    """The weights ``[stack * outputs, inputs]`` of a linear layer, or of ``stack`` in one tensor.

    ``transposed``: of the plain tensor ``module``, which is ``[stack, inputs, outputs]``.
    """

    module: str
    outputs: int
    inputs: int
    stack: int = 1
    transposed: bool = False

    @property
    def stored(self) -> tuple[str, int, int, int]:
        """Its name, and its rows, columns and stack where it is stored."""
        rows, columns = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return self.module, rows, columns, self.stack


class PartTensors:
    """A part of a decoder: its spec and tensors, and parts."""


@dataclass(frozen=True)
class LinearTensors(PartTensors):
    """Modules side by side, their outputs one after another."""

    weights: tuple[Matrix, ...]
    biases: tuple[Vector, ...] = ()


@dataclass(frozen=True)
class NormTensors(PartTensors):
    """``weight``: ``None`` where nothing is learned."""

    spec: NormSpec
    shape: tuple[int, ...]
    weight: Vector | None
    bias: Vector | None


@dataclass(frozen=True)
class AttentionTensors(PartTensors):
    """``q_norms`` and ``k_norms``: one, or one for each head.

    ``by_group``: in the one module, each key/value head follows its query heads, and its value it.
    """

    spec: AttentionSpec
    qkv: LinearTensors
    out: LinearTensors
    q_norms: tuple[NormTensors, ...]
    k_norms: tuple[NormTensors, ...]
    sinks: Vector | None
    by_group: bool


@dataclass(frozen=True)
class LatentTensors(PartTensors):
    """``kv_up``: rows of keys and values, head by head."""

    spec: AttentionSpec
    latent: LatentSpec
    eps: float
    q_down: LinearTensors | None
    q_norm: Vector | None
    q: LinearTensors
    kv_down: LinearTensors
    kv_norm: Vector
    kv_up: Matrix
    out: LinearTensors


@dataclass(frozen=True)
class DeltaTensors(PartTensors):
    """``inputs``: queries with keys and values, gates, betas, decays; or the first two by key head, and the others."""

    spec: DeltaSpec
    eps: float
    inputs: LinearTensors
    kernel: Vector
    decay: Vector
    decay_bias: Vector
    norm: Vector
    out: LinearTensors


@dataclass(frozen=True)
class MlpTensors(PartTensors):
    spec: MlpSpec
    gate_up: LinearTensors
    down: LinearTensors


@dataclass(frozen=True)
class ExpertTensors(PartTensors):
    """A matrix for each expert: of modules of its own (``apart``), or from tensors that hold all experts'."""

    apart: tuple[tuple[Matrix, ...], ...]
    together: tuple[Matrix, ...]


@dataclass(frozen=True)
class MoeTensors(PartTensors):
    """``interleaved``: gates and ups take turns."""

    spec: MoeSpec
    router: LinearTensors
    gate_up: ExpertTensors
    down: ExpertTensors
    gate_up_bias: Vector | None
    down_bias: Vector | None
    correction: Vector | None
    shared: MlpTensors | None
    shared_gate: LinearTensors | None
    interleaved: bool


@dataclass(frozen=True)
class LayerTensors(PartTensors):
    """``norms``: those before attention and mlp, then those after."""

    spec: LayerSpec
    attention: AttentionTensors | LatentTensors | DeltaTensors
    mlp: MlpTensors | MoeTensors
    norms: tuple[NormTensors, ...]


@dataclass(frozen=True)
class DecoderTensors(PartTensors):
    """``head``: ``None`` where the embedding is used again."""

    spec: DecoderSpec
    embedding: LinearTensors
    positions: Vector | None
    embedding_norm: NormTensors | None
    layers: tuple[LayerTensors, ...]
    final_norm: NormTensors
    head: LinearTensors | None
    head_bias: Vector | None


def tensors_of(spec: DecoderSpec, names: WeightMap, stored: Collection[str]) -> DecoderTensors:
    """``stored``: the checkpoint's tensors, as some weights may be stored in more ways than one."""
    hidden, positions = spec.hidden_size, None
    if spec.learned_positions is not None:
        positions = Vector(names.positions + ".weight", (spec.position_offset + spec.learned_positions, hidden))
    return DecoderTensors(
        spec,
        embedding=LinearTensors((Matrix(names.embedding, spec.vocab_size, hidden),)),
        positions=positions,
        embedding_norm=_norm(names.embedding_norm, spec.embedding_norm, hidden) if spec.embedding_norm else None,
        layers=tuple(_Layer(spec, names, stored, i).tensors() for i in range(len(spec.layers))),
        final_norm=_norm(names.final_norm, spec.final_norm, hidden),
        head=None if spec.tied_head else LinearTensors((Matrix(names.head, spec.vocab_size, hidden),)),
        head_bias=Vector(names.head + ".bias", (spec.vocab_size,)) if spec.head_bias else None,
    )


def parts_of(tensors: object, kind: type[Found]) -> Iterator[Found]:
    """All of a kind in ``tensors``, which may be any part."""
    if isinstance(tensors, kind):
        yield tensors
    elif isinstance(tensors, tuple):
        for part in tensors:
            yield from parts_of(part, kind)
    elif isinstance(tensors, PartTensors):
        for part in vars(tensors).values():
            yield from parts_of(part, kind)


@dataclass(frozen=True)
class WeightSizes:
    """Of a model once loaded. ``widest``: numbers in the largest product's weights of those narrower than 16 bits."""

    nbytes: int
    widest: int


def weight_sizes(tensors: DecoderTensors, nbytes: Callable[[Matrix], int]) -> WeightSizes:
    """``nbytes``: of a matrix once loaded; vectors take float32."""
    loaded = {matrix: nbytes(matrix) for matrix in parts_of(tensors, Matrix)}
    narrow = (
        sum(w.outputs * w.inputs for w in linear.weights if loaded[w] < 2 * w.outputs * w.inputs)
        for linear in parts_of(tensors, LinearTensors)
    )
    vectors = sum(4 * math.prod(vector.shape) for vector in parts_of(tensors, Vector))
    return WeightSizes(vectors + sum(loaded.values()), max(narrow))


def _norm(module: str, spec: NormSpec, *shape: int) -> NormTensors:
    weight = Vector(module + ".weight", shape) if spec.affine else None
    return NormTensors(spec, shape, weight, Vector(module + ".bias", shape) if spec.affine and spec.bias else None)


class _Layer:
    """Those of one layer."""

    def __init__(self, spec: DecoderSpec, names: WeightMap, stored: Collection[str], index: int) -> None:
        self._hidden = spec.hidden_size
        self._spec = spec.layers[index]
        self._names = names
        self._stored = stored
        self._index = index

    def tensors(self) -> LayerTensors:
        spec = self._spec
        mlp = self._moe(spec.mlp) if isinstance(spec.mlp, MoeSpec) else self._mlp(spec.mlp)
        norms = tuple(self._norm(name) for name in self._norms())
        return LayerTensors(spec, self._attention(spec.attention), mlp, norms)

    def _norms(self) -> tuple[str, ...]:
        names = self._names
        before, after = (names.attention_norm, names.mlp_norm), (names.post_attention_norm, names.post_mlp_norm)
        return {
            "pre": before,
            "post": after,
            "sandwich": before + after,
            "parallel": before[:1],
            "parallel_norms": names.parallel_norms or before,
        }[self._spec.placement]

    def _attention(self, a: AttentionSpec | DeltaSpec) -> AttentionTensors | LatentTensors | DeltaTensors:
        if isinstance(a, DeltaSpec):
            return self._delta(a, self._names.delta or DeltaNames(()))
        if a.latent is not None:
            return self._latent(a, a.latent)
        names, q, kv = self._names, a.heads * a.head_dim, a.kv_heads * a.head_dim
        return AttentionTensors(
            a,
            qkv=self._linear(names.qkv, (2 * q if a.gated else q, kv, kv), self._hidden, a.qkv_bias),
            out=self._linear(names.out, (self._hidden,), q, a.out_bias),
            q_norms=self._qk_norms(names.q_norm, a, a.heads),
            k_norms=self._qk_norms(names.k_norm, a, a.kv_heads),
            sinks=self._vector(names.sinks, a.heads) if a.sinks else None,
            by_group=names.qkv_by_group and a.kv_heads > 1,
        )

    def _qk_norms(self, module: str, a: AttentionSpec, heads: int) -> tuple[NormTensors, ...]:
        if a.qk_norm is None:
            return ()
        if "{h}" in module:
            return tuple(_norm(self._named(module, head=h), a.qk_norm, a.head_dim) for h in range(heads))
        shape = {"head": (a.head_dim,), "heads": (heads, a.head_dim), "all": (heads * a.head_dim,)}[a.qk_norm_over]
        return (_norm(self._named(module), a.qk_norm, *shape),)

    def _latent(self, a: AttentionSpec, m: LatentSpec) -> LatentTensors:
        names, hidden, bias = self._names.latent, self._hidden, a.qkv_bias
        queries = (a.heads * (m.plain + m.rotary),)
        return LatentTensors(
            a,
            m,
            self._spec.norm.eps,
            q_down=self._linear((names.q_down,), (m.q_rank,), hidden, bias) if m.q_rank else None,
            q_norm=self._vector(names.q_norm + ".weight", m.q_rank) if m.q_rank else None,
            q=self._linear((names.q_up if m.q_rank else names.q,), queries, m.q_rank or hidden, False),
            kv_down=self._linear((names.kv_down,), (m.rank + m.rotary,), hidden, bias),
            kv_norm=self._vector(names.kv_norm + ".weight", m.rank),
            kv_up=Matrix(self._named(names.kv_up), a.heads * (m.plain + m.value_dim), m.rank),
            out=self._linear(self._names.out, (hidden,), a.heads * m.value_dim, a.out_bias),
        )

    def _delta(self, spec: DeltaSpec, names: DeltaNames) -> DeltaTensors:
        width, heads = spec.value_heads * spec.value_dim, spec.value_heads
        apart = (spec.channels, width, heads, heads)
        by_key_head = (spec.channels + width, 2 * heads)
        return DeltaTensors(
            spec,
            self._spec.norm.eps,
            inputs=self._linear(names.inputs, by_key_head if len(names.inputs) == 2 else apart, self._hidden, False),
            kernel=self._vector(names.kernel, spec.channels, 1, spec.kernel),
            decay=self._vector(names.decay, heads),
            decay_bias=self._vector(names.decay_bias, heads),
            norm=self._vector(names.norm, spec.value_dim),
            out=self._linear((names.out,), (self._hidden,), width, False),
        )

    def _mlp(self, mlp: MlpSpec, gate_up: tuple[str, ...] = (), down: tuple[str, ...] = ()) -> MlpTensors:
        sizes = (mlp.size,) * (1 + mlp.gated)
        return MlpTensors(
            mlp,
            gate_up=self._linear(gate_up or self._names.gate_up, sizes, self._hidden, mlp.bias),
            down=self._linear(down or self._names.down, (self._hidden,), mlp.size, mlp.bias),
        )

    def _moe(self, moe: MoeSpec) -> MoeTensors:
        names, size, hidden, bias = self._names.moe, moe.expert_size, self._hidden, moe.expert_bias
        return MoeTensors(
            moe,
            router=self._linear((names.router,), (moe.experts,), hidden, moe.router_bias),
            gate_up=self._experts(moe.experts, names.gate_up, 2 * size, hidden),
            down=self._experts(moe.experts, (names.down,), hidden, size),
            gate_up_bias=self._vector(names.gate_up[0] + names.bias_suffix, moe.experts, 2 * size) if bias else None,
            down_bias=self._vector(names.down + names.bias_suffix, moe.experts, hidden) if bias else None,
            correction=self._vector(names.correction, moe.experts) if moe.correction else None,
            shared=self._mlp(moe.shared, names.shared_gate_up, (names.shared_down,)) if moe.shared else None,
            shared_gate=self._linear((names.shared_gate,), (1,), hidden, False) if moe.shared_gate else None,
            interleaved=names.interleaved,
        )

    def _experts(self, experts: int, modules: Sequence[str], outputs: int, inputs: int) -> ExpertTensors:
        rows, stacked = outputs // len(modules), [self._named(module.replace(".{e}", "")) for module in modules]
        if "{e}" in modules[0] and stacked[0] + ".weight" not in self._stored:
            named = ([self._named(module, expert) for module in modules] for expert in range(experts))
            return ExpertTensors(tuple(tuple(Matrix(name, rows, inputs) for name in each) for each in named), ())
        turned = self._names.moe.transposed
        return ExpertTensors(
            (), tuple(Matrix(name, rows, inputs, experts, turned and name in self._stored) for name in stacked)
        )

    def _linear(self, modules: Sequence[str], outputs: Sequence[int], inputs: int, bias: bool) -> LinearTensors:
        """A single module may hold all outputs."""
        sizes = [sum(outputs)] if len(modules) == 1 else outputs
        named = list(zip(map(self._named, modules), sizes, strict=True))
        return LinearTensors(
            tuple(self._matrix(module, size, inputs) for module, size in named),
            tuple(Vector(module + ".bias", (size,)) for module, size in named if bias),
        )

    def _matrix(self, module: str, outputs: int, inputs: int) -> Matrix:
        if self._names.transposed and (name := module + ".weight") in self._stored:
            return Matrix(name, outputs, inputs, transposed=True)
        return Matrix(module, outputs, inputs)

    def _norm(self, module: str) -> NormTensors:
        return _norm(self._named(module), self._spec.norm, self._hidden)

    def _vector(self, name: str, *shape: int) -> Vector:
        return Vector(self._named(name), shape)

    def _named(self, name: str, expert: int = 0, head: int = 0) -> str:
        return name.format(i=self._index, e=expert, h=head)
