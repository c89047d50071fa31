"""The GGUF reader on right files, and on every kind of wrong one."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quire.text.tokenizer import load_tokenizer
from quire.weights.checkpoint import open_checkpoint
from quire.weights.errors import CheckpointError
from quire.weights.gguf import GGUFFile
from tests.weights.gguf_builder import Builder, Tensor, f32, tiny_llama

HUGE = 2**60


def write(path: Path, data: bytes) -> Path:
    file = path / "model.gguf"
    file.write_bytes(data)
    return file


def sample() -> Builder:
    return Builder(
        pairs=[
            ("a.str", "str", "héllo"),
            ("a.u8", "u8", 200),
            ("a.i8", "i8", -3),
            ("a.u16", "u16", 65535),
            ("a.i16", "i16", -2),
            ("a.u32", "u32", 7),
            ("a.i32", "i32", -7),
            ("a.f32", "f32", 0.5),
            ("a.bool", "bool", True),
            ("a.u64", "u64", 2**63),
            ("a.i64", "i64", -(2**62)),
            ("a.f64", "f64", 0.1),
            ("l.str", "arr:str", ["x", "", "yy", "x"]),
            ("l.i32", "arr:i32", [1, -2, 3]),
            ("l.none", "arr:str", []),
        ],
        tensors=[Tensor("one", (2, 3), 0, f32(6)), Tensor("two", (4,), 0, f32(4, 10))],
    )


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    file = GGUFFile.open(write(tmp_path, sample().build()))
    values = dict(file.metadata)
    lists = {k: values.pop(k) for k in ("l.str", "l.i32", "l.none")}
    assert values == {
        "a.str": "héllo", "a.u8": 200, "a.i8": -3, "a.u16": 65535, "a.i16": -2, "a.u32": 7, "a.i32": -7, "a.f32": 0.5,
        "a.bool": True, "a.u64": 2**63, "a.i64": -(2**62), "a.f64": 0.1,
    }  # fmt: skip
    assert lists["l.str"] == ["x", "", "yy", "x"] and lists["l.none"] == []
    assert lists["l.i32"].tolist() == [1, -2, 3]
    assert file.metadata.index("l.str", "yy") == 2
    assert file.metadata.index("l.str", "x") == 0
    assert file.metadata.index("l.str", "nope") is None
    assert file.metadata.index("a.u8", "x") is None
    assert file.tensors["one"].shape == (2, 3)
    assert file.raw("two").view("<f4").tolist() == [10, 11, 12, 13]


def test_index_is_not_fooled_by_text_that_straddles_two_strings(tmp_path: Path) -> None:
    inner = struct.pack("<Q", 2) + b"zz"
    file = GGUFFile.open(write(tmp_path, Builder([("l", "arr:str", [inner.decode(), "zz"])]).build()))
    assert file.metadata.index("l", "zz") == 1


def test_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    builder = sample()
    builder.alignment = 64
    builder.pairs.append(("general.alignment", "u32", 64))
    file = GGUFFile.open(write(tmp_path, builder.build()))
    assert file.raw("two").view("<f4").tolist() == [10, 11, 12, 13]
    assert file.tensors["two"].offset % 64 == 0


def change(**fields: object) -> Callable[[], bytes]:
    def make() -> bytes:
        builder = sample()
        for name, value in fields.items():
            setattr(builder, name, value)
        return builder.build()

    return make


def tensor(**fields: object) -> Callable[[], bytes]:
    def make() -> bytes:
        builder = sample()
        for name, value in fields.items():
            setattr(builder.tensors[1], name, value)
        return builder.build()

    return make


def replaced(old: bytes, new: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        data = sample().build()
        assert data.count(old) >= 1 and len(old) == len(new)
        return data.replace(old, new, 1)

    return make


WRONG = {
    "empty": (lambda: b"", "empty"),
    "magic": (change(magic=b"GGML"), "not a GGUF file"),
    "short": (lambda: b"GGUF\x03", "ends within"),
    "old version": (change(version=1), "version 1"),
    "future version": (change(version=99), "version 99"),
    "big endian": (change(version=3 << 24), "big-endian"),
    "huge tensor count": (change(tensor_count=HUGE), "claims"),
    "huge pair count": (change(pair_count=HUGE), "claims"),
    "more tensors than there are": (change(tensor_count=3), "corrupt"),
    "more pairs than there are": (change(pair_count=16), "corrupt"),
    "fewer pairs than there are": (change(pair_count=14), "corrupt"),
    "long key": (replaced(struct.pack("<Q", 5) + b"a.str", struct.pack("<Q", HUGE) + b"a.str"), "claims"),
    "long string": (replaced(struct.pack("<Q", 6) + b"h", struct.pack("<Q", HUGE) + b"h"), "claims"),
    "string past the end": (replaced(struct.pack("<Q", 6) + b"h", struct.pack("<Q", 60000) + b"h"), "ends within"),
    "long array": (replaced(struct.pack("<IQ", 5, 3), struct.pack("<IQ", 5, HUGE)), "claims"),
    "array past the end": (replaced(struct.pack("<IQ", 5, 3), struct.pack("<IQ", 5, 10000)), "claims"),
    "many strings": (replaced(struct.pack("<IQ", 8, 4), struct.pack("<IQ", 8, 100000)), "claims"),
    "nested array": (replaced(struct.pack("<IQ", 5, 3), struct.pack("<IQ", 9, 3)), "unknown type 9"),
    "unknown value type": (replaced(b"a.bool" + struct.pack("<I", 7), b"a.bool" + struct.pack("<I", 77)), "type 77"),
    "key twice": (replaced(b"a.i16", b"a.u16"), "twice"),
    "key no text": (replaced(b"a.i16", b"\xff.i16"), "UTF-8"),
    "tensor twice": (tensor(name="one"), "twice"),
    "no dimensions": (tensor(shape=()), "0 dimensions"),
    "many dimensions": (tensor(shape=(1,) * 9), "9 dimensions"),
    "zero dimension": (tensor(shape=(0,)), "shape"),
    "absurd dimension": (tensor(shape=(HUGE,)), "shape"),
    "absurd product": (tensor(shape=(2**39, 2**39, 2**39)), "truncated"),
    "larger than the file": (tensor(shape=(4096,)), "truncated"),
    "offset out of the file": (tensor(offset=2**20), "truncated"),
    "absurd offset": (tensor(offset=2**64 - 32), "truncated"),
    "misaligned": (tensor(offset=33), "aligned"),
    "overlapping": (tensor(offset=0), "overlap"),
    "unknown type": (tensor(type=250), "type 250"),
    "type without a reader": (tensor(type=16), "IQ2_XXS tensors, .* take a file in Q2_K to Q6_K"),
    "half a block": (tensor(type=2), "whole Q4_0 blocks"),
    "alignment of 0": (change(pairs=[("general.alignment", "u32", 0)]), "alignment"),
    "alignment of 48": (change(pairs=[("general.alignment", "u32", 48)]), "alignment"),
    "alignment as text": (change(pairs=[("general.alignment", "str", "32")]), "alignment"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_ends_in_one_sentence(tmp_path: Path, case: str) -> None:
    make, reason = WRONG[case]
    with pytest.raises(CheckpointError, match=reason) as caught:
        GGUFFile.open(write(tmp_path, make()))
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and str(tmp_path) not in message


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    data = sample().build()
    data = data[: data.rindex(struct.pack("<f", 13)) + 4]
    GGUFFile.open(write(tmp_path, data))
    for end in range(len(data)):
        with pytest.raises(CheckpointError):
            GGUFFile.open(write(tmp_path, data[:end]))


def test_text_that_is_no_utf8_is_refused_when_read(tmp_path: Path) -> None:
    file = GGUFFile.open(write(tmp_path, replaced(b"h\xc3\xa9llo", b"h\xc3\xc3llo")()))
    with pytest.raises(CheckpointError, match="UTF-8"):
        file.metadata["a.str"]


def read_all(file: Path) -> None:
    checkpoint = open_checkpoint(file)
    for name in checkpoint.names():
        checkpoint.read(name).data.sum()
    load_tokenizer(file).encode("abcd ab<s>")


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """Nothing but success or ``CheckpointError``, whatever bytes change."""
    data = tiny_llama().build()
    header = data.index(struct.pack("<f", 1.0)) - 64
    read_all(write(tmp_path, data))
    rng = random.Random(0)
    refused = 0
    for _ in range(1200):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            at = rng.randrange(header)
            match rng.randrange(4):
                case 0:
                    mutated[at] = rng.randrange(256)
                case 1:
                    mutated[at] ^= 1 << rng.randrange(8)
                case 2:
                    at = min(at, len(mutated) - 8)
                    mutated[at : at + 8] = struct.pack(
                        "<Q", rng.choice((0, 1, 2**31, 2**32, HUGE, 2**64 - 1, len(data)))
                    )
                case 3:
                    del mutated[at : at + rng.randrange(1, 9)]
        try:
            read_all(write(tmp_path, bytes(mutated)))
        except CheckpointError:
            refused += 1
    assert refused > 400


def test_reading_is_a_view_of_the_file(tmp_path: Path) -> None:
    raw = GGUFFile.open(write(tmp_path, sample().build())).raw("one")
    assert not raw.flags.owndata and not raw.flags.writeable
    assert raw.dtype == np.uint8
