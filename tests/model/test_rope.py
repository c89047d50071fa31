"""Tables of cosines and sines against Transformers, up to and beyond the original length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from quire.model.config_reader import ConfigReader
from quire.model.rope import check_scaling, cos_sin_table
from quire.model.rope_scaling import stretched
from quire.weights.errors import CheckpointError
from quire.weights.hf_checkpoint import with_flat_rope

ORIGINAL = 64
HEAD_DIM = 32
FACTORS = {"short_factor": [1.0 + 0.01 * i for i in range(16)], "long_factor": [1.5 + 0.2 * i for i in range(16)]}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "yarn-betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.2},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def config_of(scaling: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_theta": 5000.0, **scaling},
    )


def table_of(config: Any, positions: int) -> torch.Tensor:
    reader = ConfigReader(with_flat_rope(config.to_dict()))
    return cos_sin_table(reader.rope(HEAD_DIM), positions)


def close(table: torch.Tensor, cos_sin: tuple[torch.Tensor, torch.Tensor]) -> None:
    wanted = torch.cat([x[0, :, : table.shape[1] // 2] for x in cos_sin], dim=1)
    torch.testing.assert_close(table, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [ORIGINAL - 10, 4 * ORIGINAL])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_equals_transformers(scaling: dict[str, Any], positions: int) -> None:
    rotary = LlamaRotaryEmbedding(config_of(scaling))
    close(table_of(config_of(scaling), positions), rotary(torch.zeros(1), torch.arange(positions)[None]))


@pytest.mark.parametrize("named", ["longrope", "su"])
@pytest.mark.parametrize("positions", [ORIGINAL, 4 * ORIGINAL])
def test_longrope_equals_transformers(positions: int, named: str) -> None:
    config = Phi3Config(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=4 * ORIGINAL,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": "longrope", "rope_theta": 5000.0, "partial_rotary_factor": 1.0, **FACTORS},
    )
    wanted = Phi3RotaryEmbedding(config)(torch.zeros(1), torch.arange(positions)[None])
    config.rope_parameters["rope_type"] = named
    close(table_of(config, positions), wanted)


@pytest.mark.parametrize(("kind", "reach"), [("default", 64), ("linear", 256), ("dynamic", 256), ("yarn", 256)])
def test_reach(kind: str, reach: int) -> None:
    rope = ConfigReader(with_flat_rope(config_of(SCALINGS[kind]).to_dict())).rope(HEAD_DIM)
    assert stretched(rope, ORIGINAL) == reach


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "spiral"}, "'spiral' is not supported; supported are default, linear"),
        ({"rope_type": "linear"}, "'linear' of the model's config lacks"),
        ({"rope_type": "linear", "factor": 0}, "'linear' of the model's config lacks or spoils"),
        ({"rope_type": "yarn", "factor": -4}, "'yarn' of the model's config lacks or spoils"),
        ({"rope_type": "dynamic", "factor": "2x"}, "'dynamic' of the model's config lacks or spoils"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "'longrope' of the model's config"),
    ],
)
def test_refuses(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_scaling(ConfigReader({"rope_scaling": scaling, "max_position_embeddings": 64}).rope(HEAD_DIM))
