"""Compilation in other processes: what is asked for is compiled once, and later starts know."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quire.ops.triton import ahead
from quire.ops.triton.launch import compile_only

VARIANT = {"dtype": "bfloat16", "activation": "silu"}


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU that is only named, packages that are not installed (so nothing compiles), and a cache of its own."""
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(ahead, "version", lambda package: "1.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ahead, "_compilers", {})


def started() -> list[bool]:
    return [compiler._process is not None for compiler in ahead._compilers.values()]


def test_each_variant_is_compiled_once() -> None:
    ahead.start(torch.device("cuda"))
    assert started() == [True, True]  # early, as nothing was compiled yet
    assert not ahead.compiled_apart("gated", **VARIANT)  # outside of compile_only the caller is to compute
    with compile_only():
        assert [ahead.compiled_apart("gated", **VARIANT) for _ in range(2)] == [True, True]
    ahead.finish()
    assert not ahead._compilers

    ahead.start(torch.device("cuda"))
    assert started() == [False, False]
    with compile_only():
        assert not ahead.compiled_apart("gated", **VARIANT)  # it is on the disk
        assert started() == [False, False]
        assert ahead.compiled_apart("gated", **VARIANT | {"activation": "relu"})
    assert started() == [False, True]
    ahead.finish()


def test_a_process_that_dies_stops_nothing() -> None:
    ahead.start(torch.device("cuda"))
    for compiler in ahead._compilers.values():
        compiler._process.kill()
        compiler._process.wait()
    with compile_only():
        assert ahead.compiled_apart("flash", head_dim=128)
    ahead.finish()


def test_none_where_packages_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(ahead, "_compilers", {})
    monkeypatch.setitem(ahead._PACKAGES, "flash", "no-such-package")
    monkeypatch.setitem(ahead._PACKAGES, "gated", "no-such-package")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=9, minor=0))
    ahead.start(torch.device("cuda"))
    assert not ahead._compilers
