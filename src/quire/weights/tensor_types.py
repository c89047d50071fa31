"""Element types of checkpoint tensors: how many values a block holds, in how many bytes."""

from __future__ import annotations

from dataclasses import dataclass

from quire.weights.errors import CheckpointError

MAX_DIMS = 8


@dataclass(frozen=True)
class TypeInfo:
    block: int  # values in a block
    nbytes: int  # bytes of a block


TYPES: dict[str, TypeInfo] = {
    "F32": TypeInfo(1, 4),
    "F16": TypeInfo(1, 2),
    "BF16": TypeInfo(1, 2),
    "F64": TypeInfo(1, 8),
    "F8_E4M3": TypeInfo(1, 1),
    "F8_E5M2": TypeInfo(1, 1),
    "F8_E8M0": TypeInfo(1, 1),
    "I8": TypeInfo(1, 1),
    "I16": TypeInfo(1, 2),
    "I32": TypeInfo(1, 4),
    "I64": TypeInfo(1, 8),
    "U8": TypeInfo(1, 1),
    "U16": TypeInfo(1, 2),
    "U32": TypeInfo(1, 4),
    "U64": TypeInfo(1, 8),
    "BOOL": TypeInfo(1, 1),
    "Q4_0": TypeInfo(32, 18),
    "Q4_1": TypeInfo(32, 20),
    "Q5_0": TypeInfo(32, 22),
    "Q5_1": TypeInfo(32, 24),
    "Q8_0": TypeInfo(32, 34),
    "Q2_K": TypeInfo(256, 84),
    "Q3_K": TypeInfo(256, 110),
    "Q4_K": TypeInfo(256, 144),
    "Q5_K": TypeInfo(256, 176),
    "Q6_K": TypeInfo(256, 210),
    "IQ4_NL": TypeInfo(32, 18),
    "IQ4_XS": TypeInfo(256, 136),
}

GGUF_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    30: "BF16",
}  # fmt: skip

# Known to llama.cpp but not read here: named so that the message can say which.
GGUF_OTHER_TYPES: dict[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def tensor_nbytes(file: str, name: str, type: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, in exact integers. Raises ``CheckpointError`` when its rows are not whole blocks."""
    info = TYPES[type]
    if info.block > 1 and (not shape or shape[-1] % info.block):
        raise CheckpointError(f"{file} is corrupt: rows of {name!r} are not whole {type} blocks of {info.block}.")
    count = 1
    for dim in shape:
        count *= dim
    return count // info.block * info.nbytes
