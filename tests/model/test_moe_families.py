"""Families with experts or latent attention, tiny and random, against Transformers: logits and greedy tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quire.config.engine import EngineConfig
from quire.model.loader import Loader
from quire.runtime.build import make_blueprint
from quire.weights.errors import CheckpointError
from tests.model.agreement import WAYS, random_model
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


def test_refuses_more_choices_than_experts(tmp_path: Path) -> None:
    random_model({**COMMON, **CASES["mixtral"]}, tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 7'))
    with pytest.raises(CheckpointError, match="7 experts a token, but has 6"):
        make_blueprint(EngineConfig(model=str(tmp_path)))
