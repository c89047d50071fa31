"""Families with experts or latent attention, tiny and random, against Transformers: logits and greedy tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from quire.config.engine import EngineConfig
from quire.model.loader import Loader
from quire.runtime.build import make_blueprint
from quire.weights.errors import CheckpointError
from tests.model.agreement import TOKENS, WAYS, check_chunks, check_recorded, expected, random_model
from tests.model.harness import Harness

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "moe_intermediate_size": 48,
    "num_experts_per_tok": 3,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
ROUTED = {
    "moe_intermediate_size": 48,
    "num_experts_per_tok": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
}
HYBRID = {
    "rms_norm_eps": 1e-2,  # outputs of random states are small by chance, and norming them would amplify rounding
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
}
HYBRID_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
CASES: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 44,
        "shared_expert_intermediate_size": 80,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2",
        **LATENT,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
    },
    "deepseek_v2_groups": {
        "model_type": "deepseek_v2",
        **LATENT,
        "q_lora_rank": 40,
        "n_shared_experts": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.0,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **LATENT,
        "q_lora_rank": 40,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": YARN,
    },
    "glm4_moe": {
        "model_type": "glm4_moe",
        **ROUTED,
        "head_dim": 32,
        "use_qk_norm": True,
        "attention_bias": True,
        "first_k_dense_replace": 1,
    },
    "dots1": {
        "model_type": "dots1",
        **ROUTED,
        "head_dim": 16,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "routed_scaling_factor": 1.5,
        "norm_topk_prob": True,
    },
    "olmoe": {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 2},
    "granitemoe": {
        "model_type": "granitemoe",
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "embedding_multiplier": 6.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
    },
    "granitemoeshared": {
        "model_type": "granitemoeshared",
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 80,
        "residual_multiplier": 0.5,
    },
    "granitemoehybrid": {
        "model_type": "granitemoehybrid",
        "layer_types": ["attention"] * 3,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 80,
        "attention_multiplier": 0.2,
        "mamba_n_heads": 4,
    },
    "granitemoehybrid_dense": {
        "model_type": "granitemoehybrid",
        "layer_types": ["attention"] * 3,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 80,
        "position_embedding_type": "rope",
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.4,
        "mamba_n_heads": 4,
    },
    "phimoe": {
        "model_type": "phimoe",
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.3,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "phimoe_longrope": {
        "model_type": "phimoe",
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "original_max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            "short_mscale": 1.2,
            "long_mscale": 1.2,
            "original_max_position_embeddings": 512,
        },
    },
    "qwen3_next": {"model_type": "qwen3_next", **HYBRID, **HYBRID_EXPERTS, "mlp_only_layers": [1]},
    "qwen3_5": {"model_type": "qwen3_5_text", **HYBRID},
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text", **HYBRID, **HYBRID_EXPERTS},
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp(request.param)
    return random_model({**COMMON, **CASES[request.param]}, path), path


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_agrees_with_transformers(case: tuple[Any, Path], way: Any) -> None:
    model, path = case
    assert isinstance(make_blueprint(EngineConfig(model=str(path), threads=1)).loader, Loader)
    way(model, lambda sequences: Harness(path, sequences))


def test_decodes_as_replays(case: tuple[Any, Path]) -> None:
    """All but latent attention and hybrids, which compute with torch too."""
    model, path = case
    if not path.name.startswith(("deepseek", "qwen3_next", "qwen3_5")):
        check_recorded(model, lambda sequences: Harness(path, sequences))


def test_refuses_more_choices_than_experts(tmp_path: Path) -> None:
    random_model({**COMMON, **CASES["mixtral"]}, tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 7'))
    with pytest.raises(CheckpointError, match="7 experts a token, but has 6"):
        make_blueprint(EngineConfig(model=str(tmp_path)))


def mxfp4(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random codes and scales of the shape of ``values [E, K, N]`` as gpt-oss stores them, and what they stand for."""
    experts, inputs, outputs = values.shape
    codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), dtype=torch.uint8)
    scales = torch.randint(121, 125, (experts, outputs, inputs // 32), dtype=torch.uint8)
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    numbers = table[(codes & 7).long()] * torch.where(codes > 7, -1.0, 1.0) * 2.0 ** (scales[..., None].float() - 127)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4
    return blocks, scales, numbers.flatten(2).mT.contiguous()


def test_gpt_oss_with_mxfp4_experts(tmp_path: Path) -> None:
    model = random_model({**COMMON, **CASES["gpt_oss"]}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name.endswith("_proj") and ".experts." in name:
            blocks, scales, numbers = mxfp4(parameter)
            parameter.data.copy_(numbers)
            del tensors[name]
            tensors |= {name + "_blocks": blocks, name + "_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_chunks(model, lambda sequences: Harness(tmp_path, sequences))


def test_experts_quantised_at_load(tmp_path: Path) -> None:
    """Each expert by itself in int8: near the plain model, in half of bfloat16's memory and less."""
    model = random_model({**COMMON, **CASES["qwen3_moe"]}, tmp_path)
    plain, narrow = (
        make_blueprint(EngineConfig(model=str(tmp_path), threads=1, quantization=method)).loader
        for method in (None, "int8")
    )
    assert narrow.check().nbytes < 0.45 * plain.check().nbytes
    harness = Harness(tmp_path, [TOKENS], quantization="int8")
    difference = harness.step({0: 70})[0] - expected(model, TOKENS)
    assert 0 < difference.abs().mean() < 0.02


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_headers_are_checked_without_torch(name: str, tmp_path: Path) -> None:
    """Importing it takes a second or two."""
    random_model({**COMMON, **CASES[name]}, tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from quire.config.engine import EngineConfig; from quire.model.support import open_supported\n"
        f"open_supported(EngineConfig(), Path({str(tmp_path)!r}))\n"
        "print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "False\n", ran.stderr


def test_text_of_a_multimodal_hybrid(tmp_path: Path) -> None:
    """Qwen3.5 is published with a vision tower, its decoder a level deeper."""
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    text = {**COMMON, **CASES["qwen3_5"]}
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config={**vision, "num_position_embeddings": 16})
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    check_chunks(model, lambda sequences: Harness(tmp_path, sequences))
