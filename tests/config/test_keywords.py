"""Options of ``LLM``."""

from __future__ import annotations

import warnings

import pytest

from quire.config.keywords import engine_config
from quire.config.options import ConfigError


def test_names_of_both_engines() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = engine_config("m", {"gpu_memory_utilization": 0.5, "max_model_len": 128, "disable_log_stats": True})
    assert (config.model, config.memory, config.max_model_len) == ("m", "0.5", 128)


def test_what_has_no_effect_is_said() -> None:
    with pytest.warns(UserWarning, match="--enforce-eager has no effect"):
        engine_config("m", {"enforce_eager": True, "tensor_parallel_size": 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_modl_len": 1}, "Did you mean max_model_len"),
        ({"tensor_parallel_size": 2}, "one device"),
        ({"dtype": "int3"}, "must be one of"),
    ],
)
def test_what_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine_config("m", options)
