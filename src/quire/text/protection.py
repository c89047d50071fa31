"""Keeps control tokens that a caller spells out in a message from becoming control tokens.

Before a chat template is rendered, each such literal is replaced by a character for private use; the template's own
control tokens are then the only ones in the rendered text. Messages without such literals are not touched at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.params import ParameterError

_PRIVATE = re.compile("[\U000f0000-\U0010fffd]")
_PRIVATE_RANGE = (0xF0000, 0xFFFFE)


class TemplateError(ParameterError):
    """The messages and the chat template do not go together; one sentence says why."""

    def __init__(self, message: str, param: str = "messages") -> None:
        super().__init__(param, message)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. ``marked`` has a private-use character for each of ``literals``."""

    marked: str
    literals: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What a person reads."""
        return self.restore(self.marked)

    def restore(self, marked: str) -> str:
        """``marked``, or a part of it, with the literals in their places."""
        return marked.translate({ord(mark): literal for mark, literal in self.literals.items()})


class Marker:
    """Copies messages as plain data, literals of ``specials`` marked; the marks of one conversation go together."""

    def __init__(self, specials: re.Pattern[str] | None, everything: Any) -> None:
        self._specials = specials
        self._everything = everything
        self._marks: dict[str, str] = {}
        self._free: Iterator[str] | None = None
        self.chars = 0  # of all strings copied

    @property
    def literals(self) -> dict[str, str]:
        """Mark -> literal."""
        return {mark: literal for literal, mark in self._marks.items()}

    def plain(self, value: Any) -> Any:
        """A copy made of dict, list, str, int, float, bool and None; other things are refused."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return self._run([value])[0]
        if isinstance(value, Mapping):
            return {self.plain(key): self.plain(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
            return self._items(value)
        raise TemplateError(f"Messages hold a value of the type {type(value).__name__}, which is no JSON.")

    def mark(self, literal: str) -> str:
        """A character that occurs nowhere in the conversation, standing for ``literal``."""
        if literal not in self._marks:
            if self._free is None:
                taken = set(_strings_matching(_PRIVATE, self._everything))
                self._free = (char for code in range(*_PRIVATE_RANGE) if (char := chr(code)) not in taken)
            mark = next(self._free, None)
            if mark is None:
                raise TemplateError("Messages hold too many private-use characters.")
            self._marks[literal] = mark
        return self._marks[literal]

    def _items(self, items: Sequence[Any]) -> list[Any]:
        """A list. Templates write text parts one after the other, so a literal may be spread over neighbours."""
        out = [item if _is_text_part(item) else self.plain(item) for item in items]
        start = 0
        while start < len(out):
            end = start
            while end < len(items) and _is_text_part(items[end]):
                end += 1
            texts = self._run([items[i]["text"] for i in range(start, end)])
            for i, text in zip(range(start, end), texts, strict=True):
                out[i] = {**self.plain({k: v for k, v in items[i].items() if k != "text"}), "text": text}
            start = end + 1
        return out

    def _run(self, texts: list[str]) -> list[str]:
        """Neighbouring texts, with every literal in their concatenation replaced by marks."""
        self.chars += sum(map(len, texts))
        joined = texts[0] if len(texts) == 1 else "".join(texts)
        if self._specials is None or not self._specials.search(joined):
            return texts
        spans = [match.span() for match in self._specials.finditer(joined)]
        out, begin = [], 0
        for text in texts:
            out.append(self._cut(text, [(max(a - begin, 0), min(b - begin, len(text))) for a, b in spans]))
            begin += len(text)
        return out

    def _cut(self, text: str, spans: list[tuple[int, int]]) -> str:
        parts, last = [], 0
        for start, end in spans:
            if start < end:
                parts += [text[last:start], self.mark(text[start:end])]
                last = end
        return "".join([*parts, text[last:]])


def _is_text_part(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("text"), str)


def _strings_matching(pattern: re.Pattern[str], value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from pattern.findall(value)
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings_matching(pattern, pair)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from _strings_matching(pattern, item)
