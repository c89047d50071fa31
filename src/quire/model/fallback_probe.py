"""What a Transformers class asks of attention: found by running it once on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from quire.model.fallback_class import unsupported
from quire.model.spec import AttentionSpec
from quire.weights.errors import CheckpointError

IMPLEMENTATION = "quire"
# Few at first: a class that goes from token to token without attention is slow. Then enough for one that attends to
# summaries of far tokens to show it.
_PROBE_TOKENS = (8, 5000)
_NOT_PLAIN = "its layers are not all attention behind Transformers' attention interface"
_HEAD_STEP = 8  # a page's heads are a multiple of this wide


@dataclass(frozen=True)
class AttentionCall:
    """Attention as one layer calls it; pages take heads of ``spec.head_dim``, which may be wider than the model's."""

    module: str
    spec: AttentionSpec
    value_dim: int


@dataclass(frozen=True)
class _Mask:
    """Stands for the mask that Transformers would have built."""

    visible: Callable[..., Any]
    window: int | None

    def __getitem__(self, index: object) -> _Mask:
        """Of some rows, which some classes take: a class that leaves rows out is seen by its queries."""
        return self


class _NotServed(Exception):
    """Why a class can't run on pages."""


def _register() -> None:
    """Make ``attn_implementation="quire"`` known to Transformers: each module brings its own function, ``quire``."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask)


def _attend(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any = None, **facts: Any) -> Any:
    function: Any = module.quire
    return function(query, key, value, attention_mask, **facts), None


def _mask(*, mask_function: Callable[..., Any], local_size: int | None = None, **_: Any) -> _Mask:
    return _Mask(mask_function, local_size)


def probe(config: Any, architecture: str) -> tuple[list[AttentionCall], Any]:
    """The attention of each layer, and the model without weights.

    Raises ``CheckpointError`` for a class that can't be made of the config, or does not leave all mixing of tokens to
    the attention interface.
    """
    _register()
    calls: list[AttentionCall] = []
    layers = config.get_text_config().num_hidden_layers
    try:
        model = _on_meta(config)
    except Exception as error:  # a field that is missing or spoilt, or a class with attention of its own
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise CheckpointError(unsupported(architecture, f"its class can't be made of this config ({cause})")) from error
    try:
        for name, module in model.named_modules():
            module.quire = partial(_record, calls, name, module)
        for tokens in _PROBE_TOKENS:
            calls.clear()
            with torch.device("meta"), torch.no_grad(), _unvalidated():
                ids = torch.zeros((1, tokens), dtype=torch.int64)
                model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=ids, use_cache=False)
            if len(calls) != layers or len({call.module for call in calls}) != layers:
                raise _NotServed(_NOT_PLAIN)
    except _NotServed as error:
        raise CheckpointError(unsupported(architecture, str(error))) from None
    except Exception as error:  # whatever a class that was never meant for this may raise
        raise CheckpointError(unsupported(architecture, _NOT_PLAIN)) from error
    return calls, model


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Distributions look at their parameters' values otherwise, of which there are none on the meta device."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def _on_meta(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    # "batched_mm": experts without shapes that depend on the data, which the meta device could not run.
    settings = {"attn_implementation": IMPLEMENTATION, "experts_implementation": "batched_mm"}
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return factory.from_config(config, trust_remote_code=False, **settings).eval()


def _record(
    calls: list[AttentionCall],
    name: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> torch.Tensor:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    tensors = [k for k, v in others.items() if isinstance(v, torch.Tensor) and k not in ("s_aux", "position_ids")]
    if query.shape[2] != key.shape[2] or not causal or tensors:
        raise _NotServed(f"the attention of {type(module).__name__} is of a kind that Quire's pages cannot serve")
    window = mask.window if isinstance(mask, _Mask) else sliding_window
    if isinstance(mask, _Mask) and not _is_causal_window(mask):
        raise _NotServed(f"the attention mask of {type(module).__name__} is neither causal nor a sliding window")
    widest = max(query.shape[3], value.shape[3])
    spec = AttentionSpec(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        head_dim=-(-widest // _HEAD_STEP) * _HEAD_STEP,
        scale=float(query.shape[3] ** -0.5 if scaling is None else scaling),
        rope=None,
        window=window,
        softcap=softcap,
    )
    calls.append(AttentionCall(name, spec, value.shape[3]))
    return query.new_empty((*query.shape[:1], query.shape[2], query.shape[1], value.shape[3]))


def _is_causal_window(mask: _Mask) -> bool:
    """Whether the mask's function shows a query what causal attention with its window does, at places that tell."""
    span = mask.window or 1000
    query = 2 * span + 3
    keys = [0, 1, span, query - span, query - span + 1, query - 1, query, query + 1]
    with torch.device("cpu"):
        zero, at = torch.tensor(0), torch.tensor(query)
        shown = [bool(mask.visible(zero, zero, at, torch.tensor(key))) for key in keys]
    return shown == [key <= query and (mask.window is None or key > query - span) for key in keys]
