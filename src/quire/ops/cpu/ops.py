"""``CpuOps``: checks tensors, allocates results, calls the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from quire.ops.backend import AttentionStep, DeltaWeights, Pages, Routes, SampleStep, Weight
from quire.ops.cpu import _kernels, weights
from quire.ops.cpu.recording import Arena, NotRecordable, Recording, record
from quire.ops.cpu.weights import CpuPages, CpuParts, CpuStack, CpuWeight
from quire.ops.layouts import Layout
from quire.ops.reference.delta import gated_delta
from quire.ops.shapes import DeltaShape, Routing

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4, "swiglu_oss": 5}
SCORINGS = {"softmax": 0, "sigmoid": 1, "sparsemixer": 2}
INSTRUCTION_SETS = _kernels.instruction_sets()
KEPT_STEPS = 8


class CpuOps:
    """The ops on ``threads`` CPU threads. Activations are float32."""

    name = "cpu"
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, threads: int, instruction_set: str | None = None, int8_inputs: bool = False) -> None:
        """``instruction_set``: one of ``INSTRUCTION_SETS``, those of this processor; by default the first, its best.

        ``int8_inputs``: products with grouped integers round their inputs to 8 bits, each group by a scale of its own,
        where the instruction set gains by it.
        """
        if instruction_set is not None and instruction_set not in INSTRUCTION_SETS:
            known = ", ".join(INSTRUCTION_SETS)
            raise ValueError(f"No kernels for {instruction_set!r} on this processor; there are: {known}.")
        index = INSTRUCTION_SETS.index(instruction_set) if instruction_set else 0
        self._engine = _kernels.engine(threads, index)
        self._steps: dict[int, tuple[AttentionStep, AttentionStep, object]] = {}
        self._arena = Arena()
        self._recording = False
        self.threads = threads
        self._int8_inputs = int8_inputs
        self.instruction_set: str = _kernels.engine_name(self._engine)

    def record(self, function: Callable[[], torch.Tensor]) -> Recording | None:
        self._steps.clear()
        self._recording = True
        try:
            recording = record(self._engine, function)
        except NotRecordable:
            return None
        finally:
            self._recording = False
        recording.keep = (self._arena, *self._steps.values())
        self._steps.clear()
        return recording

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self._arena.take(shape, dtype) if self._recording else torch.empty(shape, dtype=dtype)

    def pack(self, *layouts: Layout) -> CpuWeight | CpuParts:
        return weights.pack(self._engine, layouts, self._int8_inputs)

    def embed(self, weight: Weight, ids: torch.Tensor, multiplier: float) -> torch.Tensor:
        packed = _packed(weight)
        ids = _checked(ids, torch.int64)
        count = ids.shape[0]
        out = self._empty(count, packed.shape[1])
        _kernels.embed(self._engine, packed.handle, ids.data_ptr(), count, multiplier, out.data_ptr())
        return out

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = _checked(x, torch.float32), _checked(weight, torch.float32)
        rows, width = x.shape
        if weight.shape[0] != width or (residual is not None and residual.shape != x.shape):
            raise ValueError(f"rms_norm: weight or residual does not fit rows of {width}.")
        out = self._empty(rows, width)
        if residual is None:
            total, address = x, 0
        else:
            total = _checked(residual, torch.float32)
            address = total.data_ptr()
        _kernels.rms_norm(self._engine, x.data_ptr(), weight.data_ptr(), eps, address, rows, width, out.data_ptr())
        return out, total

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        residual: torch.Tensor | None = None,
        reader: Weight | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = _checked(x, torch.float32), _checked(weight, torch.float32)
        bias = None if bias is None else _checked(bias, torch.float32)
        rows, width = x.shape
        if any(t is not None and t.shape != (width,) for t in (weight, bias)):
            raise ValueError(f"layer_norm: weight or bias does not fit rows of {width}.")
        if residual is not None and residual.shape != x.shape:
            raise ValueError(f"layer_norm: the residual is not {rows} x {width}.")
        total = x if residual is None else _checked(residual, torch.float32)
        address = 0 if residual is None else total.data_ptr()
        out = self._empty(rows, width)
        _kernels.layer_norm(
            self._engine, x.data_ptr(), weight.data_ptr(), _address(bias), eps, address, rows, width, out.data_ptr()
        )
        return out, total

    def norm_columns(
        self,
        x: torch.Tensor,
        start: int,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        centered: bool,
    ) -> None:
        weight = _checked(weight, torch.float32)
        bias = None if bias is None else _checked(bias, torch.float32)
        if x.dtype is not torch.float32 or x.stride(1) != 1:
            raise TypeError("norm_columns works in place, on float32 rows without gaps.")
        if not 0 <= start <= x.shape[1] - weight.numel() or (bias is not None and bias.shape != weight.shape):
            raise ValueError(f"norm_columns: {weight.numel()} columns from {start} on do not fit {x.shape[1]}.")
        _kernels.norm_columns(
            self._engine,
            x.data_ptr() + start * x.itemsize,
            x.shape[0],
            x.stride(0),
            weight.shape[0],
            weight.shape[1],
            weight.data_ptr(),
            _address(bias),
            eps,
            int(centered),
        )

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._add_rows(x, y, None)

    def add_positions(self, x: torch.Tensor, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._add_rows(x, table, _checked(positions, torch.int32))

    def _add_rows(self, x: torch.Tensor, table: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
        x, table = _checked(x, torch.float32), _checked(table, torch.float32)
        rows, width = x.shape
        if table.shape[1] != width or len(table if index is None else index) < rows:
            raise ValueError(f"add: {tuple(table.shape)} does not fit {rows} x {width}.")
        out = self._empty(rows, width)
        _kernels.add_rows(
            self._engine,
            x.data_ptr(),
            table.data_ptr(),
            len(table),
            _address(index),
            rows,
            width,
            out.data_ptr(),
        )
        return out

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        parts = weight.parts if isinstance(weight, CpuParts) else (_packed(weight),)
        x = _checked(x, torch.float32)
        rows, width = x.shape
        n, k = weight.shape
        if width != k or (bias is not None and bias.shape[0] != n):
            raise ValueError(f"linear: input of width {width} (or the bias) does not fit a weight of {n} x {k}.")
        out = self._empty(rows, n)
        bias = None if bias is None else _checked(bias, torch.float32)
        source, target, added = x.data_ptr(), out.data_ptr(), _address(bias)
        for part in parts:
            _kernels.linear(self._engine, source, rows, part.handle, added, target, n)
            target += part.shape[0] * out.itemsize
            added += part.shape[0] * out.itemsize if added else 0
        return out

    def gated_linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        return self.gate_up_act(self.linear(x, weight, bias), activation)

    def gate_up_act(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        x = _checked(x, torch.float32)
        rows, double = x.shape
        out = self._empty(rows, double // 2)
        _kernels.gate_up_act(self._engine, x.data_ptr(), rows, double // 2, ACTIVATIONS[activation], out.data_ptr())
        return out

    def activate(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        x = _checked(x, torch.float32)
        rows, width = x.shape
        out = self._empty(rows, width)
        _kernels.activate(self._engine, x.data_ptr(), rows, width, ACTIVATIONS[activation], out.data_ptr())
        return out

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        x = _checked(x, torch.float32)
        _kernels.softcap(self._engine, x.data_ptr(), x.numel(), cap)
        return x

    def pack_stack(self, layouts: Iterable[Layout]) -> CpuStack:
        return weights.pack_stack(self._engine, layouts, self._int8_inputs)

    def route(self, logits: torch.Tensor, routing: Routing, bias: torch.Tensor | None = None) -> Routes:
        logits = _checked(logits, torch.float32)
        bias = None if bias is None else _checked(bias, torch.float32)
        tokens, experts = logits.shape
        routes = Routes(
            rows=self._empty(tokens * routing.top_k, dtype=torch.int32),
            offsets=self._empty(experts + 1, dtype=torch.int32),
            places=self._empty(tokens, routing.top_k, dtype=torch.int32),
            weights=self._empty(tokens, routing.top_k),
        )
        _kernels.route(
            self._engine,
            logits.data_ptr(),
            tokens,
            experts,
            _address(bias),
            routing.top_k,
            SCORINGS[routing.scoring],
            int(routing.renormalize),
            routing.scale,
            routing.groups,
            routing.top_groups,
            routing.group_score,
            routing.jitter,
            routes.rows.data_ptr(),
            routes.offsets.data_ptr(),
            routes.places.data_ptr(),
            routes.weights.data_ptr(),
        )
        return routes

    def grouped_linear(
        self,
        x: torch.Tensor,
        stack: Weight,
        offsets: torch.Tensor,
        bias: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if not isinstance(stack, CpuStack):
            raise TypeError(f"This is no stack packed for this backend ({type(stack).__name__}).")
        x, offsets = _checked(x, torch.float32), _checked(offsets, torch.int32)
        bias = None if bias is None else _checked(bias, torch.float32)
        rows = None if rows is None else _checked(rows, torch.int32)
        (n, k), count = stack.shape, len(stack.parts)
        if x.shape[1] != k or len(offsets) != count + 1 or (bias is not None and bias.shape != (count, n)):
            raise ValueError(f"grouped_linear: input, offsets or bias does not fit {count} weights of {n} x {k}.")
        out = self._empty(len(x) if rows is None else len(rows), n)
        _kernels.grouped_linear(
            self._engine,
            x.data_ptr(),
            len(x),
            _address(rows),
            len(out),
            stack.handle,
            offsets.data_ptr(),
            _address(bias),
            out.data_ptr(),
        )
        return out

    def combine(
        self,
        y: torch.Tensor,
        routes: Routes,
        shared: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = _checked(y, torch.float32)
        shared, shared_gate = (t if t is None else _checked(t, torch.float32) for t in (shared, shared_gate))
        tokens, top_k = routes.places.shape
        if shared is not None and shared.shape != (tokens, y.shape[1]):
            raise ValueError(f"combine: the shared experts' output is not {tokens} x {y.shape[1]}.")
        if shared_gate is not None and shared_gate.numel() != tokens:
            raise ValueError(f"combine: the gate of the shared experts needs a value for each of {tokens} tokens.")
        out = self._empty(tokens, y.shape[1])
        _kernels.combine(
            self._engine,
            y.data_ptr(),
            y.shape[0],
            y.shape[1],
            routes.places.data_ptr(),
            routes.weights.data_ptr(),
            tokens,
            top_k,
            _address(shared),
            _address(shared_gate),
            out.data_ptr(),
        )
        return out

    def new_pages(
        self,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        values_from: int | None = None,
    ) -> CpuPages:
        return weights.new_pages(num_pages, page_size, kv_heads, head_dim, dtype)

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
        qkv = _checked(qkv, torch.float32)
        q_norm, k_norm, cos_sin = (t if t is None else _checked(t, torch.float32) for t in (q_norm, k_norm, cos_sin))
        rows, rotary_dim = (0, 0) if cos_sin is None else cos_sin.shape
        if rotary_dim > head_dim or rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even and at most the head's {head_dim}, not {rotary_dim}.")
        _kernels.store(
            self._engine,
            _handle(pages, kv_heads, head_dim),
            self._step(step, qkv.shape[0]),
            qkv.data_ptr(),
            heads,
            _address(q_norm),
            _address(k_norm),
            eps,
            _address(cos_sin),
            rows,
            rotary_dim,
            int(interleaved),
        )
        return qkv.narrow(1, 0, heads * head_dim)

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
        sinks, slopes = (t if t is None else _checked(t, torch.float32) for t in (sinks, alibi_slopes))
        if any(t is not None and len(t) != heads for t in (sinks, slopes)):
            raise ValueError(f"attention: sinks and slopes need a value for each of the {heads} heads.")
        if q.dtype is not torch.float32 or q.stride(1) != 1:
            q = q.float().contiguous()
        rows, q_stride = q.shape[0], q.stride(0)
        out = self._empty(rows, heads * head_dim)
        _kernels.attention(
            self._engine,
            _handle(pages, kv_heads, head_dim),
            self._step(step, rows),
            q.data_ptr(),
            q_stride,
            out.data_ptr(),
            heads,
            scale,
            window or 0,
            softcap or 0.0,
            _address(sinks),
            _address(slopes),
        )
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
        logits = _checked(logits, torch.float32)
        rows, vocab = logits.shape
        out = torch.empty(rows, dtype=torch.int64)
        temperature, top_k = _checked(step.temperature, torch.float32), _checked(step.top_k, torch.int32)
        top_p, min_p = _checked(step.top_p, torch.float32), _checked(step.min_p, torch.float32)
        seed, position = _checked(step.seed, torch.int64), _checked(step.position, torch.int64)
        if any(len(t) < rows for t in (temperature, top_k, top_p, min_p, seed, position)):
            raise ValueError(f"sample: each parameter needs a value for each of the {rows} rows.")
        _kernels.sample(
            self._engine,
            logits.data_ptr(),
            rows,
            vocab,
            temperature.data_ptr(),
            top_k.data_ptr(),
            top_p.data_ptr(),
            min_p.data_ptr(),
            seed.data_ptr(),
            position.data_ptr(),
            out.data_ptr(),
        )
        return out

    def _step(self, step: AttentionStep, tokens: int) -> object:
        """The kernels' view of a step, kept for the layers that follow (and kept alive: its address is the key)."""
        kept = self._steps.get(id(step))
        if kept is not None:
            return kept[2]
        sequences = len(step.context_len)
        if len(step.positions) < tokens or len(step.slots) < tokens or len(step.query_start) < sequences + 1:
            raise ValueError(f"A step of {tokens} tokens and {sequences} sequences has tensors that are too short.")
        table = step.block_table if step.block_table.stride(1) == 1 else step.block_table.contiguous()
        parts = AttentionStep(
            _checked(step.positions, torch.int32),
            _checked(step.slots, torch.int64),
            _checked(step.query_start, torch.int32),
            _checked(step.context_len, torch.int32),
            table if table.dtype is torch.int32 else table.int(),
            step.page_size,
            step.max_query,
        )
        handle = _kernels.step(
            tokens,
            sequences,
            parts.positions.data_ptr(),
            parts.slots.data_ptr(),
            parts.query_start.data_ptr(),
            parts.context_len.data_ptr(),
            parts.block_table.data_ptr(),
            parts.block_table.stride(0),
            parts.block_table.shape[1],
        )
        if len(self._steps) >= KEPT_STEPS:
            self._steps.clear()
        self._steps[id(step)] = (step, parts, handle)
        return handle


def _packed(weight: Weight) -> CpuWeight:
    if not isinstance(weight, CpuWeight):
        raise TypeError(f"This weight was packed for another backend ({type(weight).__name__}).")
    return weight


def _handle(pages: Pages, kv_heads: int, head_dim: int) -> object:
    if not isinstance(pages, CpuPages):
        raise TypeError(f"These pages were made by another backend ({type(pages).__name__}).")
    if pages.k.shape[1:3] != (kv_heads, head_dim):
        raise ValueError(f"Pages of {tuple(pages.k.shape)} do not fit {kv_heads} heads of {head_dim}.")
    return pages.handle


def _checked(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` as the kernels need it: contiguous and of one type."""
    if x.dtype is dtype and x.is_contiguous():
        return x
    return x.to(dtype).contiguous()


def _address(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
