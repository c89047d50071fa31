"""Prompt files: what a line may hold, and the request it makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.config.options import ConfigError
from quire.config.sources import suggestion
from quire.params import ParameterError, SamplingParams

_INPUTS: Mapping[str, tuple[type, str]] = {
    "messages": (list, "a list of messages"),
    "prompt_token_ids": (list, "a list of token ids"),
    "prompt": (str, "text (token ids go into prompt_token_ids)"),
}


@dataclass(frozen=True)
class FilePrompt:
    """A line of a prompt file: ``messages`` of a chat, or a ``prompt`` of text or token ids; ``given`` is the line."""

    params: SamplingParams
    prompt: str | list[int] | None = None
    messages: list[Mapping[str, Any]] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: str, chat: bool, defaults: Mapping[str, Any]) -> list[FilePrompt]:
    """The prompts of a .txt or .jsonl file ('-': standard input, as text), with ``defaults`` where a line sets nothing.

    Raises ``ConfigError``, naming the line, for what is no prompt.
    """
    prompts = []
    for number, line in enumerate(_lines(path), 1):
        try:
            given = _object(line) if path.endswith((".jsonl", ".ndjson")) else {"prompt": line}
            prompts.append(_prompt(given, chat, defaults))
        except (ValueError, TypeError) as error:
            raise ConfigError("input", f"{path}, line {number}: {error}") from None
    if not prompts:
        raise ConfigError("input", f"{path} holds no prompts.")
    return prompts


def _lines(path: str) -> Iterator[str]:
    if path == "-" and sys.stdin.isatty():
        print("Prompts, one a line; Ctrl-D ends them.", file=sys.stderr)
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("input", f"Can't read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError("input", f"{path} is not UTF-8 text.") from None
    return (line for line in text.split("\n") if line.strip())


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        raise ValueError("this is no JSON object.") from None
    if not isinstance(value, dict):
        raise ValueError("this is no JSON object.")
    return value


def _prompt(given: dict[str, Any], chat: bool, defaults: Mapping[str, Any]) -> FilePrompt:
    present = [name for name in _INPUTS if given.get(name) is not None]
    if len(present) != 1:
        raise ValueError(f"give exactly one of {', '.join(_INPUTS)}.")
    known = set(SamplingParams.__struct_fields__)
    unknown = set(given) - known - set(_INPUTS) - {"id"}
    if unknown:
        hint = suggestion(min(unknown), known)
        raise ParameterError(min(unknown), f"{min(unknown)} is no sampling field.{hint}")
    params = SamplingParams(**{**defaults, **{k: v for k, v in given.items() if k in known}})
    name = present[0]
    kind, words = _INPUTS[name]
    if not isinstance(given[name], kind):
        raise ParameterError(name, f"{name} must be {words}.")
    value = given[name]
    if name == "messages":
        return FilePrompt(params, messages=value, given=given)
    if chat and name == "prompt":
        return FilePrompt(params, messages=[{"role": "user", "content": value}], given=given)
    return FilePrompt(params, prompt=value, given=given)
