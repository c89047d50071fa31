"""Architectures that Transformers has as causal language models, but that can't run on pages: refused by their names.

Running the class once, without weights, would find the same (``fallback_probe``), after seconds of imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REASONS: dict[str, tuple[str, ...]] = {
    "its layers, or some of them, keep a state in place of keys and values": (
        "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma", "bamba", "falcon_h1", "jamba",
        "nemotron_h", "zamba", "zamba2", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "minimax", "olmo_hybrid",
        "bailing_hybrid",
    ),
    "its attention does not go through Transformers' attention interface": (
        "axk2", "big_bird", "bigbird_pegasus", "blenderbot", "codegen", "cpmant", "deepseek_v32", "deepseek_v4",
        "diffllama", "doge", "dots3_note", "dots3_note_text", "glm_moe_dsa", "gpt_neox_japanese", "hy_v4",
        "megatron-bert", "mllama", "mvp", "openai-gpt", "prophetnet", "reformer", "rembert", "roformer", "trocr",
        "xglm", "xlm", "xlnet",
    ),
}  # fmt: skip
_ENCODERS = (
    "bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "roberta", "roberta-prelayernorm",
    "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
REFUSALS = {name: reason for reason, names in _REASONS.items() for name in names}
REFUSALS |= dict.fromkeys(_ENCODERS, "it is an encoder, whose tokens attend to later ones, too")


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why the architecture can't run on pages; ``None``: it is not known that it can't."""
    name = str(config.get("model_type"))
    if name in _ENCODERS and config.get("is_decoder") is True:
        return None
    return REFUSALS.get(name)
