"""The command as a process: what it prints, its exit status, and what it must not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quire import __version__
from quire.cli.commands import COMMANDS
from quire.cli.main import find_command, main

HEAVY = ("torch", "numpy", "tokenizers", "huggingface_hub", "fastapi", "pydantic", "rich", "yaml", "zmq")


def loaded_after(*argv: str) -> set[str]:
    """Which heavy modules are imported once ``quire ARGV`` is through."""
    code = (
        "import sys\nfrom quire.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *[m for m in sys.modules if '.' not in m], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=True)
    names = next(line for line in done.stderr.splitlines() if line.startswith("LOADED")).split()
    return set(names) & set(HEAVY)


@pytest.mark.parametrize(
    "argv", [["--version"], ["--help"], ["nonsense"], ["bench"], *[[*c.name.split(), "--help"] for c in COMMANDS]]
)
def test_words_load_nothing_heavy(argv: list[str]) -> None:
    assert loaded_after(*argv) == set()


def test_import_quire_loads_no_torch() -> None:
    code = "import sys, quire; quire.SamplingParams(); quire.EngineConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"quire {__version__}\n"


def test_no_command_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: quire COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "status"), [(["bench"], 2), (["bench", "--help"], 0)])
def test_a_family_of_commands_is_listed(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == status
    listed = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == ["bench throughput", "bench latency", "bench serve"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sevre"], "Did you mean serve?"),
        (["bnech", "latency"], "Did you mean bench?"),
        (["bench", "srve"], "Did you mean bench serve?"),
        (["serve", "--prot", "1"], "Did you mean --port?"),
        (["serve", "--port", "many"], "--port takes a whole number"),
        (["pull", "--max-num-seqs", "3"], "Unknown option"),
    ],
)
def test_mistakes_end_in_one_sentence(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "./no-such-model.gguf"]) == 1
    assert capsys.readouterr().err.startswith("quire pull: error: ")


def test_two_word_commands() -> None:
    command, rest = find_command(["bench", "serve", "--plot", "x.png"])
    assert command is not None
    assert command.name == "bench serve"
    assert rest == ["--plot", "x.png"]


def test_all_public_names_resolve() -> None:
    import quire

    for name in quire.__all__:
        assert getattr(quire, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = quire.nothing_here
