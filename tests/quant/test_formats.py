"""Every format's layers, read, against the formula that they were packed by: equal in float32."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.ops.layouts import Codebook, Fp8, GroupedInt, Int8Channel, Layout
from quire.quant.formats.detect import storage_of
from quire.quant.reader import reader_of
from tests.quant.checkpoints import (
    LAYER,
    Awq,
    EightBit,
    Float8,
    FourBit,
    Gptq,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    Packed,
    Tensors,
    autoround,
    bitstream,
    compressed,
    tensor,
    write,
)


def read(
    path: Path, tensors: Tensors, config: dict[str, Any], n: int, k: int, stack: int = 1, growth: float = 1.1
) -> Layout:
    checkpoint = write(path, {LAYER + name: t for name, t in tensors.items()}, config)
    reader = reader_of(storage_of(checkpoint, None))
    assert storage_of(checkpoint, None).tensors(LAYER, n, k, stack).keys() <= set(checkpoint.names())
    layout = reader.read(LAYER, n, k, stack)
    assert layout.shape == (stack * n, k)
    stored = sum(checkpoint.info(m).nbytes for m in checkpoint.names())
    assert 0.9 < reader.nbytes(LAYER, n, k, stack) / stored <= growth  # more where scales are codes, widened at load
    return layout


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [-1, 32, 64])
@pytest.mark.parametrize(("sym", "v1", "act"), list(itertools.product((False, True), repeat=3)))
def test_gptq(tmp_path: Path, bits: int, group: int, sym: bool, v1: bool, act: bool) -> None:
    made = Gptq(64, 192, bits, group, sym, v1, act)
    layout = read(tmp_path, made.tensors, made.config, 64, 192)
    assert torch.equal(layout.dequantize(), made.weight)
    if bits == 8 and sym and group == -1:
        assert isinstance(layout, Int8Channel)
        return
    assert isinstance(layout, GroupedInt) and layout.bits == bits and layout.scale.dtype == torch.float16
    assert isinstance(layout.zero, int) == sym
    assert (layout.order is not None) == (act and group != -1)


def test_gptq_where_the_last_group_is_smaller(tmp_path: Path) -> None:
    for act in (False, True):
        made = Gptq(32, 160, 4, 64, False, True, act)
        layout = read(tmp_path / str(act), made.tensors, made.config, 32, 160)
        assert torch.equal(layout.dequantize(), made.weight)


def test_gptq_overrides(tmp_path: Path) -> None:
    made = Gptq(64, 64, 8, 32, False, True, False)
    made.config |= {
        "bits": 4,
        "group_size": 64,
        "dynamic": {r"-:.*\.down": {}, r"+:.*\.mlp\.up_": {"bits": 8, "group_size": 32}},
    }
    assert torch.equal(read(tmp_path, made.tensors, made.config, 64, 64).dequantize(), made.weight)


@pytest.mark.parametrize("group", [-1, 32, 128])
def test_awq(tmp_path: Path, group: int) -> None:
    made = Awq(48, 256, group)
    layout = read(tmp_path, made.tensors, made.config, 48, 256)
    assert torch.equal(layout.dequantize(), made.weight)
    assert isinstance(layout, GroupedInt) and layout.group == (256 if group == -1 else group)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("packing", ["auto_round", "auto_round:auto_gptq", "auto_round:gptqmodel"])
def test_autoround(tmp_path: Path, bits: int, sym: bool, packing: str) -> None:
    made = autoround(Gptq(64, 192, bits, 64, sym, packing == "auto_round:auto_gptq", False), packing)
    layout = read(tmp_path, made.tensors, made.config, 64, 192)
    assert torch.equal(layout.dequantize(), made.weight)
    assert isinstance(layout, GroupedInt) and layout.bits == bits and isinstance(layout.zero, int) == sym


def test_autoround_in_awqs_layout(tmp_path: Path) -> None:
    made = autoround(Awq(48, 256, 32), "auto_round:auto_awq", quant_method="intel/auto-round")
    assert torch.equal(read(tmp_path, made.tensors, made.config, 48, 256).dequantize(), made.weight)


@pytest.mark.parametrize(("backend", "v1"), [("auto_round:gptq:exllamav2", True), ("auto_round:exllamav2", False)])
def test_autoround_of_2024(tmp_path: Path, backend: str, v1: bool) -> None:
    made = autoround(Gptq(64, 64, 4, 32, False, v1, False), "", backend=backend)
    del made.config["packing_format"]
    assert torch.equal(read(tmp_path, made.tensors, made.config, 64, 64).dequantize(), made.weight)


OWN = {"bits": 8, "group_size": 32}


@pytest.mark.parametrize(
    "extra",
    [
        {LAYER: OWN, r".*mlp.*": {"bits": 2}},
        {r"model\.layers\.\d+\.mlp\.(up|gate)_proj": OWN, ".*": {"bits": 2}},
        {"mlp.up": {"bits": 16}, r".*\.up_proj$": OWN},  # a name is no expression
        {"model.layers.0.mlp": {"bits": 16}, ".*layers.0.*": OWN},
    ],
)
def test_autoround_overrides(tmp_path: Path, extra: dict[str, Any]) -> None:
    made = autoround(Gptq(64, 64, 8, 32, False, True, False), "auto_round:auto_gptq", bits=4, extra_config=extra)
    assert torch.equal(read(tmp_path, made.tensors, made.config | {"group_size": 64}, 64, 64).dequantize(), made.weight)


def test_autorounds_plain_layers_are_plain(tmp_path: Path) -> None:
    config = autoround(Gptq(64, 64, 4, 32, False, True, False), "auto_round", extra_config={LAYER: {"bits": 16}}).config
    weight = torch.randn(64, 64)
    assert torch.equal(read(tmp_path, {".weight": weight}, config, 64, 64).dequantize(), weight)


@pytest.mark.parametrize(("n", "k"), [(48, 256), (24, 96)])  # blocks that run over the ends of rows, too
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4_bit(tmp_path: Path, n: int, k: int, kind: str, block: int, nested: bool) -> None:
    made = FourBit(n, k, kind, block, nested)
    layout = read(tmp_path, made.tensors, made.config, n, k)
    assert isinstance(layout, Codebook)
    assert torch.equal(layout.dequantize(), made.weight)


def test_bitsandbytes_codes_in_other_clothes(tmp_path: Path) -> None:
    """Sharded training stores the bytes as if they were bfloat16."""
    made = FourBit(48, 256, "nf4", 64, True)
    made.tensors[".weight"] = made.tensors[".weight"].view(-1, 2).view(torch.bfloat16)
    assert torch.equal(read(tmp_path, made.tensors, made.config, 48, 256).dequantize(), made.weight)


def test_bitsandbytes_8_bit(tmp_path: Path) -> None:
    made = EightBit(48, 256)
    layout = read(tmp_path, made.tensors, made.config, 48, 256)
    assert isinstance(layout, Int8Channel) and layout.activation is None
    torch.testing.assert_close(layout.dequantize(), made.weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [-1, 32])
@pytest.mark.parametrize(("sym", "act"), list(itertools.product((False, True), repeat=2)))
def test_compressed_tensors_packed(tmp_path: Path, bits: int, group: int, sym: bool, act: bool) -> None:
    made = Packed(40, 160, bits, group, sym, act and group != -1)
    layout = read(tmp_path, made.tensors, made.config, 40, 160)
    assert torch.equal(layout.dequantize(), made.weight)


TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
FIXED = {"num_bits": 8, "strategy": "tensor", "dynamic": False, "symmetric": True}


@pytest.mark.parametrize("inputs", [None, TOKEN, FIXED, {**FIXED, "symmetric": False}])
@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_compressed_tensors_int8(tmp_path: Path, inputs: dict[str, Any] | None, strategy: str) -> None:
    torch.manual_seed(0)
    q = torch.randint(-128, 128, (40, 96)).to(torch.int8)
    scale = torch.rand(40, 1).bfloat16() if strategy == "channel" else torch.rand(1).bfloat16()
    tensors: Tensors = {".weight": q, ".weight_scale": scale}
    if inputs and not inputs["dynamic"]:
        tensors[".input_scale"] = torch.tensor([0.25])
    if inputs and not inputs["symmetric"]:
        tensors[".input_zero_point"] = torch.tensor([-5], dtype=torch.int8)
    weights = {"num_bits": 8, "type": "int", "strategy": strategy, "symmetric": True}
    config = compressed("int-quantized", weights, inputs and dict(inputs, type="int"))
    layout = read(tmp_path, tensors, config, 40, 96)
    assert isinstance(layout, Int8Channel)
    assert torch.equal(layout.dequantize(), q.float() * scale.float())
    how = layout.activation
    assert (how is None) == (inputs is None)
    if how and inputs:
        assert (how.kind, how.scale) == ("int8", None if inputs["dynamic"] else 0.25)
        assert how.zero == (0 if inputs["symmetric"] else -5)


@pytest.mark.parametrize(("strategy", "block"), [("tensor", (160, 192)), ("channel", (1, 192)), ("block", (128, 128))])
@pytest.mark.parametrize("inputs", [None, TOKEN, FIXED])
def test_compressed_tensors_fp8(
    tmp_path: Path, strategy: str, block: tuple[int, int], inputs: dict[str, Any] | None
) -> None:
    made = Float8(160, 192, block, ".weight_scale")
    if inputs is FIXED:
        made.tensors[".input_scale"] = torch.tensor([0.5])
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "block_structure": [128, 128]}
    config = compressed("float-quantized", weights, inputs and dict(inputs, type="float"))
    layout = read(tmp_path, made.tensors, config, 160, 192)
    assert isinstance(layout, Fp8) and layout.block == block
    assert torch.equal(layout.dequantize(), made.weight)
    assert (layout.activation and layout.activation.scale) == (0.5 if inputs is FIXED else None)


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_fp8_tensors(tmp_path: Path, scheme: str) -> None:
    made = Float8(160, 192, (160, 192), ".weight_scale")
    if scheme == "static":
        made.tensors[".input_scale"] = torch.tensor(0.125)
    layout = read(tmp_path, made.tensors, {"quant_method": "fp8", "activation_scheme": scheme}, 160, 192)
    assert isinstance(layout, Fp8) and layout.activation is not None
    assert layout.activation.scale == (0.125 if scheme == "static" else None)
    assert torch.equal(layout.dequantize(), made.weight)


def test_fp8_blocks(tmp_path: Path) -> None:
    made = Float8(320, 192, (128, 128), ".weight_scale_inv")
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    layout = read(tmp_path, made.tensors, config, 320, 192)
    assert isinstance(layout, Fp8) and layout.activation is not None and layout.activation.group == 128
    assert torch.equal(layout.dequantize(), made.weight)
    for index in (slice(0, 128), slice(128, 320), slice(5, 77), torch.tensor([300, 2, 140])):
        assert torch.equal(layout.rows(index).dequantize(), made.weight[index])


@pytest.mark.parametrize("stack", [1, 3])
def test_mxfp4(tmp_path: Path, stack: int) -> None:
    made = Mxfp4(stack * 16, 64)
    blocks, scales = tensor(made.blocks), tensor(made.scales)
    if stack > 1:
        blocks, scales = blocks.unflatten(0, (stack, 16)), scales.unflatten(0, (stack, 16))
    layout = read(tmp_path, {"_blocks": blocks, "_scales": scales}, {"quant_method": "mxfp4"}, 16, 64, stack)
    assert isinstance(layout, Codebook)
    assert torch.equal(layout.dequantize(), made.weight)


def test_compressed_tensors_mxfp4(tmp_path: Path) -> None:
    made = Mxfp4(16, 64)
    tensors = {".weight_packed": tensor(made.blocks).flatten(1), ".weight_scale": tensor(made.scales)}
    config = compressed("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32})
    assert torch.equal(read(tmp_path, tensors, config, 16, 64).dequantize(), made.weight)


BY_32 = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "dynamic": True}


@pytest.mark.parametrize(
    "config",
    [
        compressed("mxfp8-quantized", BY_32 | {"dynamic": False}, BY_32),
        Mxfp8.config,
    ],
)
def test_mxfp8(tmp_path: Path, config: dict[str, Any]) -> None:
    made = Mxfp8(48, 160)
    layout = read(tmp_path, made.tensors, config, 48, 160)
    assert isinstance(layout, Fp8) and layout.block == (1, 32) and layout.activation is None
    assert torch.equal(layout.dequantize(), made.weight)


@pytest.mark.parametrize("modelopt", [False, True])
def test_nvfp4(tmp_path: Path, modelopt: bool) -> None:
    made = Nvfp4(48, 160, modelopt=modelopt)
    layout = read(tmp_path, made.tensors, made.config, 48, 160, growth=1.35)
    assert isinstance(layout, Codebook) and layout.group == 16
    assert torch.equal(layout.dequantize(), made.weight)


@pytest.mark.parametrize("algo", ["FP8", "FP8_PER_CHANNEL_PER_TOKEN"])
def test_modelopt_fp8_with_a_config_of_its_own(tmp_path: Path, algo: str) -> None:
    fixed = algo == "FP8"
    made = Float8(160, 192, (160, 192) if fixed else (1, 192), ".weight_scale")
    made.tensors |= {".input_scale": torch.tensor(0.125)} if fixed else {}
    checkpoint = write(tmp_path, {LAYER + name: t for name, t in made.tensors.items()}, None)
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algo, "exclude_modules": []}})
    )
    for accepted in (None, "modelopt"):
        layout = reader_of(storage_of(checkpoint, accepted)).read(LAYER, 160, 192)
        assert isinstance(layout, Fp8) and layout.activation is not None
        assert layout.activation.scale == (0.125 if fixed else None)
        assert torch.equal(layout.dequantize(), made.weight)


def test_fbgemm_fp8(tmp_path: Path) -> None:
    made = Float8(160, 192, (1, 192), ".weight_scale")
    config = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    layout = read(tmp_path, made.tensors, config, 160, 192)
    assert isinstance(layout, Fp8) and layout.activation is not None and layout.activation.scale is None
    assert torch.equal(layout.dequantize(), made.weight)


@pytest.mark.parametrize("stated", ["config", "tensors"])
def test_scales_of_keys_and_values_are_left_with_a_word(
    tmp_path: Path, stated: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = Float8(160, 192, (160, 192), ".weight_scale")
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
    config = compressed("float-quantized", weights)
    tensors = {LAYER + name: t for name, t in made.tensors.items()}
    with caplog.at_level("WARNING", "quire"):
        reader_of(storage_of(write(tmp_path / "without", tensors, config), None))
    assert not caplog.messages
    if stated == "config":
        config["kv_cache_scheme"] = dict(weights, dynamic=False)
    else:
        tensors |= {f"model.layers.0.self_attn.{part}_scale": torch.tensor([0.5]) for part in "kv"}
    with caplog.at_level("WARNING", "quire"):
        reader = reader_of(storage_of(write(tmp_path / "with", tensors, config), None))
    (message,) = caplog.messages
    assert "(kv_cache_scheme) are not used" in message and "--kv-cache-dtype" in message
    assert torch.equal(reader.read(LAYER, 160, 192).dequantize(), made.weight)


def test_compressed_tensors_targets(tmp_path: Path) -> None:
    """Names go before classes; expressions match; what is ignored stays plain."""
    four, eight = Packed(32, 64, 4, 32, True, False), Packed(32, 64, 8, 32, True, False)
    groups = {
        "all": dict(four.config["config_groups"]["group_0"], targets=["Linear"]),
        "some": dict(eight.config["config_groups"]["group_0"], targets=["re:.*layers\\.1\\..*up_proj$"]),
    }
    config = dict(four.config, config_groups=groups, ignore=["re:.*gate_proj"])
    plain = torch.randn(32, 64)
    tensors = {"model.layers.0.mlp.up_proj" + name: t for name, t in four.tensors.items()}
    tensors |= {"model.layers.1.mlp.up_proj" + name: t for name, t in eight.tensors.items()}
    tensors["model.layers.1.mlp.gate_proj.weight"] = plain
    reader = reader_of(storage_of(write(tmp_path, tensors, config), None))
    assert torch.equal(reader.read("model.layers.0.mlp.up_proj", 32, 64).dequantize(), four.weight)
    assert torch.equal(reader.read("model.layers.1.mlp.up_proj", 32, 64).dequantize(), eight.weight)
    assert torch.equal(reader.read("model.layers.1.mlp.gate_proj", 32, 64).dequantize(), plain)


def test_bitstreams_are_as_the_formats_say() -> None:
    """3 bits: the eleventh integer lies across two words."""
    words = bitstream(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 5] + [0] * 21]).numpy(), 3)
    assert words.view("<u4").tolist()[0][0] == sum(v << 3 * i for i, v in enumerate([1, 2, 3, 4, 5, 6, 7, 0, 1, 2])) + (
        1 << 30
    )
    assert words.view("<u4").tolist()[0][1] == 1
