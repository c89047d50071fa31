"""Compilation in processes of their own, of kernels that CUTLASS's Python compiles.

It takes seconds a kernel and holds the interpreter's lock, so Triton's kernels would wait for it. Such a process sees
no GPU. It imports what it needs while the model is still being loaded, compiles what it is asked for, and leaves that
in the cache on disk of FlashAttention-4 or ``quack``, from which this process takes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch

from quire.config.paths import cache_dir
from quire.ops.triton.launch import compiling

_LIMIT_S = 120.0
_processes: dict[str, _Compiler] = {}


class _Compiler:
    """``kind``: the module of ``quire.ops.triton`` whose ``compile_variant`` the process calls."""

    def __init__(self, kind: str, environment: dict[str, str]) -> None:
        self._asked: set[str] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main({kind!r})"],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, variant: str) -> None:
        if variant in self._asked or self._process.stdin is None:
            return
        self._asked.add(variant)
        with suppress(BrokenPipeError):
            self._process.stdin.write(variant + "\n")
            self._process.stdin.flush()

    def finish(self) -> None:
        if not self._asked:
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=_LIMIT_S)
        self._process.kill()


def start(device: torch.device, caches: dict[str, str]) -> None:
    """Start a process for each kind whose cache (``caches``: kind to folder) is still empty, on a GPU."""
    properties = torch.cuda.get_device_properties(device)
    arch = f"sm_{properties.major}{properties.minor}a"
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "CUTE_DSL_ARCH": arch,
        "FLASH_ATTENTION_ARCH": arch,
        "FLASH_ATTENTION_NUM_SMS": str(properties.multi_processor_count),
        "QUACK_ARCH": f"{properties.major}{properties.minor}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    for kind, folder in caches.items():
        if kind not in _processes and not any(cache_dir(folder).rglob("*.o")):
            _processes[kind] = _Compiler(kind, environment)


def compiled_apart(kind: str, **variant: Any) -> bool:
    """Within ``compile_only``: whether a process compiles the variant, so that the caller need not."""
    process = _processes.get(kind)
    if process is None or not compiling():
        return False
    process.ask(json.dumps(variant))
    return True


def finish() -> None:
    """Wait for all that was asked for. What could not be compiled, its first call here does, or says why not."""
    while _processes:
        _processes.popitem()[1].finish()


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
