"""``TritonOps``: the ops on an NVIDIA GPU, by own Triton kernels, cuBLAS and FlashAttention-4."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from quire.ops.backend import AttentionStep, DeltaWeights, Pages, Routes, SampleStep, Singles, Weight
from quire.ops.layouts import Dense, Fp8, Layout, join
from quire.ops.reference.routing import route
from quire.ops.shapes import DeltaShape, Routing
from quire.ops.states import state_pages
from quire.ops.triton import (
    cute,
    decode,
    delta,
    elementwise,
    flash,
    latent,
    linear,
    moe,
    norm,
    prefill,
    quantised,
    rope,
    sampling,
)
from quire.ops.triton.capture import uncollected
from quire.ops.triton.narrow import NarrowWeight, OctetsWeight, PlanesWeight, moved, packed, stacked
from quire.ops.triton.pages import TritonPages, new_pages, triton_pages
from quire.ops.triton.tiles import Experts


@dataclass(frozen=True)
class DenseWeight:
    """A weight ``[N, K]`` in the dtype of the activations."""

    matrix: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.matrix.shape[0], self.matrix.shape[1])

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes


@dataclass(frozen=True)
class PartsWeight:
    """Weights of the same inputs, in layouts of their own, whose outputs lie one after another."""

    parts: tuple[DenseWeight | PlanesWeight | OctetsWeight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return (sum(part.shape[0] for part in self.parts), self.parts[0].shape[1])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class TritonOps:
    """Activations are ``dtype`` on ``device``; vectors (norms, biases) may be of any float type.

    No op waits for the device or depends on lengths known to the host, so all may be captured in CUDA graphs. One
    stream at a time: the counters by which split programs find the last one are shared.
    """

    name = "triton"

    def __init__(self, device: str | torch.device = "cuda", dtype: torch.dtype = torch.bfloat16) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self._counters = torch.zeros(decode.MAX_COUNTERS, dtype=torch.int32, device=self.device)
        self._has_fp8 = True
        self._processors = 2  # the interpreter, which runs one program at a time, needs few
        if self.device.type == "cuda":
            self._processors = torch.cuda.get_device_properties(self.device).multi_processor_count
            if cute.hopper(self.device):
                cute.start_early(self.device)
            self._has_fp8 = torch.cuda.get_device_capability(self.device) >= (8, 9)

    def record(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor] | None:
        """A CUDA graph of ``function``; None where there is no CUDA device."""
        if self.device.type != "cuda":
            return None
        function()  # whatever compiles or is allocated once, does so outside of the graph
        graph = torch.cuda.CUDAGraph()
        with uncollected(), torch.cuda.graph(graph):
            result = function()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    def pack(self, *layouts: Layout) -> DenseWeight | PlanesWeight | OctetsWeight | PartsWeight:
        """The layouts' outputs one after another, in their own width where the kernels take it."""
        if all(isinstance(layout, Dense) for layout in layouts):
            return DenseWeight(torch.cat([self._dense(layout) for layout in layouts]))
        parts = tuple(self._pack(layout) for layout in join(moved(layout, self.device) for layout in layouts))
        return parts[0] if len(parts) == 1 else PartsWeight(parts)

    def _pack(self, layout: Layout) -> DenseWeight | PlanesWeight | OctetsWeight:
        return self._narrow(layout) or DenseWeight(self._dense(layout))

    def _narrow(self, layout: Layout) -> NarrowWeight | None:
        """``None`` where only plain weights will do."""
        if isinstance(layout, Dense) or (isinstance(layout, Fp8) and not self._has_fp8):
            return None
        return packed(moved(layout, self.device), self.dtype)

    def _dense(self, layout: Layout) -> torch.Tensor:
        matrix = layout.weight if isinstance(layout, Dense) else layout.dequantize()
        return matrix.to(self.device, self.dtype)

    def embed(self, weight: Weight, ids: torch.Tensor, multiplier: float) -> torch.Tensor:
        if isinstance(weight, PlanesWeight | OctetsWeight):
            return quantised.expand(weight, self.dtype, ids, multiplier)
        return elementwise.embed(_matrix(weight), ids, multiplier)

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return norm.norm(x, weight, None, eps, residual, centred=False, how=quantised.rounding_of(reader))

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return norm.norm(x, weight, bias, eps, residual, centred=True, how=quantised.rounding_of(reader))

    def norm_columns(
        self,
        x: torch.Tensor,
        start: int,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        centered: bool,
    ) -> None:
        norm.norm_columns(x, start, weight, bias, eps, centered)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def add_positions(self, x: torch.Tensor, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return (x + table[positions]).to(x.dtype)

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(weight, PlanesWeight | OctetsWeight):
            return quantised.linear(x, weight, bias, self._counters)
        if isinstance(weight, PartsWeight):
            y = torch.cat([self.linear(x, part) for part in weight.parts], dim=1)
            return y if bias is None else y + bias
        return linear.linear(x, _matrix(weight), bias, self._counters)

    def gated_linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        if isinstance(weight, DenseWeight):
            return linear.linear(x, weight.matrix, bias, self._counters, activation)
        if isinstance(weight, PlanesWeight | OctetsWeight):
            return quantised.linear(x, weight, bias, self._counters, activation)
        return self.gate_up_act(self.linear(x, weight, bias), activation)

    def gate_up_act(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        return elementwise.activate(x, activation, gated=True)

    def activate(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        return elementwise.activate(x, activation, gated=False)

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return x.float().div_(cap).tanh_().mul_(cap)

    def pack_stack(self, layouts: Iterable[Layout]) -> DenseWeight | PlanesWeight | OctetsWeight:
        """Narrow weights of one kind stay narrow; others are expanded."""
        made = list(layouts)
        narrow = [part for layout in made if (part := self._narrow(layout))]
        if made and len(narrow) == len(made) and (stack := stacked(narrow)):
            return stack
        return DenseWeight(torch.cat([self._dense(layout) for layout in made]))

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
        if isinstance(stack, PlanesWeight | OctetsWeight):
            return quantised.grouped_linear(x, stack, bias, self._counters, Experts(offsets, rows))
        return moe.grouped_linear(x, _matrix(stack), offsets, bias, rows)

    def combine(
        self,
        y: torch.Tensor,
        routes: Routes,
        shared: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return moe.combine(y, routes, shared, shared_gate)

    def new_pages(
        self,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        values_from: int | None = None,
    ) -> TritonPages:
        return new_pages(num_pages, page_size, kv_heads, head_dim, dtype, self.device, values_from)

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
        return rope.qk_norm_rope_store(
            qkv,
            heads,
            kv_heads,
            head_dim,
            q_norm,
            k_norm,
            eps,
            cos_sin,
            interleaved,
            triton_pages(pages, kv_heads, head_dim),
            step,
        )

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
        own = triton_pages(pages, kv_heads, head_dim)
        if q.shape[0] == 0:
            return torch.empty_like(q)
        shape = (heads, kv_heads, head_dim, scale, window, softcap, sinks, alibi_slopes)

        def attend_single(q: torch.Tensor, step: AttentionStep, out: torch.Tensor | None = None) -> torch.Tensor:
            if own.values_from is not None:
                return latent.latent_attention(q, own, step, heads, scale, self._processors, out)
            return decode.decode_attention(q, own, step, *shape, self._counters, self._processors, out)

        if step.max_query == 1:
            return attend_single(q, step)
        several = step if step.singles is None else _others(step, step.singles)
        if own.values_from is not None:
            out = latent.latent_attention(q, own, several, heads, scale, self._processors)
        elif flash.supports(q, own, head_dim, alibi_slopes):
            out = flash.flash_attention(q, own, several, heads, head_dim, scale, window, softcap, sinks)
        else:
            out = prefill.prefill_attention(q, own, several, *shape)
        if step.singles is not None:
            rows = min(len(step.context_len), q.shape[0])
            context_len, table = step.singles.context_len[:rows], step.block_table[:rows]
            single = replace(step, context_len=context_len, block_table=table, max_query=1)
            attend_single(q[:rows], single, out)
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
        return delta.gated_delta(mixed, beta, decay, weights, shape, state_pages(pages), step)

    def sample(self, logits: torch.Tensor, step: SampleStep) -> torch.Tensor:
        """``logits`` may be of any float type."""
        return sampling.sample(logits, step)


def _others(step: AttentionStep, singles: Singles) -> AttentionStep:
    """The step of those sequences that have more than one query."""
    first = len(step.context_len) - singles.others
    return replace(
        step,
        query_start=singles.query_start[first:],
        context_len=step.context_len[first:],
        block_table=step.block_table[first:],
        singles=None,
    )


def _matrix(weight: Weight) -> torch.Tensor:
    if not isinstance(weight, DenseWeight):
        raise TypeError(f"This weight was packed for another backend ({type(weight).__name__}).")
    return weight.matrix
