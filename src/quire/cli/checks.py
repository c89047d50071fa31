"""The checks of ``quire doctor``: each looks at one thing and says what would cure it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from quire.version import __version__

GIB = 1 << 30
MIN_PYTHON = (3, 11)
_LOW_MEMORY = int(1.5 * GIB)
_FAST_FEATURES = ("avx2", "fma", "f16c")
_OTHER_FEATURES = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Finding:
    """``cure`` is the one command that mends it; empty where nothing needs mending."""

    topic: str
    level: Literal["ok", "note", "fault"]
    text: str
    cure: str = ""


def python() -> Iterator[Finding]:
    text = f"{platform.python_version()} at {sys.executable}; Quire {__version__}"
    if sys.version_info < MIN_PYTHON:
        yield Finding("python", "fault", text, "python3.11 -m venv .venv && .venv/bin/pip install quire-llm")
    else:
        yield Finding("python", "ok", text)


def packages() -> Iterator[Finding]:
    """Every direct dependency is there, in its range."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("packages", "note", "the ranges of packages can't be checked", "pip install packaging")
        return
    good = 0
    for line in metadata.requires("quire-llm") or []:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", "fault", f"{need.name} is missing", f"pip install '{need.name}{need.specifier}'")
            continue
        if need.specifier.contains(found, prereleases=True):
            good += 1
        else:
            text = f"{need.name} {found} is outside {need.specifier}"
            yield Finding("packages", "fault", text, f"pip install '{need.name}{need.specifier}'")
    yield Finding("packages", "ok", f"{good} direct dependencies in their ranges")


def torch() -> Iterator[Finding]:
    try:
        module = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("torch", "fault", f"can't be imported: {error}", "pip install --force-reinstall torch")
        return
    build = f"CUDA {module.version.cuda}" if module.version.cuda else "CPU"
    yield Finding("torch", "ok", f"{module.__version__}, {build} build, {module.get_num_threads()} threads")
    if Path("/proc/driver/nvidia").exists() and not module.cuda.is_available():
        yield Finding("gpu", "note", "an NVIDIA driver is there, but torch can't use it", "pip install -U torch")
    elif module.cuda.is_available():
        yield Finding("gpu", "ok", f"{module.cuda.get_device_name(0)}, {module.cuda.mem_get_info(0)[1] / GIB:.1f} GiB")


def cpu() -> Iterator[Finding]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    has = [f for f in (*_FAST_FEATURES, *_OTHER_FEATURES) if f in flags]
    text = (
        f"{name}, {len(os.sched_getaffinity(0))} cores for this process, {' '.join(has) or 'no vector features seen'}"
    )
    if all(f in flags for f in _FAST_FEATURES):
        yield Finding("cpu", "ok", text)
    else:
        yield Finding("cpu", "note", text + "; without AVX2, FMA and F16C the slower portable kernels run")


def kernels() -> Iterator[Finding]:
    """The compiled CPU kernels, or why there are none."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    try:
        importlib.import_module("quire.ops.cpu._kernels")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        why = "the compiled kernels are not there" if missing else f"the compiled kernels can't be loaded ({error})"
        rebuild = "pip install --force-reinstall --no-deps --no-cache-dir quire-llm"
        cure = rebuild if compiler else f"apt-get install -y g++ python3-dev && {rebuild}"
        yield Finding("kernels", "fault", f"{why}: torch's slower ops serve instead", cure)
    else:
        yield Finding("kernels", "ok", "compiled CPU kernels are loaded")
    if compiler:
        yield Finding("compiler", "ok", compiler)
    else:
        yield Finding("compiler", "note", "none found; only needed to build the kernels", "apt-get install -y g++")


def memory() -> Iterator[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB unused"
    if total < _LOW_MEMORY:
        yield Finding("memory", "note", f"{text}: little for a model", "quire plan")
    else:
        yield Finding("memory", "ok", text)


def default_model() -> Iterator[Finding]:
    from quire.config.engine import DEFAULT_MODEL
    from quire.weights.errors import SourceError
    from quire.weights.sources import resolve

    try:
        yield Finding("model", "ok", f"{DEFAULT_MODEL} at {resolve(DEFAULT_MODEL, offline=True)}")
    except SourceError:
        yield Finding("model", "note", f"{DEFAULT_MODEL} is not fetched yet", "quire pull")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (python, packages, torch, cpu, kernels, memory, default_model)


def examine() -> list[Finding]:
    """The findings of all checks. A check that breaks is itself a finding."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:
            cure = "pip install --force-reinstall quire-llm"
            findings.append(Finding(check.__name__, "fault", f"the check failed: {error}", cure))
    return findings
