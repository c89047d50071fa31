"""From a command line to configs: flags, underscores, aliases, positionals, other engines' flags."""

from __future__ import annotations

from typing import Any

import pytest

from quire.cli.commands import COMMANDS
from quire.cli.main import make_parser, read_options
from quire.config.engine import EngineConfig
from quire.config.flags import dashed
from quire.config.options import ConfigError, specs_of
from quire.config.server import ServerConfig

SERVE = next(c for c in COMMANDS if c.name == "serve")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def serve(line: str) -> tuple[EngineConfig, ServerConfig]:
    engine, server = read_options(SERVE, line.split())
    return engine, server


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("org/model", {"model": "org/model"}),
        ("--model org/model", {"model": "org/model"}),
        ("org/model --port 9000", {"model": "org/model", "port": 9000}),
        ("--port 9000 org/model", {"model": "org/model", "port": 9000}),
        ("--port 9000 org/model --seed 3", {"model": "org/model", "port": 9000, "seed": 3}),
        ("m --model m", {"model": "m"}),
        ("--port 9000 -- org/model", {"model": "org/model", "port": 9000}),
        ("--max-model-len 8k", {"max_model_len": 8000}),
        ("--max_model_len=8K", {"max_model_len": 8192}),
        ("--max-model-len -1", {"max_model_len": None}),
        ("--gpu-memory-utilization 0.9", {"memory": "0.9"}),
        ("--gpu_memory_utilization=0.9", {"memory": "0.9"}),
        ("--block-size 32", {"page_size": 32}),
        ("-q gguf m", {"model": "m", "quantization": "gguf"}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("--no_enable_prefix_caching", {"enable_prefix_caching": False}),
        ("--enable-prefix-caching", {"enable_prefix_caching": True}),
        ("--api-key a --api-key b", {"api_key": ("a", "b")}),
        ("--served-model-name a b --port 1", {"served_model_name": ("a", "b"), "port": 1}),
        ("--uvicorn-log-level error", {"log_level": "error"}),
        ("--tensor-parallel-size 1 m", {"model": "m"}),
        ("-tp 1 m", {"model": "m"}),
        ("--enforce-eager m", {"model": "m"}),
        ("-O3 m", {"model": "m"}),
        ("--cudagraph-capture-sizes 1 2 4 --port 7", {"port": 7}),
    ],
)
def test_serve_line(line: str, expected: dict[str, Any]) -> None:
    configs = serve(line)
    defaults = (EngineConfig(), ServerConfig())
    found = {
        spec.name: getattr(config, spec.name)
        for config, default in zip(configs, defaults, strict=True)
        for spec in specs_of(type(config))
        if getattr(config, spec.name) != getattr(default, spec.name) or spec.name in expected
    }
    assert found == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--max-model-length 5", "Did you mean --max-model-len?"),
        ("--max_modl_len=5", "Unknown option --max-modl-len.*--max-model-len"),
        ("--prot 1", "--port"),
        ("--zzz", "Unknown option --zzz"),
        ("--max-model 5", "Unknown option"),
        ("a b", "Unexpected argument 'b'"),
        ("a --model b", "given twice"),
        ("--port", "[Ee]xpected one argument"),
        ("--enable-prefix-caching=false", "--no-enable-prefix-caching: a switch takes no value"),
        ("--port ninety", "--port takes a whole number"),
        ("--trust-remote-code", "never runs code"),
        ("-q w4", "must be one of"),
        ("--dtype int3", "--dtype must be one of .*float32"),
        ("--tensor-parallel-size 2", r"one device \(accepted: 1\)"),
        ("-tp 2", "--tensor-parallel-size"),
        ("--speculative-config {}", "speculative decoding"),
        ("--no-enable-chunked-prefill", "always cut into chunks"),
        ("--config /nonexistent.yaml", "can't read"),
    ],
)
def test_serve_refuses(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(line)


def test_a_dash_stands_for_standard_input() -> None:
    generate = next(c for c in COMMANDS if c.name == "generate")
    assert read_options(generate, ["-", "-o", "-"])[0].input == "-"


def test_harmless_foreign_flags_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    serve("--enforce-eager --swap-space 4")
    notes = capsys.readouterr().err
    assert "--enforce-eager has no effect" in notes
    assert "--swap-space has no effect" in notes


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_help_lists_every_option(command) -> None:
    text = make_parser(command).format_help()
    for cls in command.option_classes():
        for spec in specs_of(cls):
            assert spec.flag in text
    for example in command.examples:
        assert example in text


def test_every_example_parses() -> None:
    import shlex

    for command in COMMANDS:
        for example in command.examples:
            words = shlex.split(example)[1 + len(command.name.split()) :]
            if "--config" not in words:
                read_options(command, words)


def test_dashed_leaves_values_alone() -> None:
    assert dashed("--chat_template=my_file.jinja") == "--chat-template=my_file.jinja"
    assert dashed("my_file") == "my_file"
    assert dashed("-q") == "-q"


@pytest.mark.parametrize("columns", ["60", "300"])
def test_help_is_readable_at_any_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in COMMANDS:
        text = make_parser(command).format_help()
        options, _, examples = text.partition("\nexamples:\n")
        assert max(len(line) for line in options.splitlines()) <= 100
        assert f"  quire {command.name}" in examples
