"""Compilation in processes of their own, of kernels that CUTLASS's Python compiles.

It takes seconds a kernel and holds the interpreter's lock, so Triton's kernels would wait for it. Such a process sees
no GPU. It imports what it needs while the model is still being loaded, compiles what it is asked for, and leaves that
in the cache on disk of FlashAttention-4 or ``quack``, from which this process takes it. Stamps in Quire's own cache
tell what was compiled before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from quire.config.paths import cache_dir
from quire.ops.triton.launch import compiling

_PACKAGES = {"flash": "flash-attn-4", "gated": "quack-kernels"}  # a module of ours, and whose kernels it launches
_LIMIT_S = 120.0
_compilers: dict[str, _Compiler] = {}


class _Compiler:
    """``kind``: the module whose ``compile_variant`` the process calls."""

    def __init__(self, kind: str, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        arch = f"{properties.major}{properties.minor}"
        self._kind = kind
        self._asked: set[Path] = set()
        self._process: subprocess.Popen[str] | None = None
        self._stamps = cache_dir("compiled") / f"{kind}-{version(_PACKAGES[kind])}-sm_{arch}"
        self._environment = {
            "CUDA_VISIBLE_DEVICES": "",
            "CUTE_DSL_ARCH": f"sm_{arch}a",
            "FLASH_ATTENTION_ARCH": f"sm_{arch}a",
            "FLASH_ATTENTION_NUM_SMS": str(properties.multi_processor_count),
            "QUACK_ARCH": arch,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        if not self._stamps.exists():  # there will be something to compile
            self._start()

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main({self._kind!r})"],
            env=os.environ | self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self._process

    def compiles(self, variant: str) -> bool:
        """Whether the process does, because no earlier one did."""
        stamp = self._stamps / sha256(variant.encode()).hexdigest()
        if stamp in self._asked:
            return True
        if stamp.exists():
            return False
        process = self._process or self._start()
        self._asked.add(stamp)
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(variant + "\n")
                process.stdin.flush()
        return True

    def finish(self) -> None:
        if self._process is None:
            return
        if self._asked:
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=_LIMIT_S)
        self._process.kill()
        self._process.communicate()
        self._stamps.mkdir(parents=True, exist_ok=True)
        for stamp in self._asked:
            stamp.touch()


def start(device: torch.device) -> None:
    """Have variants compiled apart from now on, for this GPU."""
    for kind in _PACKAGES:
        with suppress(PackageNotFoundError):
            _compilers[kind] = _compilers.get(kind) or _Compiler(kind, device)


def compiled_apart(kind: str, **variant: Any) -> bool:
    """Within ``compile_only``: whether a process compiles the variant, so that the caller need not."""
    return compiling() and kind in _compilers and _compilers[kind].compiles(json.dumps(variant, default=_name))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finish() -> None:
    """Wait for all that was asked for. What could not be compiled, its first call here does, or says why not."""
    while _compilers:
        _compilers.popitem()[1].finish()


def main(kind: str) -> None:
    """Compile the variants that come as lines of JSON."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = import_module(f"quire.ops.triton.{kind}")
    module.prepare()
    for line in sys.stdin:
        # ``quack`` loads what it compiled, which needs a GPU, after it has stored it.
        with suppress(Exception), FakeTensorMode():
            module.compile_variant(**json.loads(line))
    os._exit(0)  # an orderly end takes seconds, and others wait for it
