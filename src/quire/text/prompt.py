"""From what a caller sends (text, token ids, messages) to engine requests; shared by the server and ``LLM``."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from quire.engine.admission import Limits, check_params, check_prompt, fit_max_tokens
from quire.engine.messages import EngineRequest
from quire.params import ParameterError, SamplingParams

if TYPE_CHECKING:
    from quire.text.chat_template import ChatTemplate
    from quire.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]

_SEED_SPAN = 2**63
_RENDER_ARGUMENTS = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "self"})


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What preparing requests needs to know of the model and the engine."""

    limits: Limits
    eos_token_ids: tuple[int, ...] = ()
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    token_ids: list[int]
    text: str | None = None


class Processor:
    """Checks prompts and parameters against the model and builds engine requests.

    All methods raise ``ParameterError`` for what a caller did wrong. ``encode`` and ``encode_chat`` take time linear
    in the text; call them in a thread for long texts.
    """

    def __init__(self, tokenizer: Tokenizer | None, template: ChatTemplate | None, facts: ModelFacts) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.facts = facts
        self._unseeded = itertools.count()

    def encode(
        self, prompt: Prompt, *, add_special_tokens: bool = True, truncate: int | None = None, side: str = "left"
    ) -> EncodedPrompt:
        """Text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}`` to checked token ids.

        ``truncate`` keeps that many tokens, dropping those on ``side``; -1 keeps what the context holds.
        """
        text, ids = _split(prompt)
        if ids is None:
            text = text or ""
            if truncate is None:
                self._check_chars(text, "prompt")
            ids = self.tokenize(text, add_special_tokens=add_special_tokens)
        return self._checked(EncodedPrompt(self._truncate(ids, truncate, side), text))

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_special_tokens: bool = False,
        truncate: int | None = None,
        side: str = "left",
        **rendering: Any,
    ) -> EncodedPrompt:
        """A conversation through the model's chat template to checked token ids; ``rendering`` as in ``tokenize_chat``.

        The template writes the special tokens itself, so none are added by default.
        """
        prompt = self.tokenize_chat(
            messages, add_special_tokens=add_special_tokens, any_length=truncate is not None, **rendering
        )
        try:
            return self._checked(EncodedPrompt(self._truncate(prompt.token_ids, truncate, side), prompt.text))
        except ParameterError as error:
            raise _about(error, {"prompt": "messages"}) from None

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text in which special tokens may be spelt out; any length."""
        return self._need_tokenizer("prompt", "send token ids").encode(text, add_special_tokens=add_special_tokens)

    def tokenize_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: ChatTemplate | None = None,
        variables: Mapping[str, Any] | None = None,
        add_special_tokens: bool = False,
        any_length: bool = False,
    ) -> EncodedPrompt:
        """Ids and text of a rendered conversation, in which control tokens spelt out by messages are plain text.

        ``tools`` and ``variables`` go to ``template``, or the model's. Without ``any_length`` a text that can't fit the
        context is refused.
        """
        tokenizer = self._need_tokenizer("messages", "send token ids to completions")
        template = template or self.template
        if template is None:
            raise ParameterError("messages", "This model has no chat template: use completions, or --chat-template.")
        if taken := _RENDER_ARGUMENTS & set(variables or ()):
            raise ParameterError("chat_template_kwargs", f"chat_template_kwargs must not set {min(taken)}.")
        rendered = template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(variables or {}),
        )
        if not any_length:
            self._check_chars(rendered.marked, "messages")
        return EncodedPrompt(tokenizer.encode_template(rendered, add_special_tokens), rendered.text)

    def encode_text(self, text: str, param: str) -> list[int]:
        """Plain ids of a text: no special tokens added or parsed."""
        return self._need_tokenizer(param, "leave it out").encode(text, add_special_tokens=False, parse_special=False)

    def request(
        self,
        request_id: str,
        prompt: EncodedPrompt,
        params: SamplingParams,
        *,
        clip_max_tokens: bool = False,
        priority: int = 0,
        cache_salt: str = "",
        arrival_time: float = 0.0,
    ) -> list[EngineRequest]:
        """One engine request for each of ``params.n`` completions, each with a seed of its own.

        ``max_tokens=None`` means the rest of the context. A ``max_tokens`` beyond it is refused, or with
        ``clip_max_tokens`` reduced.
        """
        limits, prompt_len = self.facts.limits, len(prompt.token_ids)
        check_params(params, limits)
        if params.stop:
            self._need_tokenizer("stop", "use stop_token_ids")
        max_tokens = params.max_tokens
        if max_tokens is not None and clip_max_tokens:
            max_tokens = min(max_tokens, limits.max_model_len - prompt_len)
        max_tokens = fit_max_tokens(prompt_len, max_tokens, limits)
        each = msgspec.structs.replace(
            params, n=1, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens), seed=None
        )
        bad_words = self._bad_words(params.bad_words)
        seed = params.seed if params.seed is not None else self._next_seed()
        return [
            EngineRequest(
                request_id=request_id if params.n == 1 else f"{request_id}-{index}",
                prompt_token_ids=prompt.token_ids,
                params=each,
                seed=derive_seed(seed, index),
                eos_token_ids=list(self.facts.eos_token_ids),
                bad_words_token_ids=bad_words,
                priority=priority,
                cache_salt=cache_salt,
                arrival_time=arrival_time,
            )
            for index in range(params.n)
        ]

    def _checked(self, prompt: EncodedPrompt) -> EncodedPrompt:
        check_prompt(prompt.token_ids, self.facts.limits)
        return prompt

    def _truncate(self, ids: list[int], truncate: int | None, side: str) -> list[int]:
        if truncate is None:
            return ids
        keep = self.facts.limits.max_model_len - 1 if truncate == -1 else truncate
        if not 1 <= keep < self.facts.limits.max_model_len:
            raise ParameterError(
                "truncate_prompt_tokens",
                f"truncate_prompt_tokens must be -1 or from 1 to {self.facts.limits.max_model_len - 1} here.",
            )
        if len(ids) <= keep:
            return ids
        return ids[-keep:] if side == "left" else ids[:keep]

    def _check_chars(self, text: str, param: str) -> None:
        """Refuse a text that can't fit the context before spending time on its tokens."""
        tokenizer = self._need_tokenizer(param, "send token ids")
        most = self.facts.limits.max_model_len * tokenizer.max_chars_per_token
        if len(text) > most:
            raise ParameterError(
                param,
                f"The prompt has {len(text)} characters, more than the model's context of"
                f" {self.facts.limits.max_model_len} tokens can hold. Shorten the prompt.",
            )

    def _need_tokenizer(self, param: str, cure: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ParameterError(param, f"{param} needs a tokenizer and this engine runs without one: {cure}.")
        return self.tokenizer

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token sequences of each word, as it stands at the start of a text and after a space."""
        found: list[list[int]] = []
        for word in words:
            bare = word.lstrip(" ") or word
            for text in (bare, " " + bare):
                ids = self.encode_text(text, "bad_words")
                if ids and ids not in found:
                    found.append(ids)
        return found

    def _next_seed(self) -> int:
        return derive_seed(self.facts.seed, next(self._unseeded) + 1)


def _about(error: ParameterError, renamed: Mapping[str, str]) -> ParameterError:
    return ParameterError(renamed.get(error.param, error.param), str(error))


def derive_seed(seed: int, index: int) -> int:
    """A seed in [0, 2**63) for the ``index``-th of several; the first is the seed itself."""
    if index == 0:
        return seed % _SEED_SPAN
    digest = hashlib.blake2b(b"%d:%d" % (seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEED_SPAN


def _split(prompt: Prompt) -> tuple[str | None, list[int] | None]:
    """Text and token ids of a prompt; ids win where both are given."""
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, Mapping):
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if ids is None and not isinstance(text, str):
            raise ParameterError("prompt", "prompt must have a text under 'prompt' or a list under 'prompt_token_ids'.")
        return text, None if ids is None else list(ids)
    if isinstance(prompt, (list, tuple)):
        return None, list(prompt)
    raise ParameterError("prompt", "prompt must be a text, a list of token ids, or a dict with one of them.")
