"""Types of request fields, and what becomes of fields this server doesn't have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from quire.params import FLOAT_RANGES, INT_RANGES
from quire.server.errors import ApiError

WARNING_HEADER = "X-Quire-Warning"
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_MAX_NAMES = 8


def rule(text: str) -> PydanticCustomError:
    """A validation error whose sentence is the field's name followed by ``text``."""
    return PydanticCustomError("request_field", "{rule}", {"rule": text})


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is the integer 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _strings(value: Any) -> Any:
    """A string stands for a list of one; ``None`` for none."""
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or any(not isinstance(v, str) for v in values):
        raise rule("must be a string or a list of strings.")
    return values


def _token_ids(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, list):
        raise rule("must be a list of token ids.")
    ids = [_integral(v) for v in value]
    if any(type(i) is not int for i in ids):
        raise rule("must be a list of token ids, each an integer.")
    return ids


def _bias(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise rule("must be an object that maps token ids to numbers.")
    try:
        return {_id(key): number for key, number in value.items()}
    except ValueError:
        raise rule('must have token ids as its names, such as "50256".') from None


def _id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise ValueError
    return int(key)


Int = Annotated[int, Field(strict=True), BeforeValidator(_integral)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Bool = Annotated[bool, Field(strict=True)]
Str = Annotated[str, Field(strict=True)]
Strings = Annotated[
    list[str],
    BeforeValidator(_strings),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
]
TokenIds = Annotated[list[int], BeforeValidator(_token_ids)]
Bias = Annotated[
    dict[int, Any],
    BeforeValidator(_bias),
    WithJsonSchema({"type": ["object", "null"], "additionalProperties": {"type": "number"}}),
]


def ranged(name: str) -> Any:
    """An optional field whose range in the schema is that of ``SamplingParams``, which checks it."""
    low, high = (FLOAT_RANGES[name] if name in FLOAT_RANGES else INT_RANGES[name])[:2]
    return Field(None, json_schema_extra={"minimum": low, "maximum": high})


class RequestBody(BaseModel):
    """A request. Fields it doesn't declare are kept aside for ``check_extra_fields``."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


# Fields of features that are missing here, with the values that ask for nothing.
_MISSING: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_decoding_backend": (None,),
    "guided_whitespace_pattern": (None,),
    "regex": (None,),
    "ebnf": (None,),
    "json_schema": (None,),
    "stop_regex": (None,),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "early_stopping": (None, False),
    "prompt_embeds": (None,),
    "images": (None, []),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "mm_processor_kwargs": (None, {}),
    "media_io_kwargs": (None, {}),
    "prediction": (None,),
    "web_search_options": (None,),
    "documents": (None, []),
    "chat_template": (None,),
    "reasoning_effort": (None, "none"),
    "include_reasoning": (None, True),
    "thinking_token_budget": (None,),
    "verbosity": (None, "medium"),
    "moderation": (None,),
    "lora_path": (None,),
    "lora_request": (None,),
    "logprob_token_ids": (None,),
    "repetition_detection": (None,),
    "watermarking": (None,),
    "return_token_offsets": (None, False),
    "return_hidden_states": (None, False),
    "kv_transfer_params": (None,),
    "vllm_xargs": (None, {}),
    "store": (None, False),
    "typical_p": (None, 1),
    "dry_multiplier": (None, 0),
    "xtc_probability": (None, 0),
    "mirostat": (None, 0),
}
# Fields that change nothing about the answer.
_HARMLESS = frozenset(
    {"user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
     "prompt_cache_retention", "prompt_cache_options"}
)  # fmt: skip


def check_extra_fields(body: RequestBody, *, strict: bool) -> dict[str, str]:
    """Judge the fields that ``body`` doesn't declare. Returns headers to send with the answer.

    Raises ``ApiError`` for a field of a missing feature and, with ``strict``, for an unknown one.
    """
    unknown: list[str] = []
    for name, value in (body.model_extra or {}).items():
        if name in _MISSING:
            if value not in _MISSING[name]:
                raise ApiError(400, f"{name} is not supported yet: leave it out.", name)
        elif name not in _HARMLESS:
            unknown.append(name)
    if not unknown:
        return {}
    known = [*type(body).model_fields, *_MISSING, *_HARMLESS]
    if strict:
        raise ApiError(400, f"This server has no field {_describe(unknown[0], known)}.", _printable(unknown[0]))
    return {WARNING_HEADER: "ignored unknown fields: " + ", ".join(_describe(n, known) for n in unknown[:_MAX_NAMES])}


def _describe(name: str, known: Iterable[str]) -> str:
    shown = _printable(name)
    if shown is None:
        return "of that name"
    nearest = get_close_matches(shown, known, n=1)
    return f"{shown} (nearest: {nearest[0]})" if nearest else shown


def _printable(name: str) -> str | None:
    """A field name that is safe to show, or ``None``."""
    return name if name.isascii() and name.isidentifier() and len(name) <= 40 else None
