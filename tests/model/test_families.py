"""Each family, tiny and random, against Transformers: logits at 1e-4 and the same greedy tokens, however it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quire.config.engine import EngineConfig
from quire.model.families import describe
from quire.model.loader import Loader
from quire.runtime.build import make_blueprint
from tests.model import layer_norm_cases, rms_cases
from tests.model.agreement import WAYS, check_recorded, random_model
from tests.model.harness import Harness

CASES = {**rms_cases.CASES, **layer_norm_cases.CASES}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp(request.param)
    return random_model(CASES[request.param], path), path


@pytest.mark.parametrize("way", [*WAYS, check_recorded], ids=lambda way: way.__name__)
def test_agrees_with_transformers(case: tuple[Any, Path], way: Any) -> None:
    model, path = case
    assert isinstance(make_blueprint(EngineConfig(model=str(path))).loader, Loader)
    way(model, lambda sequences: Harness(path, sequences))


def test_llama_has_no_window_whatever_its_config_says() -> None:
    spec, _ = describe({**CASES["llama"], "sliding_window": 24})
    assert {layer.attention.window for layer in spec.layers} == {None}
