"""``ReferenceOps``: each op as the formula says, vectorised where that stays readable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from quire.ops.backend import AttentionStep, DeltaWeights, Pages, Routes, SampleStep, Weight
from quire.ops.layouts import Layout
from quire.ops.reference.delta import gated_delta
from quire.ops.reference.rounding import rounded
from quire.ops.reference.routing import route
from quire.ops.reference.sampling import sample
from quire.ops.shapes import ActivationQuant, DeltaShape, Routing

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


@dataclass(frozen=True)
class DequantizedWeight:
    """A weight as float32 ``[N, K]``; a stack's matrices lie one after another.

    ``parts``: outputs of the layers that lie side by side, and how each rounds its inputs.
    """

    matrix: torch.Tensor
    parts: tuple[tuple[int, ActivationQuant | None], ...]

    @classmethod
    def of(cls, layouts: Iterable[Layout]) -> DequantizedWeight:
        parts = [(layout.dequantize(), getattr(layout, "activation", None)) for layout in layouts]
        return cls(torch.cat([matrix for matrix, _ in parts]), tuple((len(matrix), how) for matrix, how in parts))

    @property
    def shape(self) -> tuple[int, int]:
        return (self.matrix.shape[0], self.matrix.shape[1])

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes


class ReferenceOps:
    """Pages lie as ``[pages, page_size, kv_heads, head_dim]``."""

    name = "reference"
    device = torch.device("cpu")
    dtype = torch.float32

    def record(self, function: Callable[[], torch.Tensor]) -> None:
        return None

    def pack(self, *layouts: Layout) -> DequantizedWeight:
        return DequantizedWeight.of(layouts)

    def embed(self, weight: Weight, ids: torch.Tensor, multiplier: float) -> torch.Tensor:
        rows = _packed(weight).matrix[ids]
        return rows if multiplier == 1.0 else rows * multiplier

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x if residual is None else x + residual
        return _rms_norm(total, weight, eps), total

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x if residual is None else x + residual
        return F.layer_norm(total, weight.shape, weight, bias, eps), total

    def norm_columns(
        self,
        x: torch.Tensor,
        start: int,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        centered: bool,
    ) -> None:
        part = x.narrow(1, start, weight.numel()).unflatten(1, weight.shape)
        if centered:
            part = part - part.mean(dim=-1, keepdim=True)
        y = _rms_norm(part, weight, eps)
        x[:, start : start + weight.numel()] = (y if bias is None else y + bias).flatten(1)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def add_positions(self, x: torch.Tensor, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x + table[positions.long()]

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        packed = _packed(weight)
        inputs = {how: rounded(x, how) for _, how in packed.parts}
        matrices = packed.matrix.split([outputs for outputs, _ in packed.parts])
        parts = [F.linear(inputs[how], m) for m, (_, how) in zip(matrices, packed.parts, strict=True)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return y if bias is None else y + bias.float()

    def gated_linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        return self.gate_up_act(self.linear(x, weight, bias), activation)

    def gate_up_act(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        if activation == "swiglu_oss":
            gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1.0
            return gate * torch.sigmoid(1.702 * gate) * up
        return ACTIVATIONS[activation](gate) * up

    def activate(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        return ACTIVATIONS[activation](x)

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return torch.tanh(x / cap) * cap

    def pack_stack(self, layouts: Iterable[Layout]) -> DequantizedWeight:
        return DequantizedWeight.of(layouts)

    def route(self, logits: torch.Tensor, routing: Routing, bias: torch.Tensor | None = None) -> Routes:
        return route(logits, routing, bias)

    def grouped_linear(
        self,
        x: torch.Tensor,
        stack: Weight,
        offsets: torch.Tensor,
        bias: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = x if rows is None else x[rows.long()]
        packed = _packed(stack)
        matrices = packed.matrix.chunk(len(offsets) - 1)
        out = x.new_empty(x.shape[0], matrices[0].shape[0])
        for e, (begin, end) in enumerate(pairwise(offsets.tolist())):
            inputs = rounded(x[begin:end], packed.parts[e][1])
            out[begin:end] = F.linear(inputs, matrices[e], None if bias is None else bias[e].float())
        return out

    def combine(
        self,
        y: torch.Tensor,
        routes: Routes,
        shared: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        out = torch.einsum("tkn,tk->tn", y[routes.places.long()], routes.weights)
        if shared is None:
            return out
        return out + (shared if shared_gate is None else shared * shared_gate.sigmoid())

    def new_pages(
        self,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        values_from: int | None = None,
    ) -> Pages:
        return self.new_pages_on(num_pages, page_size, kv_heads, head_dim, dtype, torch.device("cpu"))

    def new_pages_on(
        self, num_pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Pages:
        """As ``new_pages``, on any device."""
        shape = (num_pages, page_size, kv_heads, head_dim)
        k = torch.empty(shape, dtype=dtype, device=device)
        return Pages(k, torch.empty_like(k), page_size)

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
        tokens = qkv.shape[0]
        parts: tuple[torch.Tensor, ...] = qkv.view(tokens, -1, head_dim).split([heads, kv_heads, kv_heads], dim=1)
        q, k, v = parts
        if q_norm is not None:
            q = _rms_norm(q, q_norm, eps)
        if k_norm is not None:
            k = _rms_norm(k, k_norm, eps)
        if cos_sin is not None:
            table = cos_sin[step.positions.long()].float()
            q, k = _rotate(q, table, interleaved), _rotate(k, table, interleaved)
        pages.k.flatten(0, 1)[step.slots] = k.to(pages.k.dtype)
        pages.v.flatten(0, 1)[step.slots] = v.to(pages.v.dtype)
        return q.reshape(tokens, heads * head_dim)

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
        out = torch.empty_like(q)
        starts, lengths = step.query_start.tolist(), step.context_len.tolist()
        for s, length in enumerate(lengths):
            rows = slice(starts[s], starts[s + 1])
            count = rows.stop - rows.start
            if count == 0:
                continue
            first = 0 if window is None else max(0, length - count - window + 1)
            k, v = _gather(pages, step.block_table[s], first, length)
            queries = q[rows].view(count, kv_heads, heads // kv_heads, head_dim)
            scores = torch.einsum("qghd,kgd->ghqk", queries, k) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            query_pos = torch.arange(length - count, length, device=q.device)[:, None]
            key_pos = torch.arange(first, length, device=q.device)[None, :]
            if alibi_slopes is not None:
                scores += alibi_slopes.view(kv_heads, -1, 1, 1) * (key_pos - query_pos)
            hidden = key_pos > query_pos
            if window is not None:
                hidden |= key_pos <= query_pos - window
            scores = scores.masked_fill(hidden, float("-inf"))
            if sinks is not None:
                column = sinks.view(kv_heads, -1, 1, 1).expand(-1, -1, count, 1)
                scores = torch.cat((scores, column), dim=-1)
            probs = scores.softmax(dim=-1)[..., : length - first]
            out[rows] = torch.einsum("ghqk,kgd->qghd", probs, v).reshape(count, heads * head_dim)
        return out

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
        return gated_delta(mixed, beta, decay, weights, shape, pages, step)

    def sample(self, logits: torch.Tensor, step: SampleStep) -> torch.Tensor:
        return sample(logits, step)


def _packed(weight: Weight) -> DequantizedWeight:
    if not isinstance(weight, DequantizedWeight):
        raise TypeError(f"This weight was packed for another backend ({type(weight).__name__}).")
    return weight


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight.float()


def _rotate(x: torch.Tensor, table: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate ``x [T, heads, D]`` by ``table [T, rotary_dim]``; dimensions beyond ``rotary_dim`` stay."""
    rotary_dim = table.shape[-1]
    cos, sin = table[:, None, :].chunk(2, dim=-1)
    turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    a, b = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack((a, b), dim=-1).flatten(-2) if interleaved else torch.cat((a, b), dim=-1)
    return torch.cat((turned, rest), dim=-1)


def _gather(pages: Pages, table: torch.Tensor, first: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[length - first, kv_heads, D]`` float32 of positions ``first`` to ``length``."""
    size = pages.page_size
    page_ids = table[first // size : -(-length // size)].long()
    skip = first % size
    k = pages.k[page_ids].flatten(0, 1)[skip : skip + length - first]
    v = pages.v[page_ids].flatten(0, 1)[skip : skip + length - first]
    return k.float(), v.float()
