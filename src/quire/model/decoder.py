"""The one decoder: its parts are chosen by the spec, its arithmetic is done by the ops of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch

from quire.model.embedding import Embedding
from quire.model.layer import Layer
from quire.model.linear import Linear
from quire.model.norm import Norm
from quire.model.rope import cos_sin_table
from quire.model.spec import DecoderSpec, RopeSpec
from quire.ops.backend import AttentionStep, Ops, Pages


@dataclass(frozen=True)
class DecoderParts:
    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices; a tied head counts once."""
        head = 0 if self.head.weight is self.embedding.tokens else self.head.nbytes
        return sum(layer.nbytes for layer in self.layers) + self.embedding.tokens.nbytes + head


@dataclass(frozen=True)
class Step:
    """Tokens of all sequences laid end to end; ``attention`` holds one entry for each KV group.

    ``wanted``: the tokens whose hidden states are asked for, if not all are.
    """

    token_ids: torch.Tensor  # [T] int64
    attention: Sequence[AttentionStep]
    wanted: torch.Tensor | None = None  # [R] int64


def kv_windows(spec: DecoderSpec) -> list[int | None]:
    """The window of each KV group, full attention (``None``) first; layers of equal window share a group."""
    windows = {layer.attention.window for layer in spec.layers}
    return sorted(windows, key=lambda window: (window is not None, window or 0))


class Model(Protocol):
    """What the runner needs of a model."""

    spec: DecoderSpec

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        ...

    def forward(self, step: Step, pages: Sequence[Pages]) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class Decoder:
    """Runs a step's tokens through all layers. ``max_positions`` bounds the rotary tables."""

    def __init__(self, spec: DecoderSpec, parts: DecoderParts, ops: Ops, max_positions: int) -> None:
        self.spec = spec
        self._parts = parts
        self._ops = ops
        windows = kv_windows(spec)
        self._group = [windows.index(layer.attention.window) for layer in spec.layers]
        tables: dict[RopeSpec, torch.Tensor] = {}
        for layer in spec.layers:
            rope = layer.attention.rope
            if rope is not None and rope not in tables:
                tables[rope] = cos_sin_table(rope, max_positions).to(ops.device)
        self._cos_sin = [tables[a.rope] if (a := layer.attention).rope else None for layer in spec.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self._parts.nbytes

    def forward(self, step: Step, pages: Sequence[Pages]) -> torch.Tensor:
        """Last hidden states ``[T, hidden]`` (or ``[R, hidden]``, of those wanted), normed.

        Writes keys and values to ``pages`` (one entry a layer).
        """
        ops = self._ops
        x = self._parts.embedding(ops, step.token_ids, step.attention[0].positions)
        residual: torch.Tensor | None = None
        last = len(self._parts.layers) - 1
        for i, layer in enumerate(self._parts.layers):
            attention, wanted = step.attention[self._group[i]], step.wanted if i == last else None
            x, residual = layer(ops, x, residual, self._cos_sin[i], pages[i], attention, wanted)
        return self._parts.final_norm(ops, x, residual)[0]

    def thin(self) -> tuple[Decoder, list[int]]:
        """A decoder that has one layer of each kind, and which layers those are: its steps run all kernels."""
        layers = self._parts.layers
        chosen = sorted({_kind(layers[i]): i for i in reversed(range(len(layers)))}.values())
        thin = copy(self)
        thin._parts = replace(self._parts, layers=tuple(layers[i] for i in chosen))
        thin._group = [self._group[i] for i in chosen]
        thin._cos_sin = [self._cos_sin[i] for i in chosen]
        return thin, chosen

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[R, vocab]`` for rows ``[R, hidden]`` of ``forward``."""
        logits = self._parts.head(self._ops, hidden)
        cap = self.spec.logit_softcap
        return logits if cap is None else self._ops.softcap(logits, cap)


def _kind(part: Any) -> Any:
    """Equal for parts of a layer that differ in nothing but their weights' values."""
    if isinstance(part, torch.Tensor):
        return part.dtype, part.shape
    if is_dataclass(part):
        return type(part), *(_kind(getattr(part, field.name)) for field in fields(part))
    return tuple(map(_kind, part)) if isinstance(part, tuple) else part
