"""Times each GPU op at the shapes of two models beside its floor, after checking it, and names the faster variant.

    python benchmarks/ops_gpu.py --output ops_gpu.json

Ceilings first: a read, a copy and a matrix product. A floor is bytes over the read bandwidth, or operations over the
product's rate. Times are medians of CUDA graph replays; inputs rotate, so that none stays in the L2.
"""

# ruff: noqa: B023 - every function is called in the iteration that defines it

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from quire.ops.backend import AttentionStep, Pages, SampleStep
from quire.ops.layouts import Dense
from quire.ops.reference import ReferenceOps
from quire.ops.triton import TritonOps, decode, flash, linear, prefill
from quire.ops.triton.pages import TritonPages
from quire.quant.at_load import quantize

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
L2_BYTES = 200 << 20  # inputs of a timed graph cover at least this
PAGE = 128


@dataclass(frozen=True)
class Model:
    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    qk_norm: bool

    def linears(self) -> dict[str, tuple[int, int]]:
        q = self.heads * self.head_dim
        return {
            "qkv": (q + 2 * self.kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, q),
            "gate_up": (2 * self.mlp, self.hidden),
            "down": (self.hidden, self.mlp),
            "head": (self.vocab, self.hidden),
        }


MODELS = (
    Model("Qwen3-0.6B", 1024, 16, 8, 128, 3072, 151936, True),
    Model("Llama-3.1-8B", 4096, 32, 8, 128, 14336, 128256, False),
)
DECODES = ((256, 1024), (64, 4096), (8, 8192), (1, 4096), (1, 512))
PREFILLS = {
    "prefill 4 x 2,048": [(2048, 2048)] * 4,
    "prefill 1 x 8,192": [(8192, 8192)],
    "extend 8 x 512 on 2,048": [(2560, 512)] * 8,
    "32 x 64 on 1,024": [(1088, 64)] * 32,
}


class Bench:
    """Collects rows of (section, case, microseconds, floor) and the greatest errors of checks."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self.read = self.copy = self.rate = 0.0

    def time(self, section: str, case: str, calls: Sequence[Callable[[], object]], floor_us: float) -> float:
        us = graph_time(calls)
        self.rows.append({"section": section, "case": case, "us": round(us, 2), "floor_us": round(floor_us, 2)})
        return us

    def bytes_us(self, count: float) -> float:
        return count / self.read / 1e3

    def ceilings(self) -> None:
        x = torch.empty(2 << 30, dtype=torch.uint8, device=DEVICE).view(torch.float32).normal_()
        y = torch.empty_like(x)
        self.read = x.nbytes / graph_time([lambda: x.sum()]) / 1e3
        self.copy = 2 * x.nbytes / graph_time([lambda: torch.mul(x, 2, out=y)]) / 1e3
        a, b = (torch.randn(8192, 8192, dtype=DTYPE, device=DEVICE) for _ in range(2))
        self.rate = 2 * 8192**3 / graph_time([lambda: a @ b]) / 1e6
        print(f"read {self.read:.0f} GB/s, copy {self.copy:.0f} GB/s, bf16 product {self.rate:.0f} TFLOP/s", flush=True)


def graph_time(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Median microseconds of one of ``calls``, captured one after another in a graph."""
    calls = list(calls) * max(1, 8 // len(calls))
    for call in calls:
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    del kept
    return float(statistics.median(times)) / len(calls)


def make_attention(
    ops: TritonOps, sequences: list[tuple[int, int]], m: Model, dtype: torch.dtype = DTYPE
) -> tuple[torch.Tensor, TritonPages, AttentionStep]:
    """Random queries, pages in scattered order and the step of (context, queries) sequences."""
    needed = [-(-length // PAGE) for length, _ in sequences]
    order = torch.randperm(sum(needed), device=DEVICE).int()
    table = torch.zeros(len(sequences), max(needed), dtype=torch.int32, device=DEVICE)
    at = 0
    for s, count in enumerate(needed):
        table[s, :count] = order[at : at + count]
        at += count
    pages = ops.new_pages(sum(needed), PAGE, m.kv_heads, m.head_dim, dtype)
    for tensor in (pages.k, pages.v):
        tensor.copy_(torch.randn(tensor.shape, dtype=DTYPE, device=DEVICE))
    positions = torch.cat([torch.arange(length - n, length) for length, n in sequences]).int().to(DEVICE)
    counts = torch.tensor([0, *(n for _, n in sequences)])
    step = AttentionStep(
        positions,
        torch.cat(
            [
                table[s, torch.arange(length - n, length, device=DEVICE) // PAGE].long() * PAGE
                + torch.arange(length - n, length, device=DEVICE) % PAGE
                for s, (length, n) in enumerate(sequences)
            ]
        ),
        counts.cumsum(0).int().to(DEVICE),
        torch.tensor([length for length, _ in sequences], dtype=torch.int32, device=DEVICE),
        table,
        PAGE,
        max(n for _, n in sequences),
    )
    q = torch.randn(len(positions), m.heads * m.head_dim, dtype=DTYPE, device=DEVICE)
    return q, pages, step


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Greatest difference over the greatest value."""
    return float((got.float() - want).abs().max() / want.abs().max())


def check(ops: TritonOps) -> dict[str, float]:
    """Errors against the reference in float32, relative to the greatest value: bf16 holds 0.004."""
    reference = ReferenceOps()
    found: dict[str, float] = {}
    for m in MODELS:
        for name, (n, k) in m.linears().items():
            weight = torch.randn(n, k, dtype=DTYPE, device=DEVICE) * k**-0.5
            for rows in (1, 3, 16):
                x = torch.randn(rows, k, dtype=DTYPE, device=DEVICE)
                got = linear.skinny_linear(x, weight, None, ops._counters)
                found[f"{m.name} {name} M={rows}"] = error(got, F.linear(x.float(), weight.float()))
        shape = (m.heads, m.kv_heads, m.head_dim, m.head_dim**-0.5)
        for case in ([(1000, 1)] * 3, [(5000, 1)], [(300, 300), (1500, 200)]):
            for dtype in (DTYPE, torch.float8_e4m3fn):
                q, pages, step = make_attention(ops, case, m, dtype)
                plain = Pages(pages.k.float(), pages.v.float(), PAGE)
                for window, softcap in ((None, None), (256, None), (None, 20.0)):
                    want = reference.attention(q.float(), plain, step, *shape, window, softcap)
                    for name, function in attention_variants(ops, q, pages, step, m, window, softcap).items():
                        key = f"{m.name} {name} {str(dtype)[6:]} {len(case)} x {case[-1]} window {window} cap {softcap}"
                        found[key] = error(function(), want)
    return found


def attention_variants(
    ops: TritonOps,
    q: torch.Tensor,
    pages: TritonPages,
    step: AttentionStep,
    m: Model,
    window: int | None = None,
    softcap: float | None = None,
) -> dict[str, Callable[[], torch.Tensor]]:
    shape = (m.heads, m.kv_heads, m.head_dim, m.head_dim**-0.5, window, softcap, None, None)
    found: dict[str, Callable[[], torch.Tensor]] = {}
    if len(q) == len(step.context_len):
        found["decode"] = lambda: decode.decode_attention(q, pages, step, *shape, ops._counters, ops._processors)
    found["prefill"] = lambda: prefill.prefill_attention(q, pages, step, *shape)
    if flash.supports(q, pages, m.head_dim, None):
        found["flash"] = lambda: flash.flash_attention(
            q, pages, step, m.heads, m.head_dim, m.head_dim**-0.5, window, softcap, None
        )
    return found


def bench_linears(bench: Bench, ops: TritonOps) -> None:
    for m in MODELS:
        for name, (n, k) in m.linears().items():
            copies = max(1, min(64, L2_BYTES // (2 * n * k)))
            weights = [torch.randn(n, k, dtype=DTYPE, device=DEVICE) * k**-0.5 for _ in range(copies)]
            for rows in (1, 2, 4, 8, 16, 32):
                x = torch.randn(rows, k, dtype=DTYPE, device=DEVICE)
                floor = bench.bytes_us(2 * (n * k + rows * (n + k)))
                calls = [partial(F.linear, x, w) for w in weights]
                bench.time(f"{m.name} {name}", f"M={rows} cuBLAS", calls, floor)
                if rows <= linear.MAX_ROWS:
                    more = (None, ops._counters)
                    calls = [partial(linear.skinny_linear, x, w, *more) for w in weights]
                    bench.time(f"{m.name} {name}", f"M={rows} own", calls, floor)


def bench_gated(bench: Bench, ops: TritonOps) -> None:
    """The product of gate and up and its activation, in two kernels and as the backend does it."""
    for m in MODELS:
        n, k = m.linears()["gate_up"]
        copies = max(1, min(64, L2_BYTES // (2 * n * k)))
        weights = [ops.pack(Dense(torch.randn(n, k, dtype=DTYPE, device=DEVICE) * k**-0.5)) for _ in range(copies)]
        for rows in (1, 4, 16, 256, 1024, 2048, 4096, 8192):
            x = torch.randn(rows, k, dtype=DTYPE, device=DEVICE)
            floor = max(bench.bytes_us(2 * (n * k + rows * (n // 2 + k))), 2 * rows * n * k / bench.rate / 1e6)
            two = [lambda w=w: ops.gate_up_act(ops.linear(x, w), "silu") for w in weights]
            bench.time(f"{m.name} gated", f"M={rows} two kernels", two, floor)
            one = [lambda w=w: ops.gated_linear(x, w, None, "silu") for w in weights]
            bench.time(f"{m.name} gated", f"M={rows} gated_linear", one, floor)


def bench_quantised(bench: Bench, ops: TritonOps) -> None:
    """All products of a layer with weights quantised at load."""
    m = MODELS[1]
    for method in ("int4", "nf4", "int8", "fp8"):
        for name, (n, k) in m.linears().items():
            if name == "head":
                continue
            plain = torch.randn(n, k, dtype=DTYPE, device=DEVICE) * k**-0.5
            weights = [ops.pack(quantize(plain, method)) for _ in range(max(1, min(64, L2_BYTES // (n * k // 2))))]
            for rows in (1, 16, 64, 256, 1024):
                x = torch.randn(rows, k, dtype=DTYPE, device=DEVICE)
                size = weights[0].nbytes + 2 * rows * (n + k)
                floor = max(bench.bytes_us(size), 2 * rows * n * k / bench.rate / 1e6)
                calls = [partial(ops.linear, x, w) for w in weights]
                bench.time(f"{m.name} {method} {name}", f"M={rows}", calls, floor)


def bench_attention(bench: Bench, ops: TritonOps) -> None:
    for m in MODELS:
        for batch, context in DECODES:
            size = 4 * batch * context * m.kv_heads * m.head_dim
            sets = [make_attention(ops, [(context, 1)] * batch, m) for _ in range(max(1, min(16, L2_BYTES // size)))]
            for name in attention_variants(ops, *sets[0], m):
                calls = [attention_variants(ops, *s, m)[name] for s in sets]
                bench.time(f"{m.name} decode", f"{batch} x {context} {name}", calls, bench.bytes_us(size))
            fp8 = [make_attention(ops, [(context, 1)] * batch, m, torch.float8_e4m3fn) for _ in sets]
            calls = [attention_variants(ops, *s, m)["decode"] for s in fp8]
            bench.time(f"{m.name} decode", f"{batch} x {context} decode, fp8 pages", calls, bench.bytes_us(size / 2))
        for case, sequences in PREFILLS.items():
            q, pages, step = make_attention(ops, sequences, m)
            pairs = sum(n * length - n * (n - 1) // 2 for length, n in sequences)
            floor = 4 * pairs * m.heads * m.head_dim / bench.rate / 1e6
            for name, call in attention_variants(ops, q, pages, step, m).items():
                bench.time(f"{m.name} attention", f"{case} {name}", [call], floor)


def bench_small(bench: Bench, ops: TritonOps) -> None:
    for m in MODELS:
        table = ops.pack(Dense(torch.randn(m.vocab, m.hidden, dtype=DTYPE)))
        weight = torch.ones(m.hidden, device=DEVICE)
        norm = torch.ones(m.head_dim, device=DEVICE) if m.qk_norm else None
        cos_sin = torch.randn(8192, m.head_dim, device=DEVICE)
        for rows in (1, 256, 4096):
            x = torch.randn(rows, m.hidden, dtype=DTYPE, device=DEVICE)
            residual = torch.randn_like(x)
            gate_up = torch.randn(rows, 2 * m.mlp, dtype=DTYPE, device=DEVICE)
            width = (m.heads + 2 * m.kv_heads) * m.head_dim
            qkv = torch.randn(rows, width, dtype=DTYPE, device=DEVICE)
            _, pages, step = make_attention(ops, [(rows, rows)], m)
            ids = torch.randint(0, m.vocab, (rows,), device=DEVICE)
            store = (m.heads, m.kv_heads, m.head_dim, norm, norm, 1e-6, cos_sin, False, pages, step)
            calls: dict[str, tuple[Callable[[], object], int]] = {
                "rms_norm": (lambda: ops.rms_norm(x, weight, 1e-6, residual), 8 * x.numel()),
                "gate_up_act": (lambda: ops.gate_up_act(gate_up, "silu"), 3 * gate_up.numel()),
                "norm_rope_store": (lambda: ops.qk_norm_rope_store(qkv, *store), 4 * qkv.numel()),
                "embed": (lambda: ops.embed(table, ids, 1.0), 4 * x.numel()),
            }
            for name, (call, size) in calls.items():
                bench.time(f"{m.name} {name}", f"{rows} rows", [call], bench.bytes_us(size))


def sample_step(rows: int, top_k: int, top_p: float) -> SampleStep:
    def full(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=DEVICE)

    return SampleStep(
        full(0.6, torch.float32),
        full(top_k, torch.int32),
        full(top_p, torch.float32),
        full(0.0, torch.float32),
        torch.arange(rows, device=DEVICE),
        torch.arange(rows, device=DEVICE),
    )


def bench_sampling(bench: Bench, ops: TritonOps) -> None:
    for rows in (1, 32, 256):
        for dtype in (DTYPE, torch.float32):
            logits = (torch.randn(rows, 151936, device=DEVICE) * 2).to(dtype)
            for name, top_k, top_p in (("temperature", 0, 1.0), ("top_k 50", 50, 1.0), ("top_p 0.9", 0, 0.9)):
                given = sample_step(rows, top_k, top_p)
                floor = bench.bytes_us(logits.nbytes)
                case = f"{rows} rows {str(dtype)[6:]} {name}"
                bench.time("sample", case, [lambda: ops.sample(logits, given)], floor)


def first_calls(ops: TritonOps) -> dict[str, float]:
    """Seconds of the first call of each op, compilation included (an empty cache: see ``main``)."""
    found: dict[str, float] = {}

    def first(name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found[name] = round(time.perf_counter() - start, 3)

    m = MODELS[0]
    x = torch.randn(4, m.hidden, dtype=DTYPE, device=DEVICE)
    norm = torch.ones(m.head_dim, device=DEVICE)
    weight = torch.ones(m.hidden, device=DEVICE)
    table = torch.randn(8192, m.head_dim, device=DEVICE)
    first("rms_norm", lambda: ops.rms_norm(x, weight, 1e-6))
    first("rms_norm with residual", lambda: ops.rms_norm(x, weight, 1e-6, x.clone()))
    first("gate_up_act", lambda: ops.gate_up_act(x, "silu"))
    first("sample", lambda: ops.sample(torch.randn(4, m.vocab, device=DEVICE), sample_step(4, 0, 1.0)))
    matrix = ops.pack(Dense(torch.randn(m.hidden, m.hidden)))
    for rows in (1, 4):
        first(f"linear M={rows}", lambda: ops.linear(x[:rows], matrix))
    for sequences in ([(100, 1)] * 4, [(100, 50)]):
        q, pages, step = make_attention(ops, sequences, m)
        for name, call in attention_variants(ops, q, pages, step, m).items():
            first(f"attention {name} T={len(q)}", call)
        qkv = torch.randn(len(q), (m.heads + 2 * m.kv_heads) * m.head_dim, dtype=DTYPE, device=DEVICE)
        store = (m.heads, m.kv_heads, m.head_dim, norm, norm, 1e-6, table, False, pages, step)
        first(f"norm_rope_store T={len(q)}", lambda: ops.qk_norm_rope_store(qkv, *store))
    return found


SECTIONS = {
    "linears": bench_linears,
    "gated": bench_gated,
    "quantised": bench_quantised,
    "attention": bench_attention,
    "small": bench_small,
    "sampling": bench_sampling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("ops_gpu.json"))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args()
    os.environ.setdefault("TRITON_CACHE_DIR", f"/tmp/quire-triton-{os.getpid()}")
    torch.manual_seed(0)
    ops, bench = TritonOps(DEVICE, DTYPE), Bench()
    bench.ceilings()
    report: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "ceilings": {"read_gb_s": bench.read, "copy_gb_s": bench.copy, "bf16_tflop_s": bench.rate},
        "first_call_s": first_calls(ops),
        "rows": bench.rows,
    }
    print("first calls, s:", report["first_call_s"], flush=True)
    errors = check(ops)
    report["errors"] = errors
    worst = sorted(errors, key=lambda name: -errors[name])[:5]
    print("greatest errors:", {name: round(errors[name], 4) for name in worst}, flush=True)
    for name in args.sections:
        SECTIONS[name](bench, ops)
        args.output.write_text(json.dumps(report, indent=1))
        torch.cuda.empty_cache()
    for row in bench.rows:
        us, floor = float(str(row["us"])), float(str(row["floor_us"]))
        print(f"{row['section']:26} {row['case']:34} {us:9.1f} us  {floor / us:5.0%} of the floor {floor:8.1f}")


if __name__ == "__main__":
    main()
