"""Checkpoints that are stored otherwise than usual, or don't fit their config."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from quire.config.engine import EngineConfig
from quire.model.fallback import FallbackLoader
from quire.model.families import describe
from quire.model.support import open_supported
from quire.runtime.build import Blueprint, make_blueprint
from quire.weights.errors import CheckpointError
from quire.weights.hf_checkpoint import with_flat_rope
from tests.model.agreement import TOKENS, close, expected, random_model
from tests.model.harness import Harness
from tests.model.test_families import CASES

FILE = "model.safetensors"


def opened(path: Path) -> Blueprint:
    return make_blueprint(EngineConfig(model=str(path)))


def refusal(path: Path) -> str:
    """By the server's front, at once, and by whoever builds the model."""
    with pytest.raises(CheckpointError) as caught:
        opened(path)
    with pytest.raises(CheckpointError) as at_once:
        open_supported(EngineConfig(), path)
    assert str(at_once.value) == str(caught.value)
    return str(caught.value)


def change(path: Path, put: dict[str, torch.Tensor] | None = None, drop: str = "", config: Any = None) -> None:
    tensors = load_file(path / FILE) | (put or {})
    tensors.pop(drop, None)
    save_file(tensors, path / FILE)
    settings = json.loads((path / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps(settings))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    random_model(CASES["llama"], tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["gpt2", "bloom", "opt", "llama-mha-tied"])
def test_checkpoint_of_a_bare_model(name: str, tmp_path: Path) -> None:
    model = random_model(CASES[name], tmp_path)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert not any(key.startswith(("transformer.", "model.")) for key in load_file(tmp_path / FILE))
    close(Harness(tmp_path, [TOKENS]).step({0: 70})[0], expected(model, TOKENS))


def test_text_part_of_a_model_for_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {key: value for key, value in CASES["gemma3"].items() if key != "model_type"}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    close(Harness(tmp_path, [TOKENS]).step({0: 70})[0], expected(model, TOKENS))


def test_sharded(tmp_path: Path) -> None:
    model = random_model(CASES["llama"], tmp_path)
    (tmp_path / FILE).unlink()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    close(Harness(tmp_path, [TOKENS]).step({0: 70})[0], expected(model, TOKENS))


def test_missing_tensor(llama: Path) -> None:
    change(llama, drop="model.layers.1.mlp.up_proj.weight")
    assert "lacks the tensor model.layers.1.mlp.up_proj.weight" in refusal(llama)


def test_tensor_that_contradicts_the_config(llama: Path) -> None:
    change(llama, config={"num_key_value_heads": 4})
    message = refusal(llama)
    assert "model.layers.0.self_attn.k_proj.weight" in message
    assert "[32, 64]" in message
    assert "[64, 64]" in message


def test_extra_tensors_that_would_change_results(llama: Path) -> None:
    change(llama, put={"model.layers.2.self_attn.q_norm.weight": torch.ones(16)})
    assert "model.layers.2.self_attn.q_norm.weight, which the config does not call for" in refusal(llama)


def test_layers_beyond_those_of_the_config(llama: Path) -> None:
    change(llama, config={"num_hidden_layers": 2})
    assert "model.layers.2.input_layernorm.weight, but the config's num_hidden_layers is 2, not 3 or more" in refusal(
        llama
    )


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_types_that_are_no_plain_weights(llama: Path, name: str) -> None:
    change(llama, put={name: load_file(llama / FILE)[name].to(torch.int8)})
    assert f"{name} has the type I8, where plain weights are F32, F16, BF16" in refusal(llama)


@pytest.mark.parametrize("name", CASES)
def test_every_field_of_a_config_is_checked(name: str) -> None:
    """Whatever stands in a field, it does or ends in a sentence."""
    settings = dict(CASES[name])
    settings.pop("attention", None)
    config = json.loads(AutoConfig.for_model(settings.pop("model_type"), **settings).to_json_string(use_diff=False))
    describe(with_flat_rope(config))
    for field in (*config, "rope_scaling"):
        inner = config.get(field)
        for junk in ("x", -1, 1.5, 10**30, [1], {"a": 1}, True, float("nan")):
            changes = [junk] + ([{**inner, key: junk} for key in inner] if isinstance(inner, dict) else [])
            for value in changes:
                with contextlib.suppress(CheckpointError):
                    describe(with_flat_rope({**config, field: value}))


@pytest.mark.parametrize(("dtype", "item"), [("bfloat16", 2), ("float32", 4), (None, 4), (["x"], 4)])
def test_random_weights_take_what_the_checkpoint_would(llama: Path, dtype: object, item: int) -> None:
    change(llama, config={"dtype": dtype})
    blueprint = make_blueprint(EngineConfig(model=str(llama), device="cpu", load_format="dummy"))
    tensors = load_file(llama / FILE).values()
    matrices, norms = (sum(t.numel() for t in tensors if t.dim() == dims) for dims in (2, 1))
    assert blueprint.loader.check().nbytes == item * matrices + 4 * norms
    assert 0.95 < blueprint.loader.decoder(1, 64).nbytes / (item * matrices) < 1.05


def test_extra_biases(llama: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    change(llama, put={name: torch.zeros(64)})
    opened(llama)
    change(llama, put={name: torch.ones(64)})
    assert name in refusal(llama)


def test_extra_tensors_without_a_use(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    with caplog.at_level(logging.WARNING):
        change(llama, put=buffers)
        opened(llama)
        assert not caplog.text
        change(llama, put={"v_head.summary.weight": torch.ones(8), "model.layers.3.eh_proj.weight": torch.ones(8)})
        opened(llama)
    assert (
        "2 tensors that the decoder does not use: model.layers.3.eh_proj.weight, v_head.summary.weight" in caplog.text
    )


def test_unknown_architecture_names_the_nearest(llama: Path) -> None:
    change(llama, config={"model_type": "qwen4"})
    message = refusal(llama)
    assert "'qwen4'" in message
    assert "qwen3" in message


@pytest.mark.parametrize("model_type", [None, 5, [], {"llama": 1}])
def test_an_architecture_that_is_no_text(llama: Path, model_type: object) -> None:
    change(llama, config={"model_type": model_type})
    assert "model_type must be a text" in refusal(llama)
    change(llama, config={"text_config": {"model_type": model_type}})
    assert "model_type must be a text" in refusal(llama)


def test_variant_that_no_family_has_runs_through_transformers(tmp_path: Path) -> None:
    random_model({**CASES["olmo"], "clip_qkv": 8.0}, tmp_path)
    assert isinstance(opened(tmp_path).loader, FallbackLoader)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon-40b", "phi3", "glm4"])
def test_quantised_at_load(name: str, tmp_path: Path) -> None:
    """Fused and transposed modules are taken apart as their quantised rows."""
    model = random_model(CASES[name], tmp_path)
    blueprint = make_blueprint(EngineConfig(model=str(tmp_path), quantization="int8"))
    wanted = expected(model, TOKENS)
    harness = Harness(tmp_path, [TOKENS], quantization="int8")
    error = (harness.step({0: 70})[0] - wanted).norm() / wanted.norm()
    assert 1e-4 < error < 0.03
    assert harness.decoder.nbytes <= 1.25 * blueprint.loader.check().nbytes
