"""Architectures without a family run through Transformers' classes on Quire's pages, and give the same logits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from quire.config.engine import EngineConfig
from quire.model import transformers_index
from quire.model.fallback import FallbackDecoder, FallbackLoader
from quire.model.fallback_probe import probe
from quire.model.fallback_refusals import REFUSALS
from quire.model.families import FAMILIES
from quire.ops.backend import backend
from quire.ops.triton import TritonOps
from quire.runtime import build
from quire.weights.errors import CheckpointError
from quire.weights.hf_checkpoint import HFCheckpoint
from tests.model.agreement import TOKENS, WAYS, check_batch, check_chunks, check_shared_prefix, expected, random_model
from tests.model.harness import Harness
from tests.model.narrow import errors, in_bfloat16

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GEMMA = {
    "num_hidden_layers": 6,
    "head_dim": 16,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 320,
}
CASES: dict[str, dict[str, Any]] = {
    "apertus": {"model_type": "apertus"},
    "exaone4": {  # sliding windows and full attention
        "model_type": "exaone4",
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "granite_swa": {"model_type": "granite_swa", "sliding_window": 24},  # sinks, multipliers, scaled logits
    "minicpm3": {  # heads of 24 for keys, 16 for values
        "model_type": "minicpm3",
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "ernie4_5_moe": {
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_layer_start_index": 1,
    },
    "gemma3n": {  # AltUp, LAuReL, embeddings for each layer, keys and values of other layers, sparse activations
        **GEMMA,
        "model_type": "gemma3n_text",
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        "intermediate_size": [96] * 6,
    },
    "gemma4": {**GEMMA, "model_type": "gemma4_text", "global_head_dim": 32},
    "gemma4-moe": {
        **GEMMA,
        "model_type": "gemma4_text",
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "llama": {"model_type": "llama"},
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp(request.param)
    return random_model({**COMMON, **CASES[request.param]}, path), path


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_agrees_with_transformers(case: tuple[Any, Path], way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = case

    monkeypatch.delitem(FAMILIES, model.config.model_type, raising=False)  # forces it on those that have a family

    def opened(sequences: list[list[int]]) -> Harness:
        harness = Harness(path, sequences)
        assert isinstance(harness.decoder, FallbackDecoder)
        return harness

    way(model, opened)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float32_on_a_gpu(case: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = case
    monkeypatch.delitem(FAMILIES, model.config.model_type, raising=False)
    ops = TritonOps("cuda", torch.float32)

    def near(actual: torch.Tensor, wanted: torch.Tensor) -> None:
        error = errors(actual, wanted).median()
        assert error < 1e-4, f"{float(error):.5f}"

    for way in (check_chunks, check_batch, check_shared_prefix):
        way(model, lambda sequences: Harness(path, sequences, ops=ops), near)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_on_a_gpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = in_bfloat16({**COMMON, **CASES[name]}, tmp_path, experts="moe" in name)
    monkeypatch.delitem(FAMILIES, case.model.config.model_type, raising=False)
    ops = TritonOps("cuda", torch.bfloat16)
    for way in (check_chunks, check_batch, check_shared_prefix):
        way(case.model, lambda sequences: Harness(tmp_path, sequences, ops=ops), case.near)


def test_runs_the_text_part_of_a_model_for_images_too(tmp_path: Path) -> None:
    """As Gemma 3n is published; the class of the whole would need a library for its vision part."""
    model = random_model({**COMMON, **CASES["gemma3n"]}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("model.", "model.language_model.", 1): t for name, t in tensors.items()}
    tensors["model.vision_tower.conv.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    check_chunks(model, lambda sequences: Harness(tmp_path, sequences))


def save(path: Path, model_type: str, **settings: Any) -> Path:
    config = AutoConfig.for_model(model_type, **{**COMMON, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        build.make_blueprint(EngineConfig(model=str(path)))
    return str(caught.value)


@pytest.mark.parametrize("model_type", ["lfm2", "diffllama"])
def test_refuses_layers_that_are_not_plain_attention(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(REFUSALS, model_type, raising=False)
    assert "not all attention" in refusal(save(tmp_path, model_type))


def test_refuses_masks_of_other_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(REFUSALS, "bert")
    assert "cannot serve" in refusal(save(tmp_path, "bert"))


@pytest.mark.parametrize("model_type", REFUSALS)
def test_what_is_refused_by_name_is_what_the_probe_refuses(model_type: str) -> None:
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip("this Transformers has no such class")
    with pytest.raises(CheckpointError, match="cannot run through Transformers"):
        probe(AutoConfig.for_model(model_type), model_type)


def test_encoders_that_are_decoders_are_not_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, "roberta", is_decoder=True, max_position_embeddings=514)
    assert build.make_blueprint(EngineConfig(model=str(path), device="cpu")).spec.family == "transformers:roberta"


def test_refuses_what_would_depend_on_the_batch(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert "'dynamic'" in refusal(save(tmp_path, "apertus", rope_parameters=rope))


def test_refuses_tokens_that_mix_outside_of_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.apertus.modeling_apertus import ApertusMLP

    plain = ApertusMLP.forward
    monkeypatch.setattr(ApertusMLP, "forward", lambda self, x: plain(self, x + x.roll(1, dims=1)))
    loader = build.make_blueprint(EngineConfig(model=str(save(tmp_path, "apertus")))).loader
    with pytest.raises(CheckpointError, match="outside of attention"):
        loader.decoder(1, 64)


def test_refuses_a_missing_tensor(tmp_path: Path) -> None:
    save(tmp_path, "apertus")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loader = build.make_blueprint(EngineConfig(model=str(tmp_path), device="cpu")).loader
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        loader.decoder(1, 64)


def test_refuses_unknown_architectures_and_their_code(tmp_path: Path) -> None:
    save(tmp_path, "apertus")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "homegrown", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran code of a checkpoint')")
    assert "known neither to Quire nor to the Transformers" in refusal(tmp_path)


def test_the_index_of_decoders_is_transformers_own() -> None:
    package = transformers_index.installed()
    assert package is not None
    assert transformers_index.decoders(package) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_without_an_index_transformers_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert transformers_index.decoders(tmp_path) is None
    monkeypatch.setattr(transformers_index, "decoders", lambda package: None)
    (save(tmp_path, "apertus") / "config.json").write_text(json.dumps(COMMON | {"model_type": "homegrown"}))
    assert "known neither" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "homegrown"}, "'homegrown' is known neither to Quire nor to the Transformers installed here"),
        ({"model_type": "vit"}, "'vit' is known neither .* as a causal language model"),
        ({"model_type": "mamba"}, "'mamba' has no family .* keep a state in place of keys and values"),
        ({"model_type": "bert"}, "'bert' has no family .* it is an encoder"),
        ({"model_type": "apertus", "hidden_size": -1}, "hidden_size: an integer from 1"),
        ({"model_type": "ctrl", "n_embd": "wide"}, "n_embd: an integer from 1"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size: an integer from 1"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not supported"),
    ],
)
@pytest.mark.parametrize("call", ["LLM({!r})", "asyncio.run(AsyncLLM({!r}).start())"])
def test_refuses_without_importing_torch_or_transformers(
    tmp_path: Path, call: str, config: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(COMMON | config))
    code = (
        "import asyncio, sys\n"
        "from quire import LLM, AsyncLLM\n"
        "from quire.weights.errors import CheckpointError\n"
        "try:\n"
        f"    {call.format(str(tmp_path))}\n"
        "except CheckpointError as error:\n"
        "    print([name for name in ('torch', 'transformers') if name in sys.modules], error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert re.match(rf"\[\] .*{words}", ran.stdout), ran.stdout + ran.stderr


def test_names_what_is_wrong_with_a_config(tmp_path: Path) -> None:
    file = save(tmp_path, "apertus") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": "small"}))
    assert re.search("can't read this config of the architecture 'apertus': .*rms_norm_eps", refusal(tmp_path))


def test_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "apertus")
    monkeypatch.setattr(transformers_index, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'quire-llm\[transformers\]'"):
        FallbackLoader(HFCheckpoint(tmp_path), backend("reference"))


def test_refuses_tensors_that_are_not_as_the_class_has_them(tmp_path: Path) -> None:
    save(tmp_path, "apertus")
    name, file = "model.layers.1.mlp.down_proj.weight", tmp_path / "model.safetensors"
    tensors = load_file(file)
    loader = build.make_blueprint(EngineConfig(model=str(tmp_path), device="cpu")).loader
    save_file({**tensors, name: tensors[name][:, :50].contiguous()}, file, metadata={"format": "pt"})
    misshapen = rf"{name} has the shape \[64, 50\].* \[64, \d+\]"
    assert re.search(misshapen, refusal(tmp_path))  # by its header
    with pytest.raises(CheckpointError, match=misshapen):
        loader.decoder(1, 64)
    bias = name.replace("weight", "bias")
    save_file({**tensors, bias: torch.ones(64)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"has the tensor {bias}, which its class has no use for"):
        loader.decoder(1, 64)
    save_file({**tensors, name: tensors[name].int()}, file, metadata={"format": "pt"})
    assert f"{name} has the type I32" in refusal(tmp_path)


def test_never_reads_pickled_weights(tmp_path: Path) -> None:
    (save(tmp_path, "apertus") / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "only pickled weights" in refusal(tmp_path)


def test_refuses_absurd_sizes(tmp_path: Path) -> None:
    file = save(tmp_path, "apertus") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 10**6}))
    assert "num_hidden_layers: an integer from 1 to 4096" in refusal(tmp_path)


def test_matrices_keep_their_type(tmp_path: Path) -> None:
    save(tmp_path, "apertus", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    loader = build.make_blueprint(EngineConfig(model=str(tmp_path), device="cpu")).loader
    linears = sum(m.weight.nbytes for m in model.modules() if type(m) is torch.nn.Linear)
    others = sum(p.numel() * 4 for p in model.parameters()) - 2 * linears
    assert loader.check().nbytes == linears + others


def test_quantised_at_load(tmp_path: Path) -> None:
    model = random_model({**COMMON, **CASES["apertus"]}, tmp_path)
    plain, narrow = (
        build.make_blueprint(EngineConfig(model=str(tmp_path), quantization=method)).loader.check().nbytes
        for method in (None, "int8")
    )
    linears = sum(m.weight.numel() for name, m in model.named_modules() if type(m) is torch.nn.Linear)
    head = model.lm_head.weight.numel()
    assert plain - narrow == 3 * (linears - head)
    difference = Harness(tmp_path, [TOKENS], quantization="int8").step({0: 70})[0] - expected(model, TOKENS)
    assert 0 < difference.abs().mean() < 0.02
