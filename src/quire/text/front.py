"""Everything between text and token ids for one model: tokenizer, chat template, defaults of its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quire.config.engine import EngineConfig
from quire.engine.admission import Limits
from quire.params import ParameterError, SamplingParams
from quire.text.chat_template import ChatTemplate, load_chat_template
from quire.text.decoding import TextStream
from quire.text.output import TokenNames
from quire.text.prompt import ModelFacts, Processor
from quire.text.tokenizer import Tokenizer, load_tokenizer
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import SourceError
from quire.weights.sources import locate

logger = logging.getLogger("quire.text")
# Fields of generation_config.json that change the sampling of requests which don't say.
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TextFront:
    """Immutable; safe to use from several threads."""

    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    names: TokenNames
    eos_token_ids: tuple[int, ...]
    sampling_defaults: Mapping[str, Any]
    seed: int

    def processor(self, limits: Limits) -> Processor:
        facts = ModelFacts(limits, self.eos_token_ids, self.sampling_defaults, self.seed)
        return Processor(self.tokenizer, self.template, facts)

    def stream(self, skip_special_tokens: bool, prompt_ids: Sequence[int] | None = None) -> TextStream | None:
        """A new incremental decoder, of a text that continues ``prompt_ids`` if given; ``None`` without a tokenizer."""
        return None if self.tokenizer is None else self.tokenizer.stream(skip_special_tokens, prompt_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included. Raises ``ParameterError`` without a tokenizer."""
        if self.tokenizer is None:
            raise ParameterError("tokens", "tokens can't be decoded: this engine runs without a tokenizer.")
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def open_front(config: EngineConfig, checkpoint: Checkpoint, chat_template: str | None = None) -> TextFront:
    """Read what the model says of its text. Raises ``CheckpointError``.

    ``chat_template``: the text of a Jinja template to use instead of the model's.
    """
    generation = checkpoint.generation_config
    tokenizer = template = None
    if not config.skip_tokenizer_init:
        tokenizer = load_tokenizer(
            checkpoint.path if config.tokenizer is None else _tokenizer_source(config, config.tokenizer)
        )
        template = load_chat_template(tokenizer, chat_template)
    ids = generation.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    return TextFront(
        tokenizer=tokenizer,
        template=template,
        names=TokenNames(tokenizer),
        eos_token_ids=tuple(i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)),
        sampling_defaults=_usable_defaults(generation),
        seed=config.seed,
    )


def _tokenizer_source(config: EngineConfig, tokenizer: str) -> Path:
    try:
        return locate(replace(config, model=tokenizer))
    except SourceError as error:
        raise SourceError(f"--tokenizer: {error}") from None


def _usable_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling values of a generation_config, without those that no request could ask for."""
    usable: dict[str, Any] = {}
    for name in _SAMPLING_DEFAULTS:
        if (value := generation.get(name)) is None:
            continue
        try:
            SamplingParams(**{name: value})
        except ParameterError as error:
            logger.warning("The model's generation_config is ignored where it is out of range: %s", error)
        else:
            usable[name] = value
    return usable
