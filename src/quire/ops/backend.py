"""The functions a decoder is made of. Each backend (reference, cpu, triton) offers all of them.

Shapes: ``T`` tokens of all sequences of a step laid end to end, ``S`` sequences, ``H`` query heads, ``G`` key/value
heads, ``D`` head size, ``N`` outputs, ``K`` inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from quire.ops.layouts import Layout
from quire.ops.shapes import DeltaShape, Routing


@dataclass(frozen=True)
class Pages:
    """Keys and values of one layer. The order inside a page is the backend's own."""

    k: torch.Tensor
    v: torch.Tensor
    page_size: int


SHARED_ROWS = 32


@dataclass(frozen=True)
class Singles:
    """Of a step whose sequences with one query come first, as tokens 0, 1, ...: what tells them from the others.

    ``context_len``: of the first ones, 0 for the others. ``query_start``: as in the step, but the first have no query.
    The others are among the last ``others`` sequences.
    """

    context_len: torch.Tensor  # [S] int32
    query_start: torch.Tensor  # [S + 1] int32
    others: int


@dataclass(frozen=True)
class AttentionStep:
    """Where a step's tokens stand, for one group of layers.

    ``slots[t] = page * page_size + offset`` of token t. Sequence s has its queries at rows ``query_start[s]`` to
    ``query_start[s + 1]``, its last query at position ``context_len[s] - 1``; position p's page is
    ``block_table[s, p // page_size]`` (entries for positions out of the window are never read).
    """

    positions: torch.Tensor  # [T] int32
    slots: torch.Tensor  # [T] int64
    query_start: torch.Tensor  # [S + 1] int32
    context_len: torch.Tensor  # [S] int32
    block_table: torch.Tensor  # [S, pages] int32
    page_size: int
    max_query: int  # no sequence has more queries in this step
    # Tokens that each block of ``SHARED_ROWS`` sequences of a decode step has in common, in the same pages: a multiple
    # of 128, less than any of their contexts. ``None`` (and 0): nothing is known to be shared.
    shared: torch.Tensor | None = None  # [ceil(S / SHARED_ROWS)] int32
    singles: Singles | None = None


@dataclass(frozen=True)
class SampleStep:
    """Sampling parameters of the R rows of logits, as tensors; penalties and biases are applied before."""

    temperature: torch.Tensor  # [R] float32; below 1e-5: greedy
    top_k: torch.Tensor  # [R] int32; <= 0: off
    top_p: torch.Tensor  # [R] float32; 1: off
    min_p: torch.Tensor  # [R] float32; 0: off
    seed: torch.Tensor  # [R] int64
    position: torch.Tensor  # [R] int64: index of the sampled token in its sequence


@dataclass(frozen=True)
class Routes:
    """Which experts a step's tokens go to: R = T * top_k rows, one a choice, sorted by expert (then by token)."""

    rows: torch.Tensor  # [R] int32: the token of each row
    offsets: torch.Tensor  # [E + 1] int32: expert e has the rows from offsets[e] to offsets[e + 1]
    places: torch.Tensor  # [T, top_k] int32: the rows of each token
    weights: torch.Tensor  # [T, top_k] float32


@dataclass(frozen=True)
class DeltaWeights:
    """All float32."""

    kernel: torch.Tensor  # [channels, kernel]
    decay: torch.Tensor  # [value_heads], at most 0
    decay_bias: torch.Tensor  # [value_heads]


class Weight(Protocol):
    """A packed weight: opaque, but for its shape ``(N, K)`` and its bytes."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int: ...


class Ops(Protocol):
    """``device`` and ``dtype`` are those of activations; norm weights and rotary tables are float32 on that device."""

    name: str
    device: torch.device
    dtype: torch.dtype

    def record(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor] | None:
        """Run ``function`` and return its replay, which reads its inputs from where they lay. ``None``: can't be had.

        The replay's result is overwritten by the next replay.
        """
        ...

    def pack(self, *layouts: Layout) -> Weight:
        """Layers of the same inputs, outputs one after another, in the order that this backend's kernels read."""
        ...

    def embed(self, weight: Weight, ids: torch.Tensor, multiplier: float) -> torch.Tensor:
        """Rows ``ids`` ``[T] int64`` of the weight, times ``multiplier``: ``[T, K]``."""
        ...

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``r = x + residual`` (or ``x``); returns ``(r / rms(r) * weight, r)``. May overwrite ``residual``.

        ``reader``: the weight of the one product that reads the norm. It may then come in a form, of the same shape,
        that only ``linear`` and ``gated_linear`` with that weight take.
        """
        ...

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``rms_norm``, of ``r - mean(r)``; ``bias`` (float32) is added."""
        ...

    def norm_columns(
        self,
        x: torch.Tensor,
        start: int,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        centered: bool,
    ) -> None:
        """Norm columns of ``x`` in place, ``n`` parts of width ``w`` from ``start`` on, by ``weight [n, w]``.

        Layer norm if ``centered`` (then there may be a ``bias [n, w]``), else RMS norm.
        """
        ...

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``x + y``, of equal shapes."""
        ...

    def add_positions(self, x: torch.Tensor, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``x [T, K] + table[positions]``; ``table [P, K] float32``, ``positions [T] int32``."""
        ...

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x [T, K] @ weight.T + bias``: ``[T, N]``."""
        ...

    def gated_linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        """``gate_up_act`` of ``linear``."""
        ...

    def gate_up_act(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """``act(x[:, :F]) * x[:, F:]`` for ``x [T, 2F]``.

        ``swiglu_oss`` (gpt-oss): ``g * sigmoid(1.702 g) * (u + 1)`` of g at most 7 and u within 7 of zero.
        """
        ...

    def activate(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """``act(x)``."""
        ...

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        """``cap * tanh(x / cap)`` in float32; may overwrite ``x``."""
        ...

    def pack_stack(self, layouts: Iterable[Layout]) -> Weight:
        """Pack matrices of one shape ``[N, K]``, each in any layout, for ``grouped_linear``: experts, or heads."""
        ...

    def route(self, logits: torch.Tensor, routing: Routing, bias: torch.Tensor | None = None) -> Routes:
        """Choose experts by ``logits [T, E]``; ``bias [E]`` as ``Routing`` says. Of equal scores the first wins."""
        ...

    def grouped_linear(
        self,
        x: torch.Tensor,
        stack: Weight,
        offsets: torch.Tensor,
        bias: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[R, N]``: rows ``offsets[e]`` to ``offsets[e + 1]`` of ``x [R, K]`` times matrix e of the stack.

        ``bias [E, N]`` is added. With ``rows [R] int32``, row r is ``x[rows[r]]``.
        """
        ...

    def combine(
        self,
        y: torch.Tensor,
        routes: Routes,
        shared: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Each token's rows of ``y [R, N]``, weighed and added: ``[T, N]``.

        ``shared [T, N]``, from experts that all tokens go to, is added; ``shared_gate [T, 1]``: times its sigmoid.
        """
        ...

    def new_pages(
        self,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        values_from: int | None = None,
    ) -> Pages:
        """Pages for one layer; memory is not touched until it is written.

        ``values_from``: values are the numbers of the keys from there on, and what attention returns before it is of no
        use (one head for all queries). So a backend may keep them once.
        """
        ...

    def qk_norm_rope_store(
        self,
        qkv: torch.Tensor,
        heads: int,
        kv_heads: int,
        head_dim: int,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
        cos_sin: torch.Tensor | None,
        interleaved: bool,
        pages: Pages,
        step: AttentionStep,
    ) -> torch.Tensor:
        """Norm q and k over each head (if given), rotate by position, write k and v to their pages; returns q.

        ``qkv [T, (H + 2G) * D]`` may be overwritten. ``cos_sin [positions, rotary_dim]``: cosines of the
        ``rotary_dim / 2`` frequencies, then sines; ``None``: no rotation. Returns q ``[T, H * D]`` (may be a view).
        """
        ...

    def attention(
        self,
        q: torch.Tensor,
        pages: Pages,
        step: AttentionStep,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Causal attention of each sequence's queries over its pages: ``[T, H * D]``.

        ``window``: a query sees itself and the ``window - 1`` positions before it. ``softcap``: ``c * tanh(s / c)``.
        ``sinks [H] float32``: a logit of each head that takes part in the softmax, with a value of zero.
        ``alibi_slopes [H] float32`` (arXiv:2108.12409): the scores gain slope times (key's position - query's).
        """
        ...

    def gated_delta(
        self,
        mixed: torch.Tensor,
        beta: torch.Tensor,
        decay: torch.Tensor,
        weights: DeltaWeights,
        shape: DeltaShape,
        pages: Pages,
        step: AttentionStep,
    ) -> torch.Tensor:
        """A convolution over ``mixed [T, channels]``, silu, then the gated delta rule; moves the states on.

        ``beta, decay [T, value_heads]``: before sigmoid and softplus. Returns ``[T, value_heads * value_dim]`` float32.
        No sequence of a step begins with a state that another one's tokens in this step lead to.
        """
        ...

    def sample(self, logits: torch.Tensor, step: SampleStep) -> torch.Tensor:
        """One token id a row of ``logits [R, V] float32``: ``[R] int64``.

        Order: temperature, min_p, top_k, top_p (over what is left). Randomness comes from a counter-based generator
        keyed by (seed, position) only, so a row's token depends on nothing but its own logits and parameters.
        """
        ...


def backend(name: str, **settings: Any) -> Ops:
    """The ops called ``reference``, ``triton`` or ``cpu`` (``reference`` where its kernels could not be built)."""
    if name == "triton":
        from quire.ops.triton import TritonOps

        return TritonOps(**settings)
    if name == "cpu":
        from quire.ops.cpu import load

        return load(**settings)
    from quire.ops.reference import ReferenceOps

    return ReferenceOps()
