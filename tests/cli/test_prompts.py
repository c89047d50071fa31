"""Prompt files of ``quire generate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.cli.prompts import read_prompts
from quire.config.options import ConfigError


def test_text_lines_take_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("one\n\n  two words\n")
    prompts = read_prompts(str(file), False, {"max_tokens": 5})
    assert [p.prompt for p in prompts] == ["one", "  two words"]
    assert {p.params.max_tokens for p in prompts} == {5}


def test_chat_wraps_text(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("hello\n")
    assert read_prompts(str(file), True, {})[0].messages == [{"role": "user", "content": "hello"}]


def test_json_lines_override_defaults(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "max_tokens": 3, "id": "x"},
        {"prompt_token_ids": [1, 2]},
        {"messages": [{"role": "user", "content": "b"}], "temperature": 0},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    first, second, third = read_prompts(str(file), False, {"max_tokens": 9})
    assert (first.prompt, first.params.max_tokens, first.given["id"]) == ("a", 3, "x")
    assert (second.prompt, second.params.max_tokens) == ([1, 2], 9)
    assert (third.messages, third.params.temperature) == (lines[2]["messages"], 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: this is no JSON object"),
        ("[1]", "no JSON object"),
        ("{}", "exactly one of"),
        ('{"prompt": "a", "messages": []}', "exactly one of"),
        ('{"prompt": "a", "max_tokns": 1}', "max_tokns is no sampling field. Did you mean max_tokens?"),
        ('{"prompt": 3}', "line 1: prompt must be text"),
        ('{"prompt_token_ids": "a"}', "prompt_token_ids must be a list of token ids"),
        ('{"messages": "a"}', "messages must be a list of messages"),
        ('{"prompt": "a", "temperature": 9}', "temperature must be"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(line)
    with pytest.raises(ConfigError, match=words):
        read_prompts(str(file), False, {})


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    empty, binary = tmp_path / "e.txt", tmp_path / "b.txt"
    empty.write_text("\n\n")
    binary.write_bytes(b"\xff\xfe")
    for path, words in ((empty, "no prompts"), (binary, "UTF-8"), (tmp_path / "none.txt", "Can't read")):
        with pytest.raises(ConfigError, match=words):
            read_prompts(str(path), False, {})
