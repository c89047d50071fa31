"""How kernels are launched: each may start before the one ahead of it ends, or may only be compiled.

Programmatic dependent launch (Hopper and newer): a kernel's programs come to the multiprocessors while those of the
kernel before still run, and wait for its results where they need them. So every kernel calls ``inputs_ready`` in every
program, before it reads or writes anything but weights; what it does before that overlaps with its predecessor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import driver

_compiled: ContextVar[dict[int, Any] | None] = ContextVar("compiled", default=None)  # within ``compile_only``


@triton.jit
def inputs_ready(PDL: tl.constexpr):
    """Lets the next kernel's programs come, then waits for all of the kernel before."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@cache
def dependent_launch() -> bool:
    """Whether the GPU has programmatic dependent launch."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """``kernel[grid](*args, **options)``; only compiles it within ``compile_only``. Gives the kernel its ``PDL``."""
    options["PDL"] = dependent_launch()
    if options["PDL"]:
        options["launch_pdl"] = True
    compiled = _compiled.get()
    if compiled is None:
        kernel[grid](*args, **options)
        return
    future = kernel.warmup(*args, grid=grid, **options)
    if future is not None:  # in the interpreter there is nothing to compile
        compiled[id(future)] = future


def compiling() -> bool:
    """Whether this is within ``compile_only``."""
    return _compiled.get() is not None


@contextmanager
def compile_only() -> Iterator[None]:
    """Within it launches compile and do no more, all at the same time; at its end all are done and loaded.

    Triton holds the interpreter's lock for a fifth of a compilation, so threads do.
    """
    compiled: dict[int, Any] = {}  # kernels, or futures of them
    before = _compiled.set(compiled)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            with triton.AsyncCompileMode(pool):
                yield
            kernels = [each.result() if hasattr(each, "result") else each for each in compiled.values()]
            list(pool.map(_compile_launcher, {_launcher_of(kernel): kernel for kernel in kernels}.values()))
        for kernel in kernels:
            _ = kernel.run  # loads it, when first asked for
    finally:
        _compiled.reset(before)


def _launcher_of(kernel: Any) -> tuple[object, ...]:
    """What Triton's launcher, a module in C, is made from; several kernels have one."""
    return (*kernel.src.signature.values(), str(getattr(kernel.metadata, "tensordesc_meta", None)))


def _compile_launcher(kernel: Any) -> None:
    """For the files it leaves. What it returns is of no use: threads may get each other's, for all bear one name."""
    driver.active.launcher_cls(kernel.src, kernel.metadata)
