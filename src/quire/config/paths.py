"""Where Quire keeps files of its own, and where it may put those it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from quire.config.options import ConfigError


def cache_dir(name: str) -> Path:
    """A part of Quire's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "quire" / name


def check_output(option: str, path: str) -> None:
    """Raise ``ConfigError`` where no file can be written: known before the work is done whose result it is to take."""
    target = Path(path).absolute()
    try:
        if target.is_dir():
            raise ConfigError(option, f"--{option}: {path} is a folder; name a file in it.")
        nearest = next(p for p in (target, *target.parents) if p.exists())
        writable = (nearest == target or nearest.is_dir()) and os.access(nearest, os.W_OK)
    except OSError as error:  # a name that is too long, a loop of links
        raise ConfigError(option, f"--{option}: {path} can't be written: {error.strerror}.") from None
    if not writable:
        raise ConfigError(option, f"--{option}: {path} can't be written; name a file in a folder that is yours.")
