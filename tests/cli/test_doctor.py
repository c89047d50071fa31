"""``quire doctor``: what each check says on this machine and on a broken one."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from quire.cli import checks
from quire.cli.doctor import run
from quire.config.client import ReportConfig


def test_json_report_lists_every_topic(capsys: pytest.CaptureFixture[str]) -> None:
    run(ReportConfig(json=True))
    found = json.loads(capsys.readouterr().out)
    assert {"python", "packages", "torch", "cpu", "kernels", "compiler", "memory", "model"} <= {
        f["topic"] for f in found
    }
    assert all(f["cure"] for f in found if f["level"] == "fault")


def test_packages_of_this_environment_are_in_range() -> None:
    assert [f.level for f in checks.packages()] == ["ok"]


def test_a_package_out_of_range_and_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "msgspec":
            raise metadata.PackageNotFoundError(name)
        return "1.13.0" if name == "torch" else real(name)

    monkeypatch.setattr(checks.metadata, "version", version)
    faults = {f.text.split()[0]: f for f in checks.packages() if f.level == "fault"}
    assert set(faults) == {"torch", "msgspec"}
    assert faults["torch"].cure.startswith("pip install 'torch")
    assert "1.13.0 is outside" in faults["torch"].text


def test_no_compiler_and_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "quire.ops.cpu._kernels", None)
    kernels, compiler = checks.kernels()
    assert (kernels.level, compiler.level) == ("fault", "note")
    assert kernels.cure.startswith("apt-get install -y g++")


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(checks, "CHECKS", (broken,))
    (finding,) = checks.examine()
    assert finding.level == "fault"
    assert "boom" in finding.text


@pytest.mark.parametrize(("works", "level"), [(True, "ok"), (False, "note")])
def test_a_gpu_is_used_or_the_cure_is_named(works: bool, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: works, get_device_name=lambda index: "Card", mem_get_info=lambda index: (1, 80 << 30)
    )
    torch = SimpleNamespace(
        __version__="2.9", version=SimpleNamespace(cuda="12.8"), cuda=cuda, get_num_threads=lambda: 1
    )
    monkeypatch.setattr(checks.importlib, "import_module", lambda name: torch)
    monkeypatch.setattr(checks.Path, "exists", lambda path: True)
    _, gpu = checks.torch()
    assert (gpu.topic, gpu.level) == ("gpu", level)
    assert bool(gpu.cure) is not works
    assert "Card, 80.0 GiB" in gpu.text or not works
