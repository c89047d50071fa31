"""Options declared as dataclass fields: conversion, checks, and what the declarations must fulfil."""

from __future__ import annotations

import dataclasses
import itertools

import msgspec
import pytest

from quire.cli.commands import COMMANDS
from quire.config.engine import EngineConfig, ModelSource
from quire.config.options import ConfigError, changed, specs_of
from quire.config.server import ServerConfig
from quire.config.values import memory_bytes, parse_length


@pytest.mark.parametrize(
    ("field", "given", "held"),
    [
        ("max_model_len", "32k", 32_000),
        ("max_model_len", "32K", 32_768),
        ("max_model_len", 8192, 8192),
        ("max_model_len", "auto", None),
        ("max_model_len", "-1", None),
        ("max_model_len", -1, None),
        ("memory", 0.9, "0.9"),
        ("memory", "20GiB", "20GiB"),
        ("max_num_seqs", "12", 12),
        ("enable_prefix_caching", "false", False),
        ("enable_prefix_caching", "1", True),
        ("offline", "YES", True),
        ("threads", None, None),
        ("seed", 2**40, 2**40),
    ],
)
def test_engine_values(field: str, given: object, held: object) -> None:
    assert getattr(EngineConfig(**{field: given}), field) == held


@pytest.mark.parametrize(
    ("cls", "field", "given", "words"),
    [
        (EngineConfig, "max_num_seqs", 0, "at least 1"),
        (EngineConfig, "max_num_seqs", "many", "a whole number"),
        (EngineConfig, "max_num_seqs", 1.5, "a whole number"),
        (EngineConfig, "max_num_seqs", True, "a whole number"),
        (EngineConfig, "max_num_queued_reqs", None, "a whole number"),
        (EngineConfig, "max_model_len", "0", "at least 1"),
        (EngineConfig, "max_model_len", "9" * 12 + "M", "at most"),
        (EngineConfig, "max_model_len", "long", "no length"),
        (EngineConfig, "memory", "lots", "no amount of memory"),
        (ServerConfig, "root_path", "llm", "--root-path must begin with / and not end with it"),
        (ServerConfig, "root_path", "/llm/", "--root-path must begin with /"),
        (EngineConfig, "memory", "0", "no amount of memory"),
        (EngineConfig, "memory", "2.5", r"'2\.5' is no fraction: write at most 1\.0, or a unit, as in 2\.5GiB"),
        (EngineConfig, "memory", float("nan"), "no amount of memory"),
        (EngineConfig, "memory", -0.5, "no amount of memory"),
        (EngineConfig, "scheduling_policy", "lifo", "must be one of fcfs, priority"),
        (EngineConfig, "quantization", "int5", "must be one of gptq, "),
        (EngineConfig, "quantization", "experts_int8", "would quantise experts alone; int8 quantises all layers"),
        (EngineConfig, "offline", "perhaps", "true or false"),
        (EngineConfig, "offline", 2, "true or false"),
        (EngineConfig, "model", 5, "takes text"),
        (EngineConfig, "page_size", 8, "at least 16"),
        (EngineConfig, "page_size", 40, "a multiple of 16"),
        (ServerConfig, "port", 65536, "at most 65,535"),
        (ServerConfig, "shutdown_timeout", "inf", "a number"),
        (ServerConfig, "shutdown_timeout", float("nan"), "a number"),
        (ServerConfig, "api_key", "", "must not be empty"),
        (ServerConfig, "api_key", ("good", "bad "), "nor begin or end with a blank"),
        (ServerConfig, "ssl_keyfile", "key.pem", "given together"),
    ],
)
def test_bad_values_name_the_flag(cls: type, field: str, given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        cls(**{field: given})
    assert "--" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_value_makes_a_tuple() -> None:
    assert ServerConfig(api_key="a").api_key == ("a",)
    assert ServerConfig(api_key=["a", "b"]).api_key == ("a", "b")


def test_construction_is_idempotent_and_survives_msgspec() -> None:
    config = EngineConfig(max_model_len="4k", memory=0.5, threads="2")
    assert EngineConfig(**dataclasses.asdict(config)) == config
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=EngineConfig) == config


def test_secrets_stay_out_of_repr() -> None:
    assert "s3cret" not in repr(ServerConfig(api_key="s3cret"))
    assert "s3cret" not in repr(EngineConfig(hf_token="s3cret"))


def test_changed_names_only_what_differs() -> None:
    assert changed(EngineConfig(max_num_seqs=8)) == {"max_num_seqs": 8}
    assert changed(ModelSource()) == {}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_declarations_of_a_command_are_sound(command) -> None:
    """No name or alias twice within a command, every default is a legal value, and every option has a sentence."""
    specs = list(itertools.chain.from_iterable(specs_of(cls) for cls in command.option_classes()))
    flags = [flag for s in specs for flag in (s.flag, *s.option.aliases)] + ["--config", "--help", "-h"]
    assert len(flags) == len(set(flags))
    for spec in specs:
        assert spec.convert(spec.default) == spec.default
        assert spec.option.help.endswith("."), spec.name


@pytest.mark.parametrize(
    ("text", "total", "size"),
    [
        ("auto", 100, None),
        ("0.5", 1000, 500),
        ("1", 1000, 1000),
        ("20GiB", 0, 20 * 2**30),
        ("20g", 0, 20 * 10**9),
        ("1.5 MB", 0, 1_500_000),
        ("2048", 0, 2048),
        ("2KiB", 0, 2048),
        ("512b", 0, 512),
    ],
)
def test_memory(text: str, total: int, size: int | None) -> None:
    assert memory_bytes(text, total) == size


@pytest.mark.parametrize("text", ["", "k", "1e3", "٣2", "-5", "1..2", "0x10", "8 192"])
def test_no_length(text: str) -> None:
    with pytest.raises(ValueError, match="no length"):
        parse_length(text)
