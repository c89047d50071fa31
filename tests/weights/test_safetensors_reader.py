"""The safetensors reader and Hugging Face directories, right and wrong."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quire.quant.gguf import dequantize
from quire.weights.checkpoint import open_checkpoint
from quire.weights.errors import CheckpointError
from quire.weights.safetensors import SafetensorsFile

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.linspace(-1, 1, 8, dtype=torch.float16),
    "c": torch.linspace(-3, 3, 4, dtype=torch.bfloat16).view(2, 2),
    "ids": torch.arange(3),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}


def directory(path: Path, files: dict[str, dict[str, torch.Tensor]], config: dict[str, Any] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    for name, tensors in files.items():
        save_file(tensors, path / name)
    return path


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_written_by_the_library_are_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(directory(tmp_path, {"model.safetensors": TENSORS}))
    assert set(checkpoint.names()) == set(TENSORS)
    for name in ("a", "b", "c", "empty", "scalar"):
        assert torch.equal(dequantize(checkpoint.read(name)), TENSORS[name].float()), name
    assert checkpoint.info("ids").type == "I64"
    with pytest.raises(CheckpointError, match="I64"):
        dequantize(checkpoint.read("ids"))


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    files = {
        "x-1-of-2.safetensors": {"a": TENSORS["a"], "extra": TENSORS["b"]},
        "x-2-of-2.safetensors": {"b": TENSORS["b"]},
    }
    path = directory(tmp_path, files)
    index = {"weight_map": {"a": "x-1-of-2.safetensors", "b": "x-2-of-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(path)
    assert sorted(checkpoint.names()) == ["a", "b"]
    assert torch.equal(dequantize(checkpoint.read("b")), TENSORS["b"].float())


def test_files_without_an_index_are_read_together_but_not_the_consolidated_one(tmp_path: Path) -> None:
    files = {f"{n}.safetensors": {t: TENSORS[t]} for n, t in (("p", "a"), ("q", "b"), ("consolidated", "c"))}
    assert sorted(open_checkpoint(directory(tmp_path, files)).names()) == ["a", "b"]


def test_a_shape_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(directory(tmp_path, {"model.safetensors": TENSORS}))
    assert checkpoint.read("a", (2, 3)).shape == (2, 3)
    with pytest.raises(CheckpointError, match=r"shape \[2, 3\].*\[3, 2\]"):
        checkpoint.read("a", (3, 2))
    with pytest.raises(CheckpointError, match="lacks the tensor nope"):
        checkpoint.read("nope")


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"{", b"", "JSON"),
        (b"[]", b"", "no JSON object"),
        (b'{"a":' * 20000, b"", "JSON"),
        (b'{"a":1,"a":2}', b"", "JSON"),
        ({"a": 1}, b"", "malformed"),
        ({"a": {}}, b"", "malformed"),
        ({"a": entry([2], 0, 8, "F33")}, bytes(8), "unknown type"),
        ({"a": entry([2], 0, 8, "Q4_0")}, bytes(8), "unknown type"),
        ({"a": entry([2], 0, 8, 5)}, bytes(8), "malformed"),
        ({"a": entry([-2], 0, 8)}, bytes(8), "impossible shape"),
        ({"a": entry([True], 0, 4)}, bytes(4), "impossible shape"),
        ({"a": entry([2.0], 0, 8)}, bytes(8), "impossible shape"),
        ({"a": entry([1] * 20, 0, 4)}, bytes(4), "impossible shape"),
        ({"a": entry([3], 0, 8)}, bytes(8), "does not fit its shape"),
        ({"a": entry([2**62, 2**62], 0, 8)}, bytes(8), "does not fit its shape"),
        ({"a": entry([2], -8, 0)}, bytes(8), "does not fit its shape"),
        ({"a": entry([2], 8, 0)}, bytes(8), "does not fit its shape"),
        ({"a": entry([2], 0, 8)}, bytes(4), "truncated"),
        ({"a": entry([2], 2**62, 2**62 + 8)}, bytes(8), "truncated"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), "overlap"),
    ],
)
def test_a_wrong_header_ends_in_one_sentence(tmp_path: Path, header: Any, data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        SafetensorsFile.open(raw_file(tmp_path, header, data))
    assert str(caught.value).endswith(".") and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 2**60, 3, 0])
def test_a_wrong_header_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError):
        SafetensorsFile.open(raw_file(tmp_path, {"a": entry([2], 0, 8)}, bytes(8), length))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for end in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            SafetensorsFile.open(tmp_path / "cut")


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    rng, file = random.Random(1), tmp_path / "mutated"
    for _ in range(1500):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 2, 6))):
            at = rng.randrange(len(mutated))
            mutated[at] = rng.choice((rng.randrange(256), *b'0123456789-[]{}",:'))
        file.write_bytes(mutated)
        try:
            opened = SafetensorsFile.open(file)
        except CheckpointError:
            continue
        for name in opened.tensors:
            opened.raw(name).sum()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, r"no config\.json\.$"),
        ({"b.gguf": "", "a.gguf": ""}, r"no config.json\. Name a file of it, such as .*a\.gguf\.$"),
        ({"config.json": "{"}, "no valid JSON"),
        ({"config.json": "[1]"}, "no JSON object"),
        ({"config.json": "{}"}, "no \\*.safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "convert them to safetensors"),
        ({"config.json": "{}", "model.safetensors.index.json": "{}"}, "no weight_map"),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "../b.safetensors"}}'},
            "no file beside",
        ),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "/etc/x.safetensors"}}'},
            "no file beside",
        ),
        ({"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": 5}}'}, "no file beside"),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "b.safetensors"}}'},
            "cannot be read",
        ),
    ],
)
def test_a_wrong_directory_ends_in_one_sentence(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(tmp_path).names()


def test_an_index_that_names_what_a_shard_lacks_is_refused(tmp_path: Path) -> None:
    path = directory(tmp_path, {"s.safetensors": {"a": TENSORS["a"]}})
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"zz": "s.safetensors"}}')
    with pytest.raises(CheckpointError, match="lacks the tensor zz"):
        open_checkpoint(path).names()


def test_rope_parameters_are_flattened(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    path = directory(tmp_path, {"model.safetensors": {"a": TENSORS["a"]}}, {"rope_parameters": rope})
    config = open_checkpoint(path).config
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_a_pointer_to_the_weights_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        SafetensorsFile.open(tmp_path / "model.safetensors")
