"""Speed of the CPU ops on SmolLM2-135M's shapes, beside torch's float32 products in the same run.

    python benchmarks/ops_cpu.py [--threads N] [--repeats R] [--json PATH]

Quire's and torch's runs alternate and the fastest of each counts, because other work disturbs both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from quire.ops.backend import AttentionStep, Ops, Pages, SampleStep, Weight
from quire.ops.cpu import load
from quire.ops.cpu.load import default_threads
from quire.ops.layouts import GroupedInt

LAYERS, HIDDEN, FFN, VOCAB = 30, 576, 1536, 49152
HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
LAYER_SHAPES = [((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN)]
ROWS = (1, 4, 16, 64, 256, 1024)
MOST_HEAD_ROWS = 64  # a step computes logits for its sequences only
CONTEXT = 512
GROUP = 32


def random_weight(n: int, k: int, bits: int) -> GroupedInt:
    scale = (torch.rand(n, k // GROUP) * 0.01).half()
    if bits == 4:
        return GroupedInt(torch.randint(0, 16, (n, k), dtype=torch.uint8), scale, -8 * scale, 4, GROUP)
    return GroupedInt(torch.randint(-128, 128, (n, k), dtype=torch.int8), scale, None, 8, GROUP)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fastest(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Best time of each, taken in turns."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats + 1):
        best = [min(b, seconds(run)) for b, run in zip(best, runs, strict=True)]
    return best


def floors(repeats: int) -> dict[str, float]:
    """What the machine gives: memory read in GB/s, float32 products in GMAC/s (torch, 1024 cubed)."""
    block, square = torch.ones(64 * 2**20), torch.randn(1024, 1024)
    read, product = fastest(repeats, block.sum, lambda: square @ square)
    return {"read_gbs": block.nbytes / read / 1e9, "torch_gmacs": 1024**3 / product / 1e9}


def products(ops: Ops, repeats: int) -> list[dict[str, float]]:
    layers = [[ops.pack(random_weight(n, k, 4)) for n, k in LAYER_SHAPES] for _ in range(LAYERS)]
    head = ops.pack(random_weight(VOCAB, HIDDEN, 8))
    dense = [[torch.randn(n, k) for n, k in LAYER_SHAPES] for _ in range(LAYERS)]
    dense_head = torch.randn(VOCAB, HIDDEN)
    results = []
    for rows in ROWS:
        inputs = {k: torch.randn(rows, k) for k in (HIDDEN, FFN)}
        with_head = rows <= MOST_HEAD_ROWS

        def quire(inputs: dict[int, torch.Tensor] = inputs, with_head: bool = with_head) -> None:
            for weight in (w for layer in layers for w in layer):
                ops.linear(inputs[weight.shape[1]], weight)
            if with_head:
                ops.linear(inputs[HIDDEN], head)

        def other(inputs: dict[int, torch.Tensor] = inputs, with_head: bool = with_head) -> None:
            for matrix in (w for layer in dense for w in layer):
                F.linear(inputs[matrix.shape[1]], matrix)
            if with_head:
                F.linear(inputs[HIDDEN], dense_head)

        used: list[Weight] = [w for layer in layers for w in layer] + ([head] if with_head else [])
        macs = rows * sum(w.shape[0] * w.shape[1] for w in used)
        own, torchs = fastest(repeats if rows < 256 else max(2, repeats // 4), quire, other)
        results.append(
            {
                "rows": rows,
                "ms": own * 1e3,
                "gmacs": macs / own / 1e9,
                "gbs": sum(w.nbytes for w in used) / own / 1e9,
                "torch_ms": torchs * 1e3,
            }
        )
    return results


def attention_step(sequences: int, context: int, queries: int) -> AttentionStep:
    page_size = 16
    pages = -(-context // page_size)
    tokens = sequences * queries
    table = torch.randperm(sequences * pages).int().view(sequences, pages)
    positions = torch.arange(context - queries, context).repeat(sequences)
    owner = torch.arange(sequences).repeat_interleave(queries)
    slots = table[owner, positions // page_size].long() * page_size + positions % page_size
    start = torch.arange(0, tokens + 1, queries, dtype=torch.int32)
    lengths = torch.full((sequences,), context, dtype=torch.int32)
    return AttentionStep(positions.int(), slots, start, lengths, table, page_size, queries)


def attentions(ops: Ops, repeats: int) -> list[dict[str, float | str]]:
    """One step's attention in all layers: decode of some sequences, or prefill of one prompt."""
    results: list[dict[str, float | str]] = []
    for dtype in (torch.float32, torch.float16):
        for sequences, context, queries in ((1, CONTEXT, 1), (16, CONTEXT, 1), (1, CONTEXT, CONTEXT), (1, 1024, 1024)):
            step = attention_step(sequences, context, queries)
            layers = [ops.new_pages(step.block_table.numel(), 16, KV_HEADS, HEAD_DIM, dtype) for _ in range(LAYERS)]
            for pages in layers:
                pages.k.normal_()
                pages.v.normal_()
            q = torch.randn(sequences * queries, HEADS * HEAD_DIM)

            def run(layers: list[Pages] = layers, q: torch.Tensor = q, step: AttentionStep = step) -> None:
                for pages in layers:
                    ops.attention(q, pages, step, HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5, None, None)

            (best,) = fastest(repeats if queries == 1 else max(2, repeats // 4), run)
            pairs = sequences * queries * (context - (queries - 1) / 2)
            results.append(
                {
                    "pages": str(dtype).removeprefix("torch."),
                    "sequences": sequences,
                    "context": context,
                    "queries": queries,
                    "ms": best * 1e3,
                    "gmacs": pairs * HEADS * HEAD_DIM * 2 * LAYERS / best / 1e9,
                    "gbs": sum(p.k.nbytes + p.v.nbytes for p in layers) / best / 1e9,
                }
            )
    return results


def sampling(ops: Ops, repeats: int) -> list[dict[str, float | str]]:
    rows = 16
    logits = torch.randn(rows, VOCAB) * 3
    results: list[dict[str, float | str]] = []
    for name, temperature, top_k, top_p in (
        ("greedy", 0.0, 0, 1.0),
        ("temperature", 0.8, 0, 1.0),
        ("top_p", 0.8, 0, 0.95),
        ("top_k", 0.8, 40, 1.0),
    ):
        step = SampleStep(
            torch.full((rows,), temperature),
            torch.full((rows,), top_k, dtype=torch.int32),
            torch.full((rows,), top_p),
            torch.zeros(rows),
            torch.arange(rows),
            torch.arange(rows),
        )

        def run(step: SampleStep = step) -> None:
            ops.sample(logits, step)

        (best,) = fastest(repeats, run)
        results.append({"kind": name, "rows": rows, "ms": best * 1e3})
    return results


def show(title: str, rows: Sequence[Mapping[str, float | str]]) -> None:
    print(f"\n{title}")
    print("  ".join(f"{name:>10}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{v:>10.2f}" if isinstance(v, float) else f"{v:>10}" for v in row.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ops = load(threads=args.threads)
    with torch.inference_mode():
        report = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "backend": f"{ops.name} {getattr(ops, 'instruction_set', '')}".strip(),
            "threads": args.threads,
            "floors": floors(args.repeats),
            "products": products(ops, args.repeats),
            "attention": attentions(ops, args.repeats),
            "sampling": sampling(ops, args.repeats),
        }
    print({k: report[k] for k in ("machine", "backend", "threads", "floors")})
    show(f"All products of a step (head for up to {MOST_HEAD_ROWS} rows)", report["products"])
    show("Attention of all layers", report["attention"])
    show(f"Sampling from {VOCAB} logits", report["sampling"])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
