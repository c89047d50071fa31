"""From token ids to text: each token's bytes, and an incremental decoder over them."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

MAX_TAIL = 16  # ids of a prompt that can matter for how its continuation begins
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream(Protocol):
    """An incremental decoder: text comes out as soon as it can no longer change."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str:
        """What is left when no more tokens come; an unfinished character becomes U+FFFD."""
        ...


class TokenBytes:
    """The bytes of each token, where the tokenizer's decoder only joins bytes (byte-level and SentencePiece BPE).

    A text is the UTF-8 decoding of its tokens' bytes, with U+FFFD for what is no UTF-8. (For invalid runs of
    SentencePiece byte tokens Hugging Face writes one U+FFFD for each byte of the run, losing whole characters in it.)
    """

    def __init__(self, tokenizer: Tokenizer, to_bytes: Callable[[str], bytes], strips_space: bool) -> None:
        self._tokenizer = tokenizer
        self._to_bytes = to_bytes
        self._known: dict[int, bytes] = {}
        self.strips_space = strips_space

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for an id that is no token."""
        known = self._known.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
            if token is None:
                return b""
            known = self._known[token_id] = self._to_bytes(token)
        return known

    def decode(self, ids: Iterable[int]) -> str:
        text = b"".join([self[i] for i in ids]).decode("utf-8", "replace")
        return text[1:] if self.strips_space and text.startswith(" ") else text


class ByteStream:
    """Decodes tokens one by one in constant time each; ``skip`` are ids that give no text."""

    def __init__(self, table: TokenBytes, skip: frozenset[int], prompt_ids: Iterable[int] | None) -> None:
        self._table = table
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = table.strips_space and prompt_ids is None
        for token_id in prompt_ids or ():
            self._decoder.decode(table[token_id])

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        return self._stripped(self._decoder.decode(self._table[token_id]))

    def flush(self) -> str:
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class LibraryStream:
    """For decoders that do more than join bytes (WordPiece and others): the library's own, which withholds text."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt_ids: Iterable[int] | None) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(ids=list(prompt_ids or ()), skip_special_tokens=skip_special_tokens)
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._stream.step(self._tokenizer, token_id)
        if text is None:
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        ids, self._pending = self._pending, []
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)


def token_bytes_of(tokenizer: Tokenizer) -> TokenBytes | None:
    """The byte table of a tokenizer, or ``None`` where its decoder does more than join bytes."""
    decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    match decoder:
        case {"type": "ByteLevel"}:
            return TokenBytes(tokenizer, _byte_level_bytes, strips_space=False)
        case {"type": "Metaspace", "replacement": str(space)}:
            never = decoder.get("prepend_scheme") == "never"
            return TokenBytes(tokenizer, lambda t: t.replace(space, " ").encode(), strips_space=not never)
        case {"type": "Sequence", "decoders": list(steps)}:
            return _sequence_bytes(tokenizer, steps)
        case _:
            return None


def _sequence_bytes(tokenizer: Tokenizer, steps: list[dict[str, Any]]) -> TokenBytes | None:
    match steps:
        case [{"type": "ByteLevel"}]:
            return TokenBytes(tokenizer, _byte_level_bytes, strips_space=False)
        case [
            {"type": "Replace", "pattern": {"String": str(space)}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *rest,
        ]:
            pass
        case _:
            return None
    if rest not in ([], [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]):
        return None

    def to_bytes(token: str) -> bytes:
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace(space, " ").encode()

    return TokenBytes(tokenizer, to_bytes, strips_space=bool(rest))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins for bytes: printable Latin-1 characters are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:  # an added token, which is plain text
        return token.encode()
