"""Requests of the OpenAI-compatible routes: field names and defaults as in OpenAI's API and vLLM's additions to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    ValidationInfo,
    WithJsonSchema,
)

from quire.params import ParameterError, SamplingParams
from quire.server.openai.fields import (
    REQUEST_ID,
    Bias,
    Bool,
    Float,
    Int,
    RequestBody,
    Str,
    Strings,
    TokenIds,
    ranged,
    rule,
)

_ID_SCHEMA = {"type": "integer", "minimum": 0}
_SAMPLING = (
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "prompt_logprobs", "skip_special_tokens",
    "spaces_between_special_tokens", "include_stop_str_in_output", "logit_bias", "allowed_token_ids", "bad_words",
)  # fmt: skip
_SUPPORTED_ROLES = ("system", "developer", "user", "assistant")
_TEXT_PARTS = ("text", "input_text", "output_text")
_KNOWN_PARTS = ("image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "refusal", "thinking")
_MAX_KWARGS = 16
_MAX_MESSAGES = 10_000  # rendering so many takes about a second


def _request_id(value: str | None) -> str | None:
    if value is not None and not REQUEST_ID.fullmatch(value):
        raise rule("must be 1 to 128 letters, digits or any of _ . : -")
    return value


class StreamOptions(BaseModel):
    include_usage: Bool | None = None
    continuous_usage_stats: Bool | None = None


class GenerationRequest(RequestBody):
    """What completions and chat completions share."""

    model: Str | None = None
    n: Int | None = ranged("n")
    max_tokens: Int | None = ranged("max_tokens")
    min_tokens: Int | None = ranged("min_tokens")
    temperature: Float | None = ranged("temperature")
    top_p: Float | None = ranged("top_p")
    top_k: Int | None = ranged("top_k")
    min_p: Float | None = ranged("min_p")
    presence_penalty: Float | None = ranged("presence_penalty")
    frequency_penalty: Float | None = ranged("frequency_penalty")
    repetition_penalty: Float | None = ranged("repetition_penalty")
    seed: Int | None = ranged("seed")
    stop: Strings = Field(default_factory=list)
    stop_token_ids: TokenIds | None = None
    bad_words: Strings = Field(default_factory=list)
    logit_bias: Bias = Field(default_factory=dict)
    allowed_token_ids: TokenIds | None = None
    ignore_eos: Bool | None = None
    skip_special_tokens: Bool | None = None
    spaces_between_special_tokens: Bool | None = None
    include_stop_str_in_output: Bool | None = None
    prompt_logprobs: Int | None = ranged("prompt_logprobs")
    echo: Bool | None = None
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: Int | None = Field(None, ge=1, le=1024)
    add_special_tokens: Bool | None = None
    truncate_prompt_tokens: Int | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    request_id: Annotated[Str | None, AfterValidator(_request_id)] = None
    cache_salt: Annotated[Str | None, Field(min_length=1, max_length=1024)] = None
    return_token_ids: Bool | None = None
    return_tokens_as_token_ids: Bool | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.include_usage and self.stream_options and self.stream_options.continuous_usage_stats)

    def check_stream(self) -> None:
        """Raise ``ParameterError`` for stream options that contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options", "stream_options needs stream to be true.")
        if self.stream and self.prompt_logprobs is not None:
            raise ParameterError("prompt_logprobs", "prompt_logprobs can't be streamed: leave out stream.")

    def sampling(
        self, defaults: Mapping[str, Any], *, max_tokens: int | None, logprobs: int | None, **more: Any
    ) -> SamplingParams:
        """Sampling parameters of this request over the model's ``defaults``. Raises ``ParameterError``."""
        given = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        return SamplingParams(**{**defaults, **given, **more, "max_tokens": max_tokens, "logprobs": logprobs})


def _prompt(value: Any) -> Any:
    """One prompt or a list of them, as a list of texts and lists of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise rule("must be a text, a list of token ids, or a non-empty list of one of these.")
    if all(type(item) is int for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and all(type(i) is int for i in item) for item in value):
        return value
    raise rule("must hold only texts, only token ids, or only lists of token ids.")


_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": _ID_SCHEMA, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": _ID_SCHEMA, "minItems": 1}, "minItems": 1},
    ]
}


class CompletionRequest(GenerationRequest):
    prompt: Annotated[SkipValidation[list[str | list[int]]], BeforeValidator(_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
    logprobs: Int | None = ranged("logprobs")


def _content(value: Any, info: ValidationInfo) -> Any:
    """Message content as one text; parts are joined by line breaks. Only an assistant may have said nothing."""
    if value is None and info.data.get("role") != "assistant":
        raise rule("is required.")
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise rule("must be a text or a list of text parts.")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _KNOWN_PARTS:
            raise rule(f"has a part of type {kind}, which is not supported yet: send text.")
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise rule('must hold only parts of the form {"type": "text", "text": ...}.')
        texts.append(part["text"])
    return "\n".join(texts)


def _role(value: Any) -> Any:
    if value in ("tool", "function"):
        raise rule(f"{value} is not supported yet: tools are missing.")
    if value not in _SUPPORTED_ROLES:
        raise rule(f"must be one of {', '.join(_SUPPORTED_ROLES)}.")
    return "system" if value == "developer" else value


_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}


def _no_calls(value: Any) -> Any:
    if value not in (None, []):
        raise rule("is not supported yet: tools are missing.")
    return None


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Annotated[str, BeforeValidator(_role), WithJsonSchema({"enum": list(_SUPPORTED_ROLES)})]
    content: Annotated[
        str, BeforeValidator(_content), WithJsonSchema(_CONTENT_SCHEMA), Field(default=None, validate_default=True)
    ]
    name: Annotated[Str | None, Field(max_length=256)] = None
    tool_calls: Annotated[Any, BeforeValidator(_no_calls)] = None
    function_call: Annotated[Any, BeforeValidator(_no_calls)] = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        message = {"role": self.role, "content": self.content}
        return message if self.name is None else {**message, "name": self.name}


def _template_kwargs(value: Any) -> Any:
    """Variables for the chat template: few, and plain values only, so that rendering stays cheap."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MAX_KWARGS:
        raise rule(f"must be an object of at most {_MAX_KWARGS} values.")
    for name, item in value.items():
        if not (name.isidentifier() and name.isascii() and len(name) <= 64):
            raise rule("must have plain names.")
        if item is not None and not isinstance(item, (bool, int, float, str)):
            raise rule("must hold only strings, numbers, true, false or null.")
        if isinstance(item, str) and len(item) > 1024:
            raise rule("must hold strings of at most 1024 characters.")
    return value


_TemplateKwargs = Annotated[
    dict[str, Any], BeforeValidator(_template_kwargs), WithJsonSchema({"type": ["object", "null"]})
]


class Rendering(RequestBody):
    """How to render a conversation."""

    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None
    chat_template_kwargs: _TemplateKwargs = Field(default_factory=dict)

    def render_options(self) -> dict[str, Any]:
        """Keyword arguments of ``Processor.tokenize_chat``. Raises ``ParameterError``."""
        carry_on = bool(self.continue_final_message)
        add_prompt = (not carry_on) if self.add_generation_prompt is None else self.add_generation_prompt
        if carry_on and add_prompt:
            raise ParameterError(
                "continue_final_message", "continue_final_message needs add_generation_prompt to be false."
            )
        return {
            "add_generation_prompt": add_prompt,
            "continue_final_message": carry_on,
            "variables": self.chat_template_kwargs,
        }


class ChatRequest(GenerationRequest, Rendering):
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    max_completion_tokens: Int | None = ranged("max_tokens")
    logprobs: Bool | None = None
    top_logprobs: Int | None = ranged("logprobs")
    return_prompt_text: Bool | None = None


class TokenizeRequest(Rendering):
    """``prompt`` or ``messages``."""

    model: Str | None = None
    prompt: Str | None = None
    messages: Annotated[list[Message], Field(max_length=_MAX_MESSAGES)] | None = None
    add_special_tokens: Bool | None = None
    return_token_strs: Bool | None = None


class DetokenizeRequest(RequestBody):
    model: Str | None = None
    tokens: TokenIds
