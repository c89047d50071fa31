"""From timings to figures, and from figures to JSON files that say where they come from."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quire.bench.load import Timing
from quire.config.bench import LoadConfig
from quire.config.engine import EngineConfig
from quire.config.flags import dashed
from quire.config.options import specs_of

PERCENTILES = (50, 90, 99)
_PACKAGES = ("quire-llm", "torch", "numpy", "tokenizers", "fastapi", "uvicorn", "msgspec", "pyzmq")


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy does by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles; empty for no values."""
    if not values:
        return {}
    return {"mean": sum(values) / len(values)} | {f"p{p}": percentile(values, p) for p in PERCENTILES}


def spreads(latencies: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    return {name: spread(values) for name, values in latencies.items()}


def latencies(timings: Sequence[Timing]) -> dict[str, list[float]]:
    """What was measured of the requests that did not fail, in milliseconds."""
    good = [t for t in timings if t.error is None]
    seconds = {
        "ttft_ms": [t.ttft for t in good],
        "tpot_ms": [t.tpot for t in good if t.tpot is not None],
        "itl_ms": [gap for t in good for gap in t.gaps],
        "e2e_ms": [t.e2e for t in good],
    }
    return {name: [1000 * value for value in values] for name, values in seconds.items()}


def summarise(timings: Sequence[Timing], wall: float) -> dict[str, Any]:
    """Counts, rates a second, and latencies in milliseconds."""
    good = [t for t in timings if t.error is None]
    output = sum(t.output_tokens for t in good)
    prompt = sum(t.prompt_tokens for t in good)
    return {
        "requests": len(timings),
        "failed": len(timings) - len(good),
        "errors": sorted({t.error for t in timings if t.error})[:5],
        "seconds": wall,
        "prompt_tokens": prompt,
        "cached_tokens": sum(t.cached_tokens for t in good),
        "output_tokens": output,
        "requests_per_s": len(good) / wall,
        "output_tokens_per_s": output / wall,
        "total_tokens_per_s": (prompt + output) / wall,
        **spreads(latencies(timings)),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: v for name in _PACKAGES if (v := _version(name))},
        "command": _command(),
    }


def save(path: str | Path, figures: dict[str, Any]) -> None:
    """Write ``figures`` with the machine's facts as JSON, making the folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")


def _command() -> str:
    """The command line, without keys and tokens: results are for showing around."""
    flags = {spec.flag for cls in (EngineConfig, LoadConfig) for spec in specs_of(cls) if spec.option.secret}
    words: list[str] = []
    for word in sys.argv[1:]:
        flag, given, _ = dashed(word).partition("=")
        after = words and dashed(words[-1]) in flags
        words.append("***" if after else f"{flag}=***" if given and flag in flags else word)
    return " ".join([Path(sys.argv[0]).name, *words])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
