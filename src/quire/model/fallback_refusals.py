"""Architectures that Transformers has as causal language models, but that can't run on pages: refused by their names.

Running the class once, without weights, would find the same (``fallback_probe``), after seconds of imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STATES = "its layers, or some of them, keep a state in place of keys and values"
_REASONS: dict[str, tuple[str, ...]] = {
    _STATES: (
        "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma", "bamba", "falcon_h1", "jamba",
        "nemotron_h", "zamba", "zamba2", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "minimax", "olmo_hybrid",
        "bailing_hybrid", "granitemoehybrid",
    ),
    "its attention does not go through Transformers' attention interface": (
        "axk2", "big_bird", "bigbird_pegasus", "blenderbot", "codegen", "cpmant", "deepseek_v32", "deepseek_v4",
        "diffllama", "doge", "dots3_note", "dots3_note_text", "git", "glm_moe_dsa", "gpt_neox_japanese", "hy_v4",
        "megatron-bert", "mllama", "mvp", "openai-gpt", "prophetnet", "reformer", "rembert", "roformer", "trocr",
        "xglm", "xlm", "xlnet",
    ),
    "its attention mask is neither causal nor a sliding window": ("llama4", "llama4_text"),
    "what its experts compute depends on values in ways that its class can't be checked for": (
        "dbrx", "jetmoe", "longcat_flash",
    ),
}  # fmt: skip
_ENCODERS = (
    "bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "roberta", "roberta-prelayernorm",
    "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
_STATE_LAYERS = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"}  # of layer_types
REFUSALS = {name: reason for reason, names in _REASONS.items() for name in names}
REFUSALS |= dict.fromkeys(_ENCODERS, "it is an encoder, whose tokens attend to later ones, too")


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why the architecture can't run on pages; ``None``: it is not known that it can't."""
    name, layers = str(config.get("model_type")), config.get("layer_types")
    if name in _ENCODERS and config.get("is_decoder") is True:
        return None
    if isinstance(layers, list) and any(kind in _STATE_LAYERS for kind in layers if isinstance(kind, str)):
        return _STATES
    return REFUSALS.get(name)
