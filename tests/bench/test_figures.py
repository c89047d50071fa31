"""Figures from timings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.bench.display import plot
from quire.bench.figures import percentile, save, spread, summarise
from quire.bench.load import Timing
from quire.bench.offline import OfflineRun, latencies
from quire.config.bench import ResultConfig
from quire.config.options import ConfigError
from quire.outputs import CompletionOutput, RequestMetrics, RequestOutput


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


@pytest.mark.parametrize(
    "words",
    [["--api-key", "hush", "m"], ["--api_key=hush", "m"], ["--hf-token=hush", "m"], ["m", "--hf-token", "hush"]],
)
def test_saved_figures_hold_no_secrets(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/quire", "bench", "serve", *words])
    save(tmp_path / "r.json", {})
    text = (tmp_path / "r.json").read_text()
    assert "hush" not in text
    assert json.loads(text)["machine"]["command"].split().count("m") == 1


def test_latencies_of_an_offline_run() -> None:
    def output(*times: float, tokens: int) -> RequestOutput:
        arrival, first, end = times
        metrics = RequestMetrics(arrival, first_token_time=first, finished_time=end)
        return RequestOutput("r", None, [1], [CompletionOutput(0, token_ids=[5] * tokens)], metrics=metrics)

    runs = [
        OfflineRun([output(10, 10.5, 11.5, tokens=5), output(10, 11, 11, tokens=1)], 2.0),
        OfflineRun([output(20, 20.25, 20.75, tokens=2), RequestOutput("r", None, [1], [])], 1.0),
    ]
    assert latencies(runs) == {
        "ttft_ms": [500, 1000, 250],
        "tpot_ms": [250, 500],
        "e2e_ms": [1500, 1000, 750],
    }


def test_a_plot_has_a_panel_for_each_latency_that_was_measured(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    plot(str(tmp_path / "a"), {"one": {"ttft_ms": [1, 2], "e2e_ms": [3]}, "two": {"ttft_ms": [], "e2e_ms": [4, 5]}})
    plot(str(tmp_path / "b"), {"one": {"ttft_ms": [1, 2], "e2e_ms": []}})
    plot(str(tmp_path / "none"), {"one": {"ttft_ms": []}})
    widths = [image.imread(tmp_path / name, format="png").shape[1] for name in ("a", "b", "none")]
    assert widths[0] == 2 * widths[1] == 2 * widths[2]


def test_a_plot_without_matplotlib_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--plot needs matplotlib: pip install"):
        ResultConfig(plot=str(tmp_path / "p.png"))
