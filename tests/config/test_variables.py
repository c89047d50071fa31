"""A misspelt variable is told of; what the project itself reads is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quire.cli.commands import COMMANDS
from quire.cli.main import main, read_options
from quire.config.variables import unknown_variables

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [cls for command in COMMANDS for cls in command.option_classes()]


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (["QUIRE_MAX_MODL_LEN"], [r"QUIRE_MAX_MODL_LEN .*no effect\. Did you mean QUIRE_MAX_MODEL_LEN\?"]),
        (["QUIRE_CPU_INSTRUCTION"], [r"Did you mean QUIRE_CPU_INSTRUCTIONS\?"]),
        (["QUIRE_XYZZY"], [r"QUIRE_XYZZY .*no effect\.$"]),
        (["QUIRE_PROT", "QUIRE_HOTS"], ["QUIRE_HOTS.*QUIRE_HOST", "QUIRE_PROT.*QUIRE_PORT"]),
        (["QUIRE_PORT", "QUIRE_NUM_ITERS", "QUIRE_LLAMA_BIN", "HF_TOKEN", "QUIRED"], []),
        (["QUIRE_SERVICE_HOST", "QUIRE_SERVICE_PORT_HTTP", "QUIRE_PORT_8000_TCP_ADDR"], []),
    ],
)
def test_unknown_variables(names: list[str], notes: list[str]) -> None:
    found = unknown_variables(names, CLASSES)
    assert len(found) == len(notes)
    for note, pattern in zip(found, notes, strict=True):
        assert re.search(pattern, note)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_says_it_once(
    command: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUIRE_MAX_MODL_LEN", "8k")
    monkeypatch.setenv("QUIRE_MAX_MODEL_LEN", "8k")
    read_options(command, [])  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "QUIRE_MAX_MODL_LEN" in line] == lines and len(lines) == 1


def test_help_says_nothing_of_variables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QUIRE_XYZZY", "1")
    assert main(["--version"]) == 0
    assert capsys.readouterr().err == ""


def test_variables_that_the_project_names_are_known() -> None:
    files = [p for folder in ("src", "benchmarks", "examples", "docs") for p in (ROOT / folder).rglob("*.*")]
    texts = [p.read_text() for p in files if p.suffix in (".py", ".md", ".sh")]
    texts += [(ROOT / name).read_text() for name in ("README.md", "Makefile", ".ci/run", "setup.py")]
    named = {name for text in texts for name in re.findall(r"\bQUIRE_[A-Z][A-Z_]*[A-Z]\b", text)}
    assert "QUIRE_LLAMA_BIN" in named
    assert unknown_variables(named, CLASSES) == []
