"""What is not supported, contradicts itself or is corrupt ends in one sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.quant.formats.detect import storage_of
from quire.quant.reader import reader_of
from quire.weights.errors import CheckpointError
from quire.weights.gguf_checkpoint import GGUFCheckpoint
from tests.quant.checkpoints import (
    LAYER,
    Awq,
    Float8,
    FourBit,
    Gptq,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    Packed,
    Tensors,
    autoround,
    compressed,
    tensor,
    write,
)

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}


def test_a_quantised_checkpoint_takes_no_other_quantisation(tmp_path: Path) -> None:
    made = Gptq(32, 64, 4, 32, True, True, False)
    checkpoint = write(tmp_path, {LAYER + name: t for name, t in made.tensors.items()}, made.config)
    for accepted in (None, "gptq", "gptq_marlin"):
        assert torch.equal(reader_of(storage_of(checkpoint, accepted)).read(LAYER, 32, 64).dequantize(), made.weight)
    for refused in ("awq", "bitsandbytes", "int8", "fp8", "gguf"):
        with pytest.raises(CheckpointError, match=f"quantised already, by gptq, so that --quantization {refused}"):
            storage_of(checkpoint, refused)


def test_autoround_checkpoints_take_its_names_alone(tmp_path: Path) -> None:
    made = autoround(Gptq(32, 64, 4, 32, True, False, False), "auto_round")
    checkpoint = write(tmp_path, {LAYER + name: t for name, t in made.tensors.items()}, made.config)
    for accepted in ("auto-round", "inc"):
        assert torch.equal(reader_of(storage_of(checkpoint, accepted)).read(LAYER, 32, 64).dequantize(), made.weight)
    with pytest.raises(CheckpointError, match="quantised already, by auto-round, so that --quantization gptq"):
        storage_of(checkpoint, "gptq")


def test_plain_weights_take_only_quantisation_at_load(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, {LAYER + ".weight": torch.randn(32, 64)}, None)
    for refused in ("gptq", "awq_marlin", "compressed-tensors", "mxfp4", "gguf"):
        with pytest.raises(CheckpointError, match=rf"--quantization {refused} needs .* int8, int4, nf4, fp8"):
            storage_of(checkpoint, refused)


def test_gguf_blocks_are_a_quantisation_of_their_own(smollm2_path: Path) -> None:
    checkpoint = GGUFCheckpoint(smollm2_path)
    reader_of(storage_of(checkpoint, "gguf"))
    with pytest.raises(CheckpointError, match="by gguf"):
        storage_of(checkpoint, "int4")


def test_old_config_files_are_found(tmp_path: Path) -> None:
    made = Awq(32, 64, 32)
    checkpoint = write(tmp_path, {LAYER + name: t for name, t in made.tensors.items()}, None)
    (tmp_path / "quant_config.json").write_text(
        '{"w_bit": 4, "q_group_size": 32, "zero_point": true, "version": "GEMM"}'
    )
    assert torch.equal(reader_of(storage_of(checkpoint, None)).read(LAYER, 32, 64).dequantize(), made.weight)


def gptq(**changes: Any) -> tuple[Tensors, dict[str, Any]]:
    made = Gptq(32, 64, 4, 32, False, True, True)
    return made.tensors, made.config | changes


def rounded(**changes: Any) -> dict[str, Any]:
    return autoround(Gptq(32, 64, 4, 32, False, True, False), "auto_round", **changes).config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (rounded(packing_format="auto_round:mlx"), "packing_format: 'auto_round:mlx'; auto_round:auto_gptq or"),
        (rounded(data_type="mx_fp"), "data_type: 'mx_fp'; int is"),
        (rounded(act_bits=8), "act_bits: '8'"),
        (rounded(bits=9), "bits: '9'"),
        (rounded(packing_format="auto_round:auto_awq", bits=8), "bits: '8'; 4 is"),
        (rounded(rotation_config={"hadamard_type": "hadamard"}), "rotation_config: layers with rotated inputs"),
        (rounded(extra_config={"(a+)+$": {}}), "no usable regular expression"),
        (rounded(extra_config={"a": 4}), "a: '4'; an object"),
        ({"quant_method": "aqlm"}, "'aqlm' is not supported; gptq, awq"),
        ({}, "not supported"),
        (gptq(bits=5)[1], "bits: '5'; 2 or 3 or 4 or 8"),
        (gptq(bits=True)[1], "bits: 'True'"),
        (gptq(group_size=0)[1], "group_size: '0'"),
        (gptq(group_size=1 << 40)[1], "group_size"),
        (gptq(checkpoint_format="marlin")[1], "checkpoint_format: 'marlin'; gptq or gptq_v2"),
        (gptq(dynamic={"-:(": {}})[1], "no usable regular expression"),
        (gptq(dynamic={"+:" + "a" * 2000: {}})[1], "no usable regular expression"),
        (gptq(dynamic={"-:(a+)+$": {}})[1], "no usable regular expression"),
        (gptq(dynamic={"-:" + ".*" * 9: {}})[1], "no usable regular expression"),
        (compressed("pack-quantized", {}) | {"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        (compressed("pack-quantized", {}) | {"sparsity_config": {"format": "sparse-24"}}, "'sparse-24'; dense"),
        (compressed("pack-quantized", {}) | {"ignore": ["re:(" * 9]}, "no usable regular expression"),
        ({"quant_method": "awq", "bits": 3}, "bits: '3'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv'; only gemm"),
        (
            compressed("marlin-24", {}),
            "'marlin-24' is not supported; pack-quantized, int-quantized",
        ),
        (compressed("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 3}), "group_size: '3'"),
        (compressed("pack-quantized", {"num_bits": 4}, {"num_bits": 8}), "packed weights and rounded inputs"),
        (compressed("int-quantized", {**INT8, "strategy": "group"}), "strategy: 'group'"),
        (compressed("int-quantized", INT8, {"num_bits": 4, "type": "int"}), "num_bits: '4'"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "block size"),
        ({"quant_method": "fp8", "activation_scheme": "none"}, "dynamic"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo: 'W4A8_AWQ'; FP8 or .* MXFP8 or NVFP4"),
    ],
)
def test_settings(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    checkpoint = write(tmp_path, {LAYER + ".weight": torch.randn(32, 64)}, config)
    with pytest.raises(CheckpointError, match=words) as error:
        storage_of(checkpoint, None)
    assert "\n" not in str(error.value)


def changed(made: Any, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Tensors, dict[str, Any]]:
    return {**made.tensors, name: change(made.tensors[name])}, made.config


ACT, SYM = Gptq(32, 64, 4, 32, False, True, True), Gptq(32, 64, 4, 32, True, True, False)
NF, STATE = FourBit(32, 64, "nf4", 64, False), ".weight.quant_state.bitsandbytes__nf4"
PACKED = Packed(32, 64, 4, 32, False, False)
FP8 = Float8(32, 64, (32, 64), ".weight_scale")
FP8_CONFIG = {"quant_method": "fp8"}
FP8_STATIC = {"quant_method": "fp8", "activation_scheme": "static"}
MX = Mxfp4(32, 64)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (changed(ACT, ".g_idx", lambda t: t + 1), "more than the 2 groups"),
        (changed(ACT, ".g_idx", lambda t: t - 1), "more than the 2 groups"),
        (changed(ACT, ".g_idx", lambda t: t.clamp(max=0) + (torch.arange(64) < 3)), "uneven"),
        (changed(SYM, ".scales", lambda t: t * float("inf")), "not finite"),
        (changed(NF, ".weight.absmax", lambda t: t * float("nan")), "not finite"),
        (changed(NF, ".weight.quant_map", lambda t: t / 0), "not finite"),
        (changed(Packed(32, 64, 4, 32, True, False), ".weight_shape", lambda t: t + 1), r"weight_shape is \[33, 65\]"),
        (({".weight": torch.full((32, 64), 127, dtype=torch.uint8).view(torch.float8_e4m3fn),
           ".weight_scale": torch.ones(1)}, FP8_CONFIG), "no number"),
        (({**FP8.tensors, ".weight_scale": torch.tensor(float("nan"))}, FP8_CONFIG), "not finite"),
        (({**FP8.tensors, ".input_scale": torch.tensor(0.0)}, FP8_STATIC), "_scale is 0"),
        (({"_blocks": tensor(MX.blocks), "_scales": torch.full((32, 2), 255, dtype=torch.uint8)},
          {"quant_method": "mxfp4"}), "no number"),
        (({**Mxfp8(32, 64).tensors, ".weight_scale": torch.full((32, 2), 255, dtype=torch.uint8)},
          {"quant_method": "modelopt", "quant_algo": "MXFP8"}), "not finite"),
        (({**Nvfp4(32, 64, modelopt=True).tensors, ".weight_scale_2": torch.tensor(0.0)},
          {"quant_method": "modelopt", "quant_algo": "NVFP4"}), "not positive"),
    ],
)  # fmt: skip
def test_values(tmp_path: Path, case: tuple[Tensors, dict[str, Any]], words: str) -> None:
    tensors, config = case
    reader = reader_of(storage_of(write(tmp_path, {LAYER + name: t for name, t in tensors.items()}, config), None))
    with pytest.raises(CheckpointError, match=f"{LAYER}: .*{words}"):
        reader.read(LAYER, 32, 64)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (changed(SYM, ".scales", lambda t: t[:1]), r"shape \[1, 32\].*\[2, 32\]"),
        (changed(SYM, ".qweight", lambda t: t.long()), "qweight has the type I64.*I32"),
        (changed(SYM, ".scales", lambda t: t.int()), "scales has the type I32"),
        (changed(Awq(32, 64, 32), ".qzeros", lambda t: t[:, :2]), r"qzeros has the shape \[2, 2\].*\[2, 4\]"),
        (changed(FourBit(32, 64, "nf4", 64, True), ".weight.absmax", lambda t: t[:5]), r"absmax.*shape \[5\].*\[32\]"),
        (changed(PACKED, ".weight_zero_point", lambda t: t[:3]), "_zero_point has the shape"),
        (changed(NF, STATE, lambda t: t[:9]), "no valid JSON"),
        (changed(NF, STATE, lambda t: t.float()), "no JSON text"),
        (({**FP8.tensors, ".weight_scale": torch.ones(7)}, FP8_CONFIG), r"weight_scale has the shape \[7\]"),
        (({".weight": torch.ones(32, 65)}, FP8_CONFIG), r"up_proj.weight has the shape \[32, 65\].*\[32, 64\]"),
        (({".weight": torch.ones(32, 64).double()}, FP8_CONFIG), "up_proj.weight has the type F64.*F32, F16, BF16"),
    ],
)  # fmt: skip
def test_shapes_and_types_before_anything_is_read(
    tmp_path: Path, case: tuple[Tensors, dict[str, Any]], words: str
) -> None:
    tensors, config = case
    storage = storage_of(write(tmp_path, {LAYER + name: t for name, t in tensors.items()}, config), None)
    with pytest.raises(CheckpointError, match=words):
        storage.tensors(LAYER, 32, 64)


@pytest.mark.parametrize(
    ("made", "words"),
    [(SYM, "up_proj.qweight is of a quantised layer, but config.json"), (NF, "up_proj.weight has the type U8")],
)
def test_a_lost_quantization_config(tmp_path: Path, made: Any, words: str) -> None:
    storage = storage_of(write(tmp_path, {LAYER + name: t for name, t in made.tensors.items()}, None), None)
    with pytest.raises(CheckpointError, match=words):
        storage.tensors(LAYER, 32, 64)


def test_a_lost_quantisation_state(tmp_path: Path) -> None:
    tensors = {LAYER + name: t for name, t in NF.tensors.items() if name != STATE}
    with pytest.raises(CheckpointError, match=r"up_proj.weight has the type U8.*state"):
        storage_of(write(tmp_path, tensors, NF.config), None).tensors(LAYER, 32, 64)


def test_zero_points_that_are_there_count(tmp_path: Path) -> None:
    made = Awq(32, 64, 32)
    tensors = {LAYER + name: t for name, t in made.tensors.items()}
    reader = reader_of(storage_of(write(tmp_path, tensors, made.config | {"zero_point": False}), None))
    assert torch.equal(reader.read(LAYER, 32, 64).dequantize(), made.weight)


@pytest.mark.parametrize("name", [".qweight", ".scales", ".qzeros"])
def test_missing_tensors_are_named(tmp_path: Path, name: str) -> None:
    tensors, config = gptq()
    del tensors[name]
    storage = storage_of(write(tmp_path, {LAYER + n: t for n, t in tensors.items()}, config), None)
    lacking = ".weight" if name == ".qweight" else name  # without codes it would be a plain layer
    with pytest.raises(CheckpointError, match=LAYER + lacking):
        storage.tensors(LAYER, 32, 64)


@pytest.mark.parametrize(
    ("made", "n", "k"), [(Gptq(32, 64, 3, 32, True, True, False), 31, 64), (Awq(32, 64, 32), 30, 64)]
)
def test_sizes_that_fill_no_words(tmp_path: Path, made: Any, n: int, k: int) -> None:
    storage = storage_of(write(tmp_path, {LAYER + name: t for name, t in made.tensors.items()}, made.config), None)
    with pytest.raises(CheckpointError, match=f"{n} outputs"):
        storage.tensors(LAYER, n, k)
