"""DeepSeek-V2, V3 and R1: multi-head latent attention, groups of experts, dense layers first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.model.config_reader import ConfigReader
from quire.model.families import llama
from quire.model.rope_scaling import yarn_mscale
from quire.model.spec import AttentionSpec, DecoderSpec, LatentSpec, LayerSpec, MlpSpec, MoeSpec, RopeSpec
from quire.model.weight_map import WeightMap
from quire.ops.shapes import Routing
from quire.weights.errors import CheckpointError

MODEL_TYPES: tuple[str, ...] = ("deepseek_v2", "deepseek_v3")
WEIGHTS = WeightMap()


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    c = ConfigReader(config)
    attention = _attention(c)
    return decoder(c, [attention] * c.count("num_hidden_layers"), v3=config["model_type"] == "deepseek_v3")


def decoder(c: ConfigReader, attention: Sequence[AttentionSpec], v3: bool) -> DecoderSpec:
    """Dense layers, then layers with experts that are routed as V3 does, or as V2."""
    dense, moe, norm = MlpSpec(c.count("intermediate_size"), c.activation("silu")), _moe(c, v3), llama.norm(c)
    first = c.count("first_k_dense_replace", 0, least=0)
    layers = tuple(LayerSpec(own, dense if i < first else moe, norm) for i, own in enumerate(attention))
    return c.decoder(str(c.config["model_type"]), layers, norm)


def _attention(c: ConfigReader) -> AttentionSpec:
    latent = LatentSpec(
        rank=c.count("kv_lora_rank"),
        plain=c.count("qk_nope_head_dim"),
        rotary=c.count("qk_rope_head_dim"),
        value_dim=c.count("v_head_dim"),
        q_rank=c.count("q_lora_rank") if c.config.get("q_lora_rank") is not None else None,
    )
    rope = c.rope(latent.rotary)
    scaling = dict(rope.scaling)
    mscale = yarn_mscale(_number(scaling, "factor"), _number(scaling, "mscale_all_dim"))
    bias = c.flag("attention_bias")
    return AttentionSpec(
        heads=c.count("num_attention_heads"),
        kv_heads=1,
        head_dim=latent.rotary + latent.rank,
        scale=(latent.plain + latent.rotary) ** -0.5 * mscale**2,
        rope=RopeSpec(rope.base, latent.rotary, rope.scaling, c.flag("rope_interleave", True)),
        qkv_bias=bias,
        out_bias=bias,
        latent=latent,
    )


def _number(scaling: Mapping[str, Any], key: str) -> float:
    return float(scaling.get(key) or 0)


def _moe(c: ConfigReader, v3: bool) -> MoeSpec:
    experts, top_k = c.experts("n_routed_experts", "num_local_experts", "num_experts")
    size, activation = c.count("moe_intermediate_size"), c.activation("silu")
    grouped = v3 or c.config.get("topk_method") == "group_limited_greedy"
    groups, top_groups = (c.count("n_group", 1), c.count("topk_group", 1)) if grouped else (1, 1)
    if experts % groups or top_groups > groups or top_k > experts // groups * top_groups:
        raise CheckpointError(
            f"The model's config has {groups} groups (n_group), to which {experts} experts don't fit."
        )
    routing = Routing(
        top_k,
        scoring="sigmoid" if v3 else "softmax",
        renormalize=v3 and c.flag("norm_topk_prob", True),
        scale=c.number("routed_scaling_factor", 1.0),
        groups=groups,
        top_groups=top_groups,
        group_score=2 if v3 else 1,
    )
    shared = c.count("n_shared_experts", 0, least=0)
    return MoeSpec(
        experts,
        size,
        activation,
        routing,
        correction=v3,
        shared=MlpSpec(size * shared, activation) if shared else None,
    )
