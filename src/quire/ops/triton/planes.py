"""Products with weights of 2 to 6 bits and with 4-bit codes, which widen in registers on their way to the tensor cores.

Block b of ``8 * WIDTH`` inputs of output n lies at ``[b, n]`` of up to three planes: 4, 2 and 1 bits of each number, in
words of 32, 16 and 8 bits. Field i of word j belongs to input ``8 * WIDTH * b + WIDTH * i + j``: the same field of all
words is a matrix that a ``dot`` takes as it is, and a block of outputs is one stretch of memory. Weights are the left
operand, so that they stay in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.narrow import PlanesWeight
from quire.ops.triton.search import owner_of
from quire.ops.triton.tiles import Experts, Tiles, gate_block, outputs_of, prefetch, splits_for

_MANY_OUTPUTS, _DEEP = 16384, 8192
ZERO, MINIMUM, TABLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


def _nibbles(magic: int) -> str:
    """PTX: the 4-bit fields of two neighbouring words, each a pair of 16-bit floats ``base + field``."""
    lines = ["{ .reg .b32 half, t;"]
    for i in range(8):
        if i % 4 == 0:
            lines.append(f"prmt.b32 half, $8, $9, 0x{'7632' if i else '5410'};")
        source = "half"
        if i % 4:
            lines.append(f"shr.u32 t, half, {4 * (i % 4)};")
            source = "t"
        lines.append(f"lop3.b32 ${i}, {source}, 0x000F000F, 0x{magic:04X}{magic:04X}, 0xEA;")
    return "\n".join([*lines, "}"])


def _lookups() -> str:
    """PTX: the same fields as entries of a table, whose bytes come in $10 to $25: low ones, then high ones.

    A ``prmt`` looks up four fields in half of a table of bytes, by three bits of each; the fourth chooses the half.
    """
    lines = ["{ .reg .b32 word, low, choice, a, b, l, h, " + ", ".join(f"p{i}, q{i}" for i in range(4)) + ";"]
    for element, name in ((8, "p"), (9, "q")):
        for half in range(2):
            lines.append(f"shr.u32 word, ${element}, {16 * half};")
            lines.append("and.b32 low, word, 0x7777;")
            lines.append("shr.u32 choice, word, 1;")
            lines.append("lop3.b32 choice, choice, 0x4444, 0x3210, 0xEA;")
            for byte, target in enumerate("lh"):
                # Scalars come twice, once for each element: every other operand will do.
                t = [f"${10 + 2 * (4 * byte + i)}" for i in range(4)]
                lines.append(f"prmt.b32 a, {t[0]}, {t[1]}, low;")
                lines.append(f"prmt.b32 b, {t[2]}, {t[3]}, low;")
                lines.append(f"prmt.b32 {target}, a, b, choice;")
            lines.append(f"prmt.b32 {name}{2 * half}, l, h, 0x5140;")
            lines.append(f"prmt.b32 {name}{2 * half + 1}, l, h, 0x7362;")
    for i in range(4):
        lines.append(f"prmt.b32 ${2 * i}, p{i}, q{i}, 0x5410;")
        lines.append(f"prmt.b32 ${2 * i + 1}, p{i}, q{i}, 0x7632;")
    return "\n".join([*lines, "}"])


_EIGHT = ",".join(["=r"] * 8)
_NIBBLES_BF16, _NIBBLES_FP16 = tl.constexpr(_nibbles(0x4300)), tl.constexpr(_nibbles(0x6400))
_LOOKUPS = tl.constexpr(_lookups())
_NIBBLES_REGS = tl.constexpr(_EIGHT + ",r,r")
_LOOKUPS_REGS = tl.constexpr(_EIGHT + ",r" * 18)
_AFFINE_REGS = tl.constexpr("=r,r,r,r,r")
_AFFINE_BF16 = tl.constexpr("{ .reg .b32 t; sub.rn.bf16x2 t, $1, $2; fma.rn.bf16x2 $0, t, $3, $4; }")
_AFFINE_FP16 = tl.constexpr("{ .reg .b32 t; sub.rn.f16x2 t, $1, $2; fma.rn.f16x2 $0, t, $3, $4; }")
_SCALED_REGS = tl.constexpr("=r,r,r,r")
_SCALED_BF16 = tl.constexpr("{ .reg .b32 t; sub.rn.bf16x2 t, $1, $2; mul.rn.bf16x2 $0, t, $3; }")
_SCALED_FP16 = tl.constexpr("{ .reg .b32 t; sub.rn.f16x2 t, $1, $2; mul.rn.f16x2 $0, t, $3; }")


@triton.jit
def _fields(plane4, plane2, plane1, FIELD: tl.constexpr, BITS: tl.constexpr):
    """One field of all words."""
    if BITS == 4:
        return (plane4 >> (4 * FIELD)) & 15
    if BITS == 2:
        return (plane2.to(tl.int32) >> (2 * FIELD)) & 3
    if BITS == 3:
        return ((plane2.to(tl.int32) >> (2 * FIELD)) & 3) | (((plane1.to(tl.int32) >> FIELD) & 1) << 2)
    if BITS == 5:
        return ((plane4 >> (4 * FIELD)) & 15) | (((plane1.to(tl.int32) >> FIELD) & 1) << 4)
    return ((plane4 >> (4 * FIELD)) & 15) | (((plane2.to(tl.int32) >> (2 * FIELD)) & 3) << 4)


@triton.jit
def _floats(fields, MAGIC: tl.constexpr, DTYPE: tl.constexpr):
    """``base + fields``: in 16 bits by setting the bits of a mantissa."""
    return fields.to(DTYPE) if MAGIC == 0 else (fields | MAGIC).to(tl.int16).to(DTYPE, bitcast=True)


@triton.jit
def _pair(meta_ptr, at, DTYPE: tl.constexpr):
    """Scale and zero (or minimum) of each output in one group."""
    if tl.float32 == DTYPE:
        scale = tl.load(meta_ptr + 2 * at)
        second = tl.load(meta_ptr + 2 * at + 1)
    else:  # Triton compiles what follows a return
        both = tl.load(meta_ptr + at)
        scale = (both & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
        second = ((both >> 16) & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
    return scale, second


@triton.jit
def _affine(t, scale, second, base, KIND: tl.constexpr, PTX: tl.constexpr, DTYPE: tl.constexpr):
    """Weights of the fields' floats."""
    if KIND == TABLE:
        return t * scale
    if PTX:
        brain: tl.constexpr = tl.bfloat16 == DTYPE
        if KIND == ZERO:
            code: tl.constexpr = _SCALED_BF16 if brain else _SCALED_FP16
            return tl.inline_asm_elementwise(code, _SCALED_REGS, [t, second, scale], t.dtype, True, 2)
        affine: tl.constexpr = _AFFINE_BF16 if brain else _AFFINE_FP16
        args = [t, tl.full([1, 1], base, t.dtype), scale, second]
        return tl.inline_asm_elementwise(affine, _AFFINE_REGS, args, t.dtype, True, 2)
    if KIND == ZERO:
        return (t - second) * scale
    return (t - base) * scale + second


@triton.jit
def _scaled_sum(part, sums, scale, second, base, KIND: tl.constexpr):
    """The sum of weights times inputs over a group, from that of fields' floats times inputs and that of inputs."""
    if KIND == TABLE:
        return part * scale[:, None]
    if KIND == ZERO:
        return (part - sums * second[:, None]) * scale[:, None]
    return (part - sums * base) * scale[:, None] + sums * second[:, None]


@triton.jit
def _eight(words, table_ptr, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """All eight 4-bit fields as floats, by PTX."""
    if KIND == TABLE:
        t0, t1 = tl.load(table_ptr), tl.load(table_ptr + 1)
        t2, t3 = tl.load(table_ptr + 2), tl.load(table_ptr + 3)
        t4, t5 = tl.load(table_ptr + 4), tl.load(table_ptr + 5)
        t6, t7 = tl.load(table_ptr + 6), tl.load(table_ptr + 7)
        args = [words, t0, t1, t2, t3, t4, t5, t6, t7]
        if tl.bfloat16 == DTYPE:
            eight = tl.inline_asm_elementwise(_LOOKUPS, _LOOKUPS_REGS, args, (tl.bfloat16,) * 8, True, 2)
        else:
            eight = tl.inline_asm_elementwise(_LOOKUPS, _LOOKUPS_REGS, args, (tl.float16,) * 8, True, 2)
    elif tl.bfloat16 == DTYPE:
        eight = tl.inline_asm_elementwise(_NIBBLES_BF16, _NIBBLES_REGS, [words], (tl.bfloat16,) * 8, True, 2)
    else:
        eight = tl.inline_asm_elementwise(_NIBBLES_FP16, _NIBBLES_REGS, [words], (tl.float16,) * 8, True, 2)
    return eight


@triton.jit(do_not_specialize=["rows", "splits", "experts"])
def _product(
    x_ptr,
    plane4_ptr,
    plane2_ptr,
    plane1_ptr,
    meta_ptr,
    table_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,  # [splits, rows, N] float32
    counter_ptr,  # one int32 for each tile, zero before and after
    offsets_ptr,  # of experts: as in ``Routes``
    rows_ptr,
    rows,
    N,
    STORED,  # outputs of all experts
    K,
    splits,
    experts,
    BITS: tl.constexpr,
    KIND: tl.constexpr,
    MAGIC: tl.constexpr,
    BASE: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,  # words of a block that are taken at a time
    SUMS: tl.constexpr,  # scale sums of products, not weights: cheaper for few rows
    RAGGED: tl.constexpr,  # K is no multiple of a block
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EXPERTS: tl.constexpr,
    GATHER: tl.constexpr,
    PTX: tl.constexpr,
    ACTIVATION: tl.constexpr,  # "": none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    BLOCK: tl.constexpr = 8 * WIDTH
    tile = tl.program_id(0)
    n, real = outputs_of(tl.program_id(1), N, BLOCK_N, ACTIVATION != "")
    split = tl.program_id(2)
    j = tl.arange(0, STEP)
    begin = 0
    end = tl.cdiv(K, BLOCK)
    if SPLIT:
        share = tl.cdiv(end, splits)
        begin = split * share
        end = tl.minimum(begin + share, end)
    if PDL and not EXPERTS:  # weights come to the L2 while the kernel ahead still runs
        for ahead in tl.static_range(4):
            block = tl.minimum(begin + ahead, end - 1)
            place = (block * STORED + tl.where(real, n, 0).to(tl.int64)) * WIDTH
            prefetch((plane4_ptr if BITS >= 4 else plane2_ptr) + place)
    inputs_ready(PDL)
    at = n
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    last = rows
    expert = 0
    if EXPERTS:
        expert = owner_of(tile, offsets_ptr, experts, BLOCK_M)
        first = tl.load(offsets_ptr + expert)
        last = tl.load(offsets_ptr + expert + 1)
        first += (tile - first // BLOCK_M - expert) * BLOCK_M
        if first >= last:
            return
        row = first + tl.arange(0, BLOCK_M)
        at = expert * N + n
    here = row < last
    source = row
    if GATHER:
        source = tl.load(rows_ptr + row, mask=here, other=0)
    x_rows = x_ptr + source.to(tl.int64)[:, None] * K + j[None, :]
    at = tl.where(real, at, 0).to(tl.int64)  # an output beyond the last one is read as the first, and never written
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    ones = tl.full([BLOCK_N, STEP], 1.0, DTYPE)
    for piece in tl.range(begin * (WIDTH // STEP), end * (WIDTH // STEP)):
        block = piece // (WIDTH // STEP)
        skip = piece % (WIDTH // STEP) * STEP
        place = block * STORED + at
        words = place[:, None] * WIDTH + (skip + j)[None, :]
        plane4 = tl.load(plane4_ptr + words) if BITS >= 4 else 0
        plane2 = tl.load(plane2_ptr + words) if BITS == 2 or BITS == 3 or BITS == 6 else 0
        plane1 = tl.load(plane1_ptr + words) if BITS == 3 or BITS == 5 else 0
        if PTX and BITS == 4:
            eight = _eight(plane4, table_ptr, KIND, DTYPE)
        for i in tl.static_range(8):
            if i * WIDTH % GROUP == 0:
                group = (block * BLOCK + i * WIDTH) // GROUP
                scale, second = _pair(meta_ptr, group * STORED + at, DTYPE)
                if SUMS:
                    part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
                    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            if PTX and BITS == 4:
                t = eight[i]
            elif KIND == TABLE:
                t = tl.load(table_ptr + _fields(plane4, plane2, plane1, i, BITS)).to(DTYPE)
            else:
                t = _floats(_fields(plane4, plane2, plane1, i, BITS), MAGIC, DTYPE)
            k = block * BLOCK + i * WIDTH + skip
            mask = here[:, None]
            if RAGGED:
                mask = mask & (k + j < K)[None, :]
            x = tl.trans(tl.load(x_rows + k, mask=mask, other=0.0))
            if SUMS:
                part = tl.dot(t, x, part, input_precision="ieee")
                if KIND != TABLE:
                    sums = tl.dot(ones, x, sums, input_precision="ieee")
                if (i + 1) * WIDTH % GROUP == 0 or i == 7:
                    acc += _scaled_sum(part, sums, scale.to(tl.float32), second.to(tl.float32), BASE, KIND)
            else:
                w = _affine(t, scale[:, None], second[:, None], BASE, KIND, PTX, DTYPE)
                acc = tl.dot(w, x, acc, input_precision="ieee")
    mask = here[None, :] & real[:, None]
    if SPLIT:
        cell = row[None, :] * N + n[:, None]
        tl.store(partial_ptr + split * rows.to(tl.int64) * N + cell, acc, mask=mask)
        tl.debug_barrier()  # all of the program's stores come before its sign
        sign = counter_ptr + tl.program_id(1) * tl.num_programs(0) + tile
        if tl.atomic_add(sign, 1, sem="acq_rel") != splits - 1:
            return
        tl.store(sign, 0)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.range(splits):  # in order: the sum does not depend on which program came last
            acc += tl.load(partial_ptr + other * rows.to(tl.int64) * N + cell, mask=mask, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + expert * N + n, mask=real, other=0.0).to(tl.float32)[:, None]
    if ACTIVATION != "":
        acc = gate_block(acc, ACTIVATION)
        n, real = outputs_of(tl.program_id(1), N // 2, BLOCK_N // 2, False)
        N = N // 2
        mask = here[None, :] & real[:, None]
    out = out_ptr + row.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out, acc.to(DTYPE), mask=mask)


@triton.jit(do_not_specialize=["rows", "multiplier"])
def _expand(
    ids_ptr,
    plane4_ptr,
    plane2_ptr,
    plane1_ptr,
    meta_ptr,
    table_ptr,
    out_ptr,
    rows,
    STORED,
    K,
    multiplier,
    BITS: tl.constexpr,
    KIND: tl.constexpr,
    MAGIC: tl.constexpr,
    BASE: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    RAGGED: tl.constexpr,
    GATHER: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    inputs_ready(PDL)
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    block = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    here = row < rows
    at = tl.where(here, row, 0).to(tl.int64)
    if GATHER:
        at = tl.load(ids_ptr + row, mask=here, other=0)
    j = tl.arange(0, WIDTH)
    place = block * STORED + at
    words = place[:, None] * WIDTH + j[None, :]
    plane4 = tl.load(plane4_ptr + words) if BITS >= 4 else 0
    plane2 = tl.load(plane2_ptr + words) if BITS == 2 or BITS == 3 or BITS == 6 else 0
    plane1 = tl.load(plane1_ptr + words) if BITS == 3 or BITS == 5 else 0
    if PTX and BITS == 4:
        eight = _eight(plane4, table_ptr, KIND, DTYPE)
    for i in tl.static_range(8):
        k = block * 8 * WIDTH + i * WIDTH
        if i * WIDTH % GROUP == 0:
            scale, second = _pair(meta_ptr, (k // GROUP) * STORED + at, DTYPE)
        if PTX and BITS == 4:
            t = eight[i]
        elif KIND == TABLE:
            t = tl.load(table_ptr + _fields(plane4, plane2, plane1, i, BITS)).to(DTYPE)
        else:
            t = _floats(_fields(plane4, plane2, plane1, i, BITS), MAGIC, DTYPE)
        w = _affine(t, scale[:, None], second[:, None], BASE, KIND, PTX, DTYPE)
        if GATHER:
            w = (w.to(tl.float32) * multiplier).to(DTYPE)
        mask = here[:, None]
        if RAGGED:
            mask = mask & (k + j < K)[None, :]
        tl.store(out_ptr + row.to(tl.int64)[:, None] * K + (k + j)[None, :], w, mask=mask)


def product(
    x: torch.Tensor,
    weight: PlanesWeight,
    bias: torch.Tensor | None,
    counters: torch.Tensor,
    tiles: Tiles | None = None,
    experts: Experts | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """``x [T, K] @ weight.T + bias``, gated by ``activation``; with ``experts`` as ``Ops.grouped_linear``."""
    x = x.contiguous()
    stored, k = weight.shape
    count = 1 if experts is None else len(experts.offsets) - 1
    n = stored // count
    rows = x.shape[0] if experts is None or experts.rows is None else experts.rows.shape[0]
    out = torch.empty(rows, n // 2 if activation else n, dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    t = tiles or plan_tiles(rows // count if experts else rows, n, k, weight, experts is not None, x.dtype.itemsize)
    m_tiles = triton.cdiv(rows, t.block_m) if experts is None else rows // t.block_m + count
    partial = torch.empty(t.splits if t.splits > 1 else 0, rows, n, dtype=torch.float32, device=x.device)
    ptx = x.device.type == "cuda" and x.dtype.itemsize == 2
    table = weight.table_bytes if ptx else weight.table
    launch(
        _product,
        (m_tiles, triton.cdiv(n, t.block_n), t.splits),
        x,
        weight.plane(4),
        weight.plane(2),
        weight.plane(1),
        weight.meta,
        weight.meta if table is None else table,
        x if bias is None else bias,
        out,
        partial,
        counters,
        counters if experts is None else experts.offsets,
        counters if experts is None or experts.rows is None else experts.rows,
        rows,
        n,
        stored,
        k,
        t.splits,
        count,
        BITS=weight.bits,
        KIND=weight.kind,
        MAGIC=weight.magic[0],
        BASE=weight.base,
        GROUP=weight.group,
        WIDTH=weight.width,
        STEP=min(t.step, weight.width),
        SUMS=t.block_m <= 8 and weight.table is None,
        RAGGED=k % (8 * weight.width) != 0,
        HAS_BIAS=bias is not None,
        SPLIT=t.splits > 1,
        EXPERTS=experts is not None,
        GATHER=experts is not None and experts.rows is not None,
        PTX=ptx,
        ACTIVATION=activation or "",
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        num_warps=t.warps,
        num_stages=t.stages,
    )
    return out


def expand(
    weight: PlanesWeight, dtype: torch.dtype, ids: torch.Tensor | None = None, multiplier: float = 1.0
) -> torch.Tensor:
    """Plain weights, or the rows ``ids`` of them times ``multiplier``."""
    stored, k = weight.shape
    device = weight.meta.device
    rows = stored if ids is None else len(ids)
    out = torch.empty(rows, k, dtype=dtype, device=device)
    if rows == 0:
        return out
    ptx = device.type == "cuda" and dtype.itemsize == 2
    table = weight.table_bytes if ptx else weight.table
    block_n = 64 if ids is None else 16
    launch(
        _expand,
        (triton.cdiv(rows, block_n), triton.cdiv(k, 8 * weight.width)),
        weight.meta if ids is None else ids,
        weight.plane(4),
        weight.plane(2),
        weight.plane(1),
        weight.meta,
        weight.meta if table is None else table,
        out,
        rows,
        stored,
        k,
        multiplier,
        BITS=weight.bits,
        KIND=weight.kind,
        MAGIC=weight.magic[0],
        BASE=weight.base,
        GROUP=weight.group,
        WIDTH=weight.width,
        RAGGED=k % (8 * weight.width) != 0,
        GATHER=ids is not None,
        PTX=ptx,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return out


def plan_tiles(rows: int, n: int, k: int, weight: PlanesWeight, grouped: bool = False, item: int = 2) -> Tiles:
    """By shape alone, so that a row's result depends on nothing but the batch size (H100: benchmarks/results).

    ``item``: bytes of an input.
    """
    if item > 2:  # for exactness, not speed
        return Tiles(16, 64, 1, 4, 2)
    blocks = triton.cdiv(k, 8 * weight.width)
    block_m = max(16 if grouped or weight.table is not None else 8, triton.next_power_of_2(rows))
    if grouped:
        return Tiles(block_m, 64, 1, 4, 3) if rows <= 64 else Tiles(128, 128, 1, 8, 2, step=16)
    if rows > 64:
        if n >= _MANY_OUTPUTS and rows > 192:
            return Tiles(128, 256, 1, 8, 3, step=16)
        return Tiles(64, 256, splits_for(triton.cdiv(rows, 64) * triton.cdiv(n, 256), blocks, 132), 8, 3)
    if weight.table is not None:  # a look-up takes more registers
        return Tiles(block_m, 64, splits_for(triton.cdiv(n, 64), blocks, 900), 4, 3)
    if block_m == 8 and n < _MANY_OUTPUTS:
        deep = k >= _DEEP
        return Tiles(8, 64, splits_for(triton.cdiv(n, 64), blocks, 528 if deep else 800), *((4, 3) if deep else (2, 2)))
    if block_m == 16 and n >= _MANY_OUTPUTS:
        return Tiles(16, 64, 1, 2, 4)
    if block_m == 64:
        splits = splits_for(triton.cdiv(n, 128), blocks, 200)
        return Tiles(64, 128, splits, 8, 3 if splits > 1 else 2)
    return Tiles(block_m, 128, splits_for(triton.cdiv(n, 128), blocks, 528), 2 if block_m == 8 else 4, 3)
