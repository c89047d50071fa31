"""Products with weights of 2 to 6 bits and with 4-bit codes, which widen in registers on their way to the tensor cores.

Block b of ``BLOCK`` inputs of output n lies at ``[b, n]`` of up to three planes: 4, 2 and 1 bits of each number, in 16
words of 32, 16 and 8 bits. The order in a block is that in which threads hold the left operand of a product, a word to
a thread (``narrow.FIELDS``): a word's fields widen to registers that the tensor cores take as they are, and the tile of
inputs keeps its own order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from quire.ops.triton.launch import inputs_ready, launch
from quire.ops.triton.narrow import PLANES_BLOCK, PlanesWeight
from quire.ops.triton.tiles import (
    Experts,
    Tiles,
    expert_rows,
    first_row,
    inputs_of,
    leave_part,
    outputs_of,
    prefetch,
    settled,
    sources_of,
    spread,
    store_outputs,
    sum_parts,
)

_PROCESSORS, _SHARED_BYTES = 132, 227 << 10  # of a Hopper GPU; shared memory is of each
_TILES = {  # rows and outputs: warps, and how many programs' registers a multiprocessor has
    (16, 64): (4, 6),
    (16, 128): (4, 6),
    (32, 64): (4, 6),
    (32, 128): (4, 6),
    (64, 64): (4, 4),
    (64, 128): (4, 2),
    (128, 64): (4, 2),
    (128, 128): (4, 2),
    (256, 64): (4, 2),
    (256, 128): (8, 1),
}
ZERO, MINIMUM, TABLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
WORDS, BLOCK = tl.constexpr(16), tl.constexpr(PLANES_BLOCK)  # of a block: words in a plane, and inputs
_PAIRS = ",".join(["=h"] * 8)


@cache
def _widen(kind: int, dtype: torch.dtype, base: float) -> tuple[str, str]:
    """PTX and its registers: the eight 4-bit fields of word $8, as weights in 16 bits.

    A pair of fields becomes a pair of floats ``base + field`` when the bits of a mantissa are set. $9 and $10: scale
    and zero (or minimum) of the first pairs, twice in a register; $11 and $12: of the others.
    """
    pairs, magic = ("bf16x2", "4300") if dtype is torch.bfloat16 else ("f16x2", "6400")
    constant = f"{torch.tensor(base, dtype=dtype).view(torch.int16).item():04X}"
    lines = ["{ .reg .b32 t, a;"]
    for pair in range(4):
        source = "$8"
        if pair:
            lines.append(f"shr.u32 t, $8, {4 * pair};")
            source = "t"
        lines.append(f"lop3.b32 a, {source}, 0x000F000F, 0x{magic}{magic}, 0xEA;")
        scale, second = ("$9", "$10") if pair < 2 else ("$11", "$12")
        if kind == ZERO.value:
            lines += [f"sub.rn.{pairs} a, a, {second};", f"mul.rn.{pairs} a, a, {scale};"]
        else:
            lines += [f"mov.b32 t, 0x{constant}{constant};", f"sub.rn.{pairs} a, a, t;"]
            lines.append(f"fma.rn.{pairs} a, a, {scale}, {second};")
        lines.append(f"mov.b32 {{${pair}, ${pair + 4}}}, a;")
    return "\n".join([*lines, "}"]), _PAIRS + ",r,r,r,r,r"


@cache
def _look_up(dtype: torch.dtype, table: tuple[int, ...]) -> tuple[str, str]:
    """PTX and its registers: as ``_widen``, but fields are entries of a ``PlanesWeight.table_bytes``.

    A ``prmt`` looks up four fields in half of a table of bytes, by three bits of each; the fourth chooses the half.
    """
    pairs = "bf16x2" if dtype is torch.bfloat16 else "f16x2"
    lines = ["{ .reg .b32 word, low, choice, a, b, l, h, p0, p1, q0, q1;"]
    for half, name in enumerate("pq"):
        lines.append(f"shr.u32 word, $8, {16 * half};")
        lines.append("and.b32 low, word, 0x7777;")
        lines.append("shr.u32 choice, word, 1;")
        lines.append("lop3.b32 choice, choice, 0x4444, 0x3210, 0xEA;")
        for byte, target in enumerate("lh"):
            t = [f"0x{word:08X}" for word in table[4 * byte : 4 * byte + 4]]
            lines.append(f"prmt.b32 a, {t[0]}, {t[1]}, low;")
            lines.append(f"prmt.b32 b, {t[2]}, {t[3]}, low;")
            lines.append(f"prmt.b32 {target}, a, b, choice;")
        lines.append(f"prmt.b32 {name}0, l, h, 0x5140;")
        lines.append(f"prmt.b32 {name}1, l, h, 0x7362;")
    for pair in range(4):
        scale = "$9" if pair < 2 else "$11"
        lines.append(f"prmt.b32 a, p{pair // 2}, q{pair // 2}, 0x{'7632' if pair % 2 else '5410'};")
        lines.append(f"mul.rn.{pairs} a, a, {scale};")
        lines.append(f"mov.b32 {{${pair}, ${pair + 4}}}, a;")
    return "\n".join([*lines, "}"]), _PAIRS + ",r,r,r,r,r"


@triton.jit
def _field(plane4, plane2, plane1, FIELD: tl.constexpr, BITS: tl.constexpr):
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
def _pair(meta_ptr, at, DTYPE: tl.constexpr):
    """Scale and zero (or minimum) in one group."""
    if tl.float32 == DTYPE:
        scale = tl.load(meta_ptr + 2 * at)
        second = tl.load(meta_ptr + 2 * at + 1)
    else:  # Triton compiles what follows a return
        both = tl.load(meta_ptr + at)
        scale = (both & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
        second = ((both >> 16) & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
    return scale, second


@triton.jit
def _twice(meta_ptr, at):
    """Scale and zero (or minimum) in one group, each twice in a register."""
    both = tl.load(meta_ptr + at)
    return (both & 0xFFFF) * 0x10001, ((both >> 16) & 0xFFFF) * 0x10001


@triton.jit
def _of_words(groups, GROUP: tl.constexpr):
    """What ``groups [N, BLOCK / GROUP]`` say, for each word of a block: of its first four fields, and of the others.

    A word's fields belong to 32 inputs in a row: the first four of them to the first 16, in pairs.
    """
    if GROUP >= BLOCK:
        first = groups
        rest = groups
    elif GROUP == 16:
        first, rest = tl.split(groups.reshape(groups.shape[0], 4, 2))
        first = spread(first, WORDS)
        rest = spread(rest, WORDS)
    else:
        first = spread(groups, WORDS)
        rest = first
    return first, rest


@triton.jit
def _weight(
    plane4,
    plane2,
    plane1,
    scale,
    second,
    table_ptr,
    FIELD: tl.constexpr,
    BITS: tl.constexpr,
    KIND: tl.constexpr,
    MAGIC: tl.constexpr,
    BASE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Weights of one field of all words."""
    field = _field(plane4, plane2, plane1, FIELD, BITS)
    if KIND == TABLE:
        return (tl.load(table_ptr + field) * scale).to(DTYPE)
    t = field.to(DTYPE) if MAGIC == 0 else (field | MAGIC).to(tl.int16).to(DTYPE, bitcast=True)
    if KIND == ZERO:
        return ((t - second) * scale).to(DTYPE)
    return ((t - BASE) * scale + second).to(DTYPE)


@triton.jit
def _block(
    plane4_ptr,
    plane2_ptr,
    plane1_ptr,
    meta_ptr,
    table_ptr,
    block,
    at,  # [N] outputs
    STORED,
    BITS: tl.constexpr,
    KIND: tl.constexpr,
    MAGIC: tl.constexpr,
    BASE: tl.constexpr,
    GROUP: tl.constexpr,
    CODE: tl.constexpr,  # PTX and its registers; "": none
    REGISTERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """A block's weights ``[N, BLOCK]``."""
    j = tl.arange(0, WORDS)
    words = (block * STORED + at)[:, None] * WORDS + j[None, :]
    plane4 = tl.load(plane4_ptr + words) if BITS >= 4 else 0
    plane2 = tl.load(plane2_ptr + words) if BITS == 2 or BITS == 3 or BITS == 6 else 0
    plane1 = tl.load(plane1_ptr + words) if BITS == 3 or BITS == 5 else 0
    if GROUP >= BLOCK:
        metas = (at + STORED * (block * BLOCK // GROUP))[:, None]
    else:
        metas = (block * STORED + at)[:, None] * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)[None, :]
    if CODE != "":
        scale, second = _twice(meta_ptr, metas)
        scale, scale2 = _of_words(scale, GROUP)
        second, second2 = _of_words(second, GROUP)
        args = [plane4, scale, second, scale2, second2]
        if tl.bfloat16 == DTYPE:
            eight = tl.inline_asm_elementwise(CODE, REGISTERS, args, (tl.bfloat16,) * 8, True, 1)
        else:
            eight = tl.inline_asm_elementwise(CODE, REGISTERS, args, (tl.float16,) * 8, True, 1)
        w0, w1, w2, w3, w4, w5, w6, w7 = eight
    else:
        scale, second = _pair(meta_ptr, metas, DTYPE)
        scale, scale2 = _of_words(scale, GROUP)
        second, second2 = _of_words(second, GROUP)
        w0 = _weight(plane4, plane2, plane1, scale, second, table_ptr, 0, BITS, KIND, MAGIC, BASE, DTYPE)
        w1 = _weight(plane4, plane2, plane1, scale, second, table_ptr, 1, BITS, KIND, MAGIC, BASE, DTYPE)
        w2 = _weight(plane4, plane2, plane1, scale2, second2, table_ptr, 2, BITS, KIND, MAGIC, BASE, DTYPE)
        w3 = _weight(plane4, plane2, plane1, scale2, second2, table_ptr, 3, BITS, KIND, MAGIC, BASE, DTYPE)
        w4 = _weight(plane4, plane2, plane1, scale, second, table_ptr, 4, BITS, KIND, MAGIC, BASE, DTYPE)
        w5 = _weight(plane4, plane2, plane1, scale, second, table_ptr, 5, BITS, KIND, MAGIC, BASE, DTYPE)
        w6 = _weight(plane4, plane2, plane1, scale2, second2, table_ptr, 6, BITS, KIND, MAGIC, BASE, DTYPE)
        w7 = _weight(plane4, plane2, plane1, scale2, second2, table_ptr, 7, BITS, KIND, MAGIC, BASE, DTYPE)
    first = tl.join(tl.join(w0, w4), tl.join(w1, w5))
    rest = tl.join(tl.join(w2, w6), tl.join(w3, w7))
    fields = tl.join(first, rest).reshape(at.shape[0], 4, 4, 2, 2, 2)  # [N, 32s, thread, second of pair, 8s, 16s]
    return fields.permute(0, 1, 5, 4, 2, 3).reshape(at.shape[0], BLOCK)


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
    RAGGED: tl.constexpr,  # K is no multiple of a block
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EXPERTS: tl.constexpr,
    GATHER: tl.constexpr,
    DESCRIBED: tl.constexpr,  # x_ptr is a tensor descriptor
    DEVICE: tl.constexpr,
    CODE: tl.constexpr,
    REGISTERS: tl.constexpr,
    ACTIVATION: tl.constexpr,  # "": none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    tile = tl.program_id(0)
    n, real = outputs_of(tl.program_id(1), N, BLOCK_N, ACTIVATION != "")
    split = tl.program_id(2)
    j = tl.arange(0, BLOCK)
    begin = 0
    end = tl.cdiv(K, BLOCK)
    if SPLIT:
        share = tl.cdiv(end, splits)
        begin = split * share
        end = tl.minimum(begin + share, end)
    if PDL and not EXPERTS:  # weights come to the L2 while the kernel ahead still runs
        for ahead in tl.static_range(4):
            block = tl.minimum(begin + ahead, end - 1)
            place = (block * STORED + tl.where(real, n, 0).to(tl.int64)) * WORDS
            prefetch((plane4_ptr if BITS >= 4 else plane2_ptr) + place)
    inputs_ready(PDL)
    first = first_row(tile, rows, BLOCK_M, DESCRIBED)
    last = rows
    expert = 0
    if EXPERTS:
        expert, first, last = expert_rows(tile, offsets_ptr, experts, BLOCK_M)
        if first >= last:
            return
    row = first + tl.arange(0, BLOCK_M)
    here = row < last
    if not DESCRIBED:
        source = sources_of(row, here, rows_ptr, GATHER)
        x_rows = x_ptr + source.to(tl.int64)[:, None] * K + j[None, :]
    # An output beyond the last one is read as the first, and never written.
    at = tl.where(real, expert * N + n, 0).to(tl.int64)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in tl.range(begin, end):
        w = _block(
            plane4_ptr,
            plane2_ptr,
            plane1_ptr,
            meta_ptr,
            table_ptr,
            block,
            at,
            STORED,
            BITS,
            KIND,
            MAGIC,
            BASE,
            GROUP,
            CODE,
            REGISTERS,
            DTYPE,
        )
        if DESCRIBED:
            x = x_ptr.load([first, block * BLOCK])
        else:
            mask = here[:, None]
            if RAGGED:
                mask = mask & (j + block * BLOCK < K)[None, :]
            x = tl.load(x_rows + block * BLOCK, mask=mask, other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        if DEVICE:
            acc = settled(acc)
    if SPLIT:
        mask = here[None, :] & real[:, None]
        cell = row[None, :] * N + n[:, None]
        size = rows.to(tl.int64) * N
        sign_ptr = counter_ptr + tl.program_id(1) * tl.num_programs(0) + tile
        if leave_part(acc, partial_ptr, cell, mask, size, split, sign_ptr) != splits - 1:
            return
        acc = sum_parts(partial_ptr, cell, mask, size, splits, sign_ptr)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + expert * N + n, mask=real, other=0.0).to(tl.float32)[:, None]
    store_outputs(acc, out_ptr, tl.program_id(1), row, here, N, BLOCK_N, ACTIVATION)


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
    RAGGED: tl.constexpr,
    GATHER: tl.constexpr,
    CODE: tl.constexpr,
    REGISTERS: tl.constexpr,
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
    w = _block(
        plane4_ptr,
        plane2_ptr,
        plane1_ptr,
        meta_ptr,
        table_ptr,
        block,
        at,
        STORED,
        BITS,
        KIND,
        MAGIC,
        BASE,
        GROUP,
        CODE,
        REGISTERS,
        DTYPE,
    )
    if GATHER:
        w = (w.to(tl.float32) * multiplier).to(DTYPE)
    k = tl.arange(0, BLOCK) + block * BLOCK
    mask = here[:, None]
    if RAGGED:
        mask = mask & (k < K)[None, :]
    tl.store(out_ptr + row.to(tl.int64)[:, None] * K + k[None, :], w, mask=mask)


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
    each = rows // count if experts else rows
    t = tiles or plan_tiles(each, n, k, weight.block_bytes, weight.plain, experts is not None, x.dtype.itemsize)
    m_tiles = triton.cdiv(rows, t.block_m) if experts is None else rows // t.block_m + count
    partial = torch.empty(t.splits if t.splits > 1 else 0, rows, n, dtype=torch.float32, device=x.device)
    tensors, constants = _arguments(weight, x.dtype)
    gather = experts is not None and experts.rows is not None
    inputs, described = inputs_of(x, t.block_m, PLANES_BLOCK, gather)
    launch(
        _product,
        (m_tiles, triton.cdiv(n, t.block_n), t.splits),
        inputs,
        *tensors,
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
        **constants,
        HAS_BIAS=bias is not None,
        SPLIT=t.splits > 1,
        EXPERTS=experts is not None,
        GATHER=gather,
        DESCRIBED=described,
        DEVICE=x.is_cuda,
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
    tensors, constants = _arguments(weight, dtype)
    block_n = 64 if ids is None else 16
    launch(
        _expand,
        (triton.cdiv(rows, block_n), triton.cdiv(k, PLANES_BLOCK)),
        weight.meta if ids is None else ids,
        *tensors,
        out,
        rows,
        stored,
        k,
        multiplier,
        **constants,
        GATHER=ids is not None,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return out


def _arguments(weight: PlanesWeight, dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """What both kernels are told of a weight: its tensors, in order, and constants."""
    code, registers = "", ""
    if weight.bits == 4 and weight.meta.device.type == "cuda" and dtype.itemsize == 2:
        table = weight.table_bytes
        code, registers = _widen(weight.kind, dtype, weight.base) if table is None else _look_up(dtype, table)
    any_table = weight.meta if weight.table is None else weight.table
    tensors = (weight.plane(4), weight.plane(2), weight.plane(1), weight.meta, any_table)
    return tensors, {
        "BITS": weight.bits,
        "KIND": weight.kind,
        "MAGIC": weight.magic[0],
        "BASE": weight.base,
        "GROUP": weight.group,
        "RAGGED": weight.shape[1] % PLANES_BLOCK != 0,
        "CODE": code,
        "REGISTERS": registers,
    }


@cache
def plan_tiles(rows: int, n: int, k: int, weight_bytes: int, plain: bool, grouped: bool, item: int) -> Tiles:
    """By shape alone, so that a row's result depends on nothing but the batch size.

    The least time by a model of the H100, fitted to a sweep of an 8B model's products (1 to 512 rows, on average 2 %
    from the best tiles; benchmarks/results/2026-11-26-h100-narrow-products.json). ``weight_bytes`` and ``plain``: as
    ``PlanesWeight.block_bytes`` and ``plain``. ``grouped``: for experts that have so many rows each. ``item``: bytes of
    an input.
    """
    if item > 2:  # for exactness, not speed
        return Tiles(16, 64, 1, 4, 2)
    if grouped:
        return Tiles(max(16, triton.next_power_of_2(rows)), 64, 1, 4, 3) if rows <= 64 else Tiles(128, 128, 1, 8, 3)
    blocks, rows = triton.cdiv(k, PLANES_BLOCK), max(rows, 16)  # fewer go through the same tiles
    return min(
        _candidates(rows, n, blocks, weight_bytes, plain),
        key=lambda tiles: _nanoseconds(tiles, rows, n, blocks, weight_bytes, plain),
    )


def _candidates(rows: int, n: int, blocks: int, weight_bytes: int, plain: bool) -> Iterator[Tiles]:
    for (block_m, block_n), (warps, fit) in _TILES.items():
        if block_m < min(rows, 64 if rows <= 512 else 128) or block_m > max(rows + 32, 64):
            continue
        if not plain and block_n > 64:  # too many registers
            continue
        programs = triton.cdiv(rows, block_m) * triton.cdiv(n, block_n)
        for splits in (1, 2, 4, 8, 16):
            if splits > 1 and blocks < splits * (4 if programs * splits > _PROCESSORS else 2):
                break
            here = min(triton.cdiv(programs * splits, _PROCESSORS), fit)
            yield Tiles(block_m, block_n, splits, warps, _stages(block_m, block_n, weight_bytes, here))


def _nanoseconds(t: Tiles, rows: int, n: int, blocks: int, weight_bytes: int, plain: bool) -> float:
    widen_ns, first_ns = (1.1, 535) if plain else (6, 1500)  # of an output, beside other programs; of a block alone
    tensor_ns = 0.035 * t.block_m * t.block_n + widen_ns * t.block_n + 0.78 * t.block_m  # a block, beside others
    alone_ns = max(first_ns + 0.0385 * t.block_m * t.block_n, tensor_ns)
    each = triton.cdiv(triton.cdiv(rows, t.block_m) * triton.cdiv(n, t.block_n) * t.splits, _PROCESSORS)
    _, fit = _TILES[t.block_m, t.block_n]
    here = min(fit, _SHARED_BYTES // _shared_bytes(t.block_m, t.block_n, weight_bytes, t.stages))
    waves, share = triton.cdiv(each, here), triton.cdiv(blocks, t.splits)
    ns: float = share * max(each * tensor_ns, waves * max(alone_ns, tensor_ns * min(each, here))) + 957 * waves
    return ns + (595 + 0.0041 * rows * n * t.splits if t.splits > 1 else 0)


def _shared_bytes(block_m: int, block_n: int, weight_bytes: int, stages: int) -> int:
    return stages * block_m * PLANES_BLOCK * 2 + (stages - 1) * block_n * weight_bytes + 1024


def _stages(block_m: int, block_n: int, weight_bytes: int, programs: int) -> int:
    """As many, up to 6, as leave shared memory for so many programs; if none do, what one can have: 3 or 2."""
    for stages in (6, 5, 4, 3, 2):
        if programs * _shared_bytes(block_m, block_n, weight_bytes, stages) <= _SHARED_BYTES:
            return stages
    return 3 if _shared_bytes(block_m, block_n, weight_bytes, 3) <= _SHARED_BYTES else 2
