"""The tokenizer of a model: text to token ids and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as Library

from quire.text.decoding import MAX_TAIL, ByteStream, LibraryStream, TextStream, token_bytes_of
from quire.text.protection import Rendered
from quire.weights.errors import CheckpointError

NORMAL_FORM_CHARS = 4  # characters that Unicode normalisation may join into one, at most


@dataclass(frozen=True)
class TokenizerFacts:
    """What a model's files say beside the tokenizer proper.

    ``vocab_size``: ids are below this (the logits may be wider). ``longest_token``: characters, as the vocabulary
    spells it. ``named``: text of the ``bos_token``, ``eos_token``, ... as templates call them. ``templates``: chat
    templates by name; ``default`` is the usual one.
    """

    vocab_size: int
    longest_token: int
    named: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)


class Tokenizer:
    """Safe to use from several threads. Long texts release the interpreter while they are encoded."""

    def __init__(self, library: Library, facts: TokenizerFacts) -> None:
        self.facts = facts
        self._library = library
        self._plain = _without_specials(library)
        self._bytes = token_bytes_of(library)
        added = library.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._specials = {token.content: i for i, token in added.items() if token.special and token.content}

    @property
    def vocab_size(self) -> int:
        """Ids are below this; the model's logits may be wider."""
        return self.facts.vocab_size

    @property
    def max_chars_per_token(self) -> int:
        """No token stands for more characters of text than this."""
        return NORMAL_FORM_CHARS * self.facts.longest_token

    @property
    def bos_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._named_id("eos_token")

    def _named_id(self, name: str) -> int | None:
        text = self.facts.named.get(name)
        return None if text is None else self._library.token_to_id(text)

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids. ``parse_special=False``: what reads like a control token is text. Linear in the text's length."""
        library = self._library if parse_special else self._plain
        # The batch call is the one that lets other threads run meanwhile.
        return library.encode_batch_fast([_without_surrogates(text)], add_special_tokens=add_special_tokens)[0].ids

    def encode_template(self, rendered: Rendered, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a rendered conversation, in which only the template's own control tokens are control tokens."""
        if not rendered.literals:
            return self.encode(rendered.marked, add_special_tokens)
        ids: list[int] = []
        last, edges = 0, self._special_edges
        for match in edges.finditer(rendered.marked) if edges else ():
            ids += self._encode_piece(rendered.restore(rendered.marked[last : match.start()]), first=last == 0)
            ids.append(self._specials[match[0].strip() if match[0] not in self._specials else match[0]])
            last = match.end()
        ids += self._encode_piece(rendered.restore(rendered.marked[last:]), first=last == 0)
        return self._with_ends(ids) if add_special_tokens else ids

    def _encode_piece(self, text: str, first: bool) -> list[int]:
        library = self._plain if first else self._inner
        return library.encode_batch_fast([_without_surrogates(text)], add_special_tokens=False)[0].ids if text else []

    def _with_ends(self, ids: list[int]) -> list[int]:
        ends = self.encode("")
        start = ends[: ends.index(self.bos_id) + 1] if self.bos_id in ends else []
        return [*start, *ids, *ends[len(start) :]]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; ids that are no tokens give none."""
        ids = [i for i in ids if not (skip_special_tokens and i in self.special_ids)]
        if self._bytes is not None:
            return self._bytes.decode(ids)
        return self._library.decode([i for i in ids if 0 <= i < 2**32], skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True, prompt_ids: Iterable[int] | None = None) -> TextStream:
        """A decoder of tokens one by one; together its texts are ``decode`` of all ids.

        With ``prompt_ids`` the text continues theirs: it keeps its leading space, and a character that the prompt's
        last tokens began is finished.
        """
        tail = None if prompt_ids is None else [*prompt_ids][-MAX_TAIL:]
        if self._bytes is None:
            return LibraryStream(self._library, skip_special_tokens, tail)
        return ByteStream(self._bytes, self.special_ids if skip_special_tokens else frozenset(), tail)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; ``None`` for an id that is none."""
        return self._library.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def token_to_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, in UTF-8; a part of a character where it is only that."""
        if self._bytes is not None:
            return self._bytes[token_id]
        return (self.id_to_token(token_id) or "").encode()

    @cached_property
    def _inner(self) -> Library:
        """For text after a control token: where only the start of a text gets a space put before it, not here."""
        inner = _without_specials(self._library)
        if inner.pre_tokenizer is not None:
            state = inner.pre_tokenizer.__getstate__()
            part = inner.pre_tokenizer
            part.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
            inner.pre_tokenizer = part
        return inner

    @cached_property
    def _special_edges(self) -> re.Pattern[str] | None:
        """Finds special tokens together with the blanks that they swallow."""
        added = self._library.get_added_tokens_decoder().values()
        tokens = sorted((t for t in added if t.special and t.content), key=lambda t: -len(t.content))
        blanks = r"\s*"
        each = [blanks * t.lstrip + re.escape(t.content) + blanks * t.rstrip for t in tokens]
        return re.compile("|".join(each)) if each else None

    @cached_property
    def special_pattern(self) -> re.Pattern[str] | None:
        """Finds the texts of special tokens, longest first as the tokenizer does; ``None`` when there are none."""
        if not self._specials:
            return None
        return re.compile("|".join(re.escape(s) for s in sorted(self._specials, key=len, reverse=True)))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in a Hugging Face directory or a GGUF file. Raises ``CheckpointError``."""
    path = Path(path)
    if path.is_dir():
        from quire.text.hf_tokenizer import tokenizer_from_directory

        return Tokenizer(*tokenizer_from_directory(path))
    from quire.text.gguf_tokenizer import tokenizer_from_gguf
    from quire.weights.gguf import GGUFFile

    return Tokenizer(*tokenizer_from_gguf(GGUFFile.open(path).metadata))


def _without_specials(library: Library) -> Library:
    """A tokenizer on the same model that reads special tokens as text."""
    plain = Library(library.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if (value := getattr(library, part)) is not None:
            setattr(plain, part, value)
    added = library.get_added_tokens_decoder()
    plain.add_tokens([added[i] for i in sorted(added)])
    if plain.get_vocab_size() != library.get_vocab_size():
        raise CheckpointError("The tokenizer's added tokens do not fit its vocabulary.")
    plain.encode_special_tokens = True
    return plain


def _without_surrogates(text: str) -> str:
    """Lone surrogates, which JSON can carry but UTF-8 cannot, become U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")
