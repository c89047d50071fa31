"""Where values come from, and which wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.config.engine import EngineConfig
from quire.config.options import ConfigError
from quire.config.server import ServerConfig
from quire.config.sources import from_kwargs, from_sources

CLASSES = (EngineConfig, ServerConfig)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("seed: 1\nmax-num-seqs: 2\nmax_logprobs: 3\nport: 4\n")
    environ = {"QUIRE_SEED": "10", "QUIRE_MAX_NUM_SEQS": "20"}
    (engine, server), _ = from_sources(CLASSES, {"seed": "100"}, environ, str(file))
    assert (engine.seed, engine.max_num_seqs, engine.max_logprobs, server.port) == (100, 20, 3, 4)
    assert server.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        ({"QUIRE_API_KEY": "a, b"}, ("a", "b")),
        ({"VLLM_API_KEY": "v"}, ("v",)),
        ({"VLLM_API_KEY": "v", "QUIRE_API_KEY": "q"}, ("q",)),
        ({"QUIRE_API_KEY": "", "VLLM_API_KEY": ""}, ()),
    ],
)
def test_keys_from_the_environment(environ: dict[str, str], keys: tuple[str, ...]) -> None:
    (_, server), _ = from_sources(CLASSES, {}, environ)
    assert server.api_key == keys


def test_offline_from_the_hub_variable() -> None:
    (engine, _), _ = from_sources(CLASSES, {}, {"HF_HUB_OFFLINE": "1"})
    assert engine.offline


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_modl_len: 5", "no option.*max_model_len"),
        ("trust_remote_code: true", "never runs code"),
        ("tensor_parallel_size: 4", "one device"),
        ("memory: 0.5\ngpu-memory-utilization: 0.9", r"c\.yaml: memory and gpu-memory-utilization are .* given twice"),
        ("seed: [1]", r"c\.yaml: --seed takes a whole number, not \[1\]"),
        ("api-key: 12345", r"c\.yaml: --api-key takes text, not a value of type int\.$"),
        ("- a\n- b", "option: value"),
        ("{", "no valid YAML"),
        ("!!python/object/apply:os.system ['true']", "no valid YAML"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        from_sources(CLASSES, {}, {}, str(file))


def test_one_file_serves_several_commands(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("seed: 1\nport: 9000\n")
    (engine,), notes = from_sources((EngineConfig,), {}, {}, str(file), CLASSES)
    assert engine.seed == 1
    assert notes == ["port is an option of other commands and has no effect here."]
    file.write_text("prot: 9000\n")
    with pytest.raises(ConfigError, match=r"prot is no option\."):
        from_sources((EngineConfig,), {}, {}, str(file), CLASSES)


def test_an_error_names_the_variable_unless_a_flag_won() -> None:
    with pytest.raises(ConfigError, match=r"^QUIRE_PORT: --port takes a whole number, not 'x'\.$"):
        from_sources(CLASSES, {}, {"QUIRE_PORT": "x"})
    with pytest.raises(ConfigError, match=r"^--port takes a whole number, not 'y'\.$"):
        from_sources(CLASSES, {"port": "y"}, {"QUIRE_PORT": "x"})


def test_file_of_a_list_and_an_empty_one(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("served-model-name: [a, b]\nenforce_eager: true\n")
    (_, server), notes = from_sources(CLASSES, {}, {}, str(file))
    assert server.served_model_name == ("a", "b")
    assert len(notes) == 1
    file.write_text("")
    assert from_sources(CLASSES, {}, {}, str(file))[0] == [EngineConfig(), ServerConfig()]


def test_keyword_arguments_under_vllm_names() -> None:
    config, notes = from_kwargs(
        EngineConfig,
        {"gpu_memory_utilization": 0.5, "block_size": 16, "tensor_parallel_size": 1, "enforce_eager": True},
    )
    assert (config.memory, config.page_size) == ("0.5", 16)
    assert notes == ["--enforce-eager has no effect: Quire has no compile step to switch off."]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"max_model_length": 5}, "Did you mean max_model_len"),
        ({"trust_remote_code": True}, "never runs code"),
        ({"tensor_parallel_size": 2}, "one device"),
        ({"memory": "1g", "gpu_memory_utilization": 0.5}, "twice"),
    ],
)
def test_bad_keyword_arguments(kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_kwargs(EngineConfig, kwargs)
