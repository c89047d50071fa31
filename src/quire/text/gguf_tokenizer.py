"""A ``tokenizers.Tokenizer`` made from a GGUF file's metadata, equal to the original model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from quire.text.merges import merges_from_scores
from quire.text.pretokenizers import WORD_RULES, WordRule
from quire.text.tokenizer import TokenizerFacts
from quire.weights.errors import CheckpointError

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
SPACE = "▁"
TEMPLATE = "tokenizer.chat_template"
_NAMED = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


class Vocabulary:
    """The token lists of the file, checked to be of one length."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.tokens = _strings(metadata, "tokenizer.ggml.tokens")
        if not self.tokens:
            raise CheckpointError("The GGUF file holds no tokenizer (tokenizer.ggml.tokens).")
        self.types = self._numbers("tokenizer.ggml.token_type", 1)

    def _numbers(self, key: str, default: float) -> npt.NDArray[Any]:
        values = self.metadata.get(key)
        if values is None:
            return np.full(len(self.tokens), default)
        if not isinstance(values, np.ndarray) or len(values) != len(self.tokens):
            raise CheckpointError(f"The GGUF file's tokenizer is corrupt: {key} has no value for each token.")
        return values

    def scores(self) -> npt.NDArray[np.float32]:
        """User-defined tokens count as 0, as in SentencePiece: llama.cpp's converter overwrites their scores."""
        scores = self._numbers("tokenizer.ggml.scores", 0.0).astype(np.float32)
        return np.where(self.types == USER_DEFINED, np.float32(0), scores)

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        return value if isinstance(value, bool) else default

    def token(self, name: str) -> tuple[str, int] | None:
        """Text and id of the ``bos``, ``eos``, ... token."""
        index = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(self.tokens):
            raise CheckpointError(f"The GGUF file's tokenizer is corrupt: its {name} token is none of the tokens.")
        return self.tokens[index], index


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> tuple[Tokenizer, TokenizerFacts]:
    """Build the tokenizer. Raises ``CheckpointError`` for an unknown kind and for lists that do not fit together."""
    kind = metadata.get("tokenizer.ggml.model")
    build = _BUILDERS.get(kind) if isinstance(kind, str) else None
    if build is None:
        known = ", ".join(sorted(_BUILDERS))
        raise CheckpointError(f"The GGUF file's tokenizer is of the kind {str(kind)[:40]!r}; Quire reads: {known}.")
    vocabulary = Vocabulary(metadata)
    return build(vocabulary), _facts(vocabulary)


def _facts(vocabulary: Vocabulary) -> TokenizerFacts:
    pairs = ((f"{theirs}_token", vocabulary.token(ours)) for ours, theirs in _NAMED.items())
    named = {name: token[0] for name, token in pairs if token}
    templates = {}
    for key in vocabulary.metadata:
        if key == TEMPLATE or key.startswith(TEMPLATE + "."):
            if not isinstance(text := vocabulary.metadata[key], str):
                raise CheckpointError(f"The GGUF file's tokenizer is corrupt: {key} is no text.")
            templates[key.removeprefix(TEMPLATE).removeprefix(".") or "default"] = text
    return TokenizerFacts(len(vocabulary.tokens), max(map(len, vocabulary.tokens)), named, templates)


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    rule = _word_rule(vocabulary.metadata)
    merges = [tuple(line.split(" ")) for line in _strings(vocabulary.metadata, "tokenizer.ggml.merges")]
    if any(len(pair) != 2 for pair in merges):
        raise CheckpointError("The GGUF file's tokenizer is corrupt: a merge is not two tokens.")
    tokenizer = _tokenizer(vocabulary, vocabulary.tokens, merges, ignore_merges=rule.ignore_merges)
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    if (normalizer := rule.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    _add_ends(tokenizer, vocabulary, rule.add_bos)
    return tokenizer


def _word_rule(metadata: Mapping[str, Any]) -> WordRule:
    name = metadata.get("tokenizer.ggml.pre", "default")
    rule = WORD_RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise CheckpointError(f"The GGUF file's tokenizer cuts words by the rule {str(name)[:40]!r}, unknown to Quire.")
    return rule


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """SentencePiece BPE: spaces are part of the words, and merges follow from the tokens' scores."""
    tokens = piece_texts(vocabulary.tokens)
    unknown = vocabulary.token("unknown") or (tokens[0], 0)
    tokenizer = _tokenizer(
        vocabulary,
        tokens,
        merges_from_scores(tokens, vocabulary.scores(), ~np.isin(vocabulary.types, (UNKNOWN, CONTROL, UNUSED))),
        unk_token=unknown[0],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix = vocabulary.flag("add_space_prefix", True)
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    _add_ends(tokenizer, vocabulary, add_bos=True)
    return tokenizer


def piece_texts(tokens: list[str]) -> list[str]:
    """llama.cpp's converter writes runs of spaces as such; in the model they are runs of the space sign."""
    return [SPACE * len(t) if t and not t.strip(" ") else t for t in tokens]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key, [])
    if not isinstance(value, list):
        raise CheckpointError(f"The GGUF file's tokenizer is corrupt: {key} is no list of strings.")
    return value


def _tokenizer(vocabulary: Vocabulary, tokens: list[str], merges: Any, **options: Any) -> Tokenizer:
    types = vocabulary.types
    unused = set(np.flatnonzero(types == UNUSED).tolist())
    vocab = {token: i for i, token in enumerate(tokens) if i not in unused}
    try:
        tokenizer = Tokenizer(models.BPE(vocab, merges, **options))
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"The GGUF file's tokenizer is corrupt: {str(error)[:120]}.") from None
    added = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    tokenizer.add_tokens(
        [AddedToken(tokens[i], special=bool(types[i] != USER_DEFINED), normalized=False) for i in added if tokens[i]]
    )
    return tokenizer


def _add_ends(tokenizer: Tokenizer, vocabulary: Vocabulary, add_bos: bool) -> None:
    bos = vocabulary.token("bos") if vocabulary.flag("add_bos_token", add_bos) else None
    eos = vocabulary.token("eos") if vocabulary.flag("add_eos_token", False) else None
    if bos or eos:
        tokenizer.post_processor = ends_processor(bos, eos)


def ends_processor(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.PostProcessor:
    """Puts ``bos`` before a text and ``eos`` after it."""
    ends = [end for end in (bos, eos) if end]
    parts = [[bos[0]] if bos else [], ["$A"], [eos[0]] if eos else []]
    # Names stand for the tokens: a token's own text may not be what the template syntax can hold.
    names = {token: f"end{index}" for token, index in ends}
    single = [names.get(part, part) for group in parts for part in group]
    special = [{"id": names[token], "ids": [index], "tokens": [token]} for token, index in ends]
    return processors.TemplateProcessing(single=single, special_tokens=special)
