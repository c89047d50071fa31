"""Reading a Hugging Face config: every value checked, every error naming the field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.model.rope_scaling import check_form, stretched
from quire.model.spec import Activation, DecoderSpec, LayerSpec, NormSpec, RopeSpec
from quire.weights.errors import CheckpointError

_MAX_COUNT = 1 << 24
_MAX_LAYERS = 1 << 12  # each of which is an object before a tensor is asked for
_MAX_NUMBER = 1e12
_LAYER_TYPES = ("full_attention", "sliding_attention", "linear_attention")
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


class UnsupportedVariant(CheckpointError):
    """A family's model with a setting that the decoder has nothing for; Transformers may run it."""


def renamed(config: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """``config`` with fields under the usual names too: ``usual="own"``."""
    return {usual: config[own] for usual, own in names.items() if config.get(own) is not None} | dict(config)


@dataclass(frozen=True)
class ConfigReader:
    """Typed access to ``config``; raises ``CheckpointError`` for a value that is missing or absurd."""

    config: Mapping[str, Any]

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        value, most = self._value(key, default), _MAX_LAYERS if key == "num_hidden_layers" else _MAX_COUNT
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _unusable(key, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _MAX_NUMBER:
            raise _unusable(key, f"a positive number up to {_MAX_NUMBER:g}")
        return float(value)

    def fields(self, key: str) -> dict[str, Any]:
        """The object called ``key``; empty where there is none."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise _unusable(key, "an object")
        return dict(value)

    def listed(self, key: str) -> list[Any]:
        """The list called ``key``; empty where there is none."""
        value = self._value(key, [])
        if not isinstance(value, list):
            raise _unusable(key, "a list")
        return value

    def cap(self, key: str) -> float | None:
        """Of scores or logits, where there is one."""
        return None if self.config.get(key) is None else self.number(key, 0.0)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise _unusable(key, "true or false")
        return value

    def layer_norm(self, key: str, bias: bool = True) -> NormSpec:
        """A layer norm with the epsilon called ``key``."""
        return NormSpec("layer", eps=self.number(key, 1e-5), bias=bias)

    def refuse(self, *keys: str) -> None:
        """Raises ``UnsupportedVariant`` for the first of ``keys`` that is set."""
        for key in keys:
            if self.config.get(key):
                raise UnsupportedVariant(f"Models of this family with {key} set are not supported natively.")

    def experts(self, *keys: str) -> tuple[int, int]:
        """How many experts there are, by the first of ``keys`` that is there, and how many a token goes through."""
        key = next((key for key in keys if key in self.config), keys[0])
        experts, top_k = self.count(key), self.count("num_experts_per_tok")
        if top_k > experts:
            raise CheckpointError(f"The model's config wants {top_k} experts a token, but has {experts} ({key}).")
        return experts, top_k

    def head_dim(self) -> int:
        heads = self.count("num_attention_heads")
        return self.count("head_dim", self.count("hidden_size") // heads)

    def activation(self, default: str, key: str = "hidden_act") -> Activation:
        name = self.config.get(key) or default
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise CheckpointError(f"The activation {str(name)[:40]!r} ({key}) is not supported.")
        return _ACTIVATIONS[name]

    def rope(
        self, head_dim: int, *, base: float = 10_000.0, partial: float = 1.0, interleaved: bool = False
    ) -> RopeSpec:
        """``base`` and ``partial`` (the part of a head that is rotated): where the config doesn't say."""
        scaling = self._rope_scaling()
        part = ConfigReader({"partial_rotary_factor": scaling.pop("partial_rotary_factor", None)})
        partial = min(part.number("partial_rotary_factor", self.number("partial_rotary_factor", partial)), 1.0)
        numbers = {k: tuple(v) if isinstance(v, list) else v for k, v in scaling.items() if v is not None}
        rope = RopeSpec(
            self.number("rope_theta", base),
            int(head_dim * partial),
            tuple(sorted(numbers.items())) if numbers["rope_type"] != "default" else (),
            interleaved,
        )
        check_form(rope)
        stretched(rope, 1)
        return rope

    def _rope_scaling(self) -> dict[str, Any]:
        """``rope_scaling`` with all that its kind needs; the fields that Transformers takes from elsewhere too."""
        scaling = self.fields("rope_scaling")
        kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
        kind = "longrope" if "long_factor" in scaling else kind  # it was called su and yarn at first
        positions, original = "max_position_embeddings", "original_max_position_embeddings"
        if kind in ("yarn", "llama3", "longrope"):
            stated = ConfigReader(scaling).count(original, self.count(positions))
            scaling[original] = self.count(original, stated)
        if kind == "dynamic":
            scaling[original] = self.count(positions)
        if kind in ("yarn", "longrope") and scaling.get("factor") is None:
            scaling["factor"] = self.count(positions) / float(scaling[original])
        return scaling | {"rope_type": kind}

    def window(self) -> int | None:
        return None if self.config.get("sliding_window") is None else self.count("sliding_window")

    def windows(self, sliding: Callable[[int], bool] = lambda layer: True) -> list[int | None]:
        """Each layer's window: where ``layer_types`` says so; without them, where ``sliding(layer)``."""
        types, window = self.config.get("layer_types"), self.window()
        if types is None:
            return [window if sliding(i) else None for i in range(self.count("num_hidden_layers"))]
        return [window if kind == "sliding_attention" else None for kind in self.layer_types(default_period=1)]

    def layer_types(self, default_period: int) -> list[str]:
        """Attention kind of each layer: listed, or every ``sliding_window_pattern``-th one full."""
        layers = self.count("num_hidden_layers")
        types = self.config.get("layer_types")
        if types is None:
            period = self.count("sliding_window_pattern", default_period)
            return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
        if not isinstance(types, list) or len(types) != layers:
            raise CheckpointError(f"The model's config must list {layers} layer_types, one for each layer.")
        if odd := [kind for kind in types if kind not in _LAYER_TYPES]:
            raise UnsupportedVariant(
                f"Layers of the type {str(odd[0])[:40]!r} (layer_types) are not supported natively."
            )
        return types

    def eos_token_ids(self) -> tuple[int, ...]:
        ids = self._value("eos_token_id", [])
        ids = ids if isinstance(ids, list) else [ids]
        if not all(type(i) is int for i in ids):
            raise _unusable("eos_token_id", "an integer, or a list of them,")
        return tuple(ids)

    def decoder(
        self,
        family: str,
        layers: tuple[LayerSpec, ...],
        final_norm: NormSpec,
        *,
        tied_head: bool = False,
        **settings: Any,
    ) -> DecoderSpec:
        """``tied_head``: whether it is where the config doesn't say. ``settings``: other fields of the spec."""
        positions = self.count("max_position_embeddings")
        ropes = {layer.attention.rope for layer in layers if layer.attention.rope}
        return DecoderSpec(
            family=family,
            hidden_size=self.count("hidden_size"),
            vocab_size=self.count("vocab_size"),
            max_position=positions,
            max_stretched_position=max([positions, *(stretched(rope, positions) for rope in ropes)]),
            layers=layers,
            final_norm=final_norm,
            tied_head=self.flag("tie_word_embeddings", tied_head),
            logit_softcap=self.cap("final_logit_softcapping"),
            eos_token_ids=self.eos_token_ids(),
            **settings,
        )

    def _value(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        return default if value is None else value


def _unusable(key: str, wanted: str) -> CheckpointError:
    return CheckpointError(f"The model's config has no usable {key}: {wanted} is needed.")
