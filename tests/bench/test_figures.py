"""Figures from timings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.bench.figures import percentile, save, spread, summarise
from quire.bench.load import Timing


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_summary_of_known_timings() -> None:
    timings = [
        Timing(0.0, [0.5, 0.6, 0.8], 0.8, prompt_tokens=10, cached_tokens=4, output_tokens=3),
        Timing(1.0, [1.1], 1.1, prompt_tokens=5, output_tokens=1),
        Timing(1.0, [], 1.5, error="refused"),
    ]
    found = summarise(timings, wall=2.0)
    assert (found["requests"], found["failed"], found["errors"]) == (3, 1, ["refused"])
    assert (found["prompt_tokens"], found["cached_tokens"], found["output_tokens"]) == (15, 4, 4)
    assert found["output_tokens_per_s"] == 2.0
    assert found["ttft_ms"]["mean"] == pytest.approx(300)
    assert found["tpot_ms"]["mean"] == pytest.approx(150)
    assert found["itl_ms"]["p50"] == pytest.approx(150)
    assert found["e2e_ms"]["p50"] == pytest.approx(450)


def test_nothing_measured_gives_no_spread() -> None:
    assert spread([]) == {}
    assert summarise([Timing(0.0, error="x")], 1.0)["ttft_ms"] == {}


def test_saved_figures_say_where_they_come_from(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "r.json"
    save(target, {"runs": 1})
    found = json.loads(target.read_text())
    assert found["runs"] == 1
    assert {"date", "cpu", "cores", "versions", "command"} <= set(found["machine"])
