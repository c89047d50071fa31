"""The arithmetic of benchmarks/compare_cpu.py: medians, ratios, bars."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compare_cpu import medians, show
from measure import MEASURES, value_of
from report import markdown


def test_values_are_read_from_summaries() -> None:
    summary = {"output_tokens_per_s": 50.0, "seconds": 4.0, "tpot_ms": {"p50": 10.0}, "ttft_ms": {"p50": 2000.0}}
    found = {name: value_of(measure, summary) for name, measure in MEASURES.items()}
    assert found == {"w1": 50.0, "w2": 100.0, "w3": 512.0, "w4": 4.0}


def figures(quire_w1: float, quire_w4: float) -> dict[str, object]:
    def engine(w1: float, w4: float, **more: float) -> dict[str, object]:
        return {"w1": {"value": w1}, "w4": {"value": w4}, "ready_s": 2.0, "peak_mb": 800.0, **more}

    rounds = [
        {"quire": engine(quire_w1 + d, quire_w4, idle_cores=0.001), "a": engine(100 + d, 10), "b": engine(90, 30)}
        for d in (-5, 0, 40)
    ]
    return {"help_s": 0.1, "median": medians(rounds, ["w1", "w4"]), "rounds": rounds}


def test_medians_over_rounds() -> None:
    median = figures(160, 4)["median"]
    assert median["quire"] == {"w1": 160, "w4": 4, "ready_s": 2.0, "peak_mb": 800.0, "idle_cores": 0.001}
    assert (median["a"]["w1"], median["b"]["w4"]) == (100, 30)


@pytest.mark.parametrize(
    ("w1", "w4", "met"), [(160, 4, True), (149, 4, False), (160, 6, False)], ids=["both", "w1 short", "w4 long"]
)
def test_bars_are_ratios_to_the_best_peer(w1: float, w4: float, met: bool) -> None:
    assert show(figures(w1, w4), ["w1", "w4"]) is met


def test_report_has_a_row_for_each_workload() -> None:
    machine = {"date": "2026-01-02T03", "cpu": "C", "cores": 2, "command": "compare_cpu.py"}
    page = markdown({**figures(160, 4), "machine": machine})
    assert "| W1 output tokens/s | 160.0 | 100.0 | 90.0 | 1.60 |" in page
    assert "| W4 seconds | 4.0 | 10.0 | 30.0 | 0.40 |" in page
