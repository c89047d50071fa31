"""FlashAttention-4 and the products of ``quack``, on which it depends: import, and where compiled kernels stay."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from threading import Lock, Thread
from types import ModuleType
from typing import Any

import torch

from quire.config.paths import cache_dir
from quire.ops.triton import ahead

log = logging.getLogger("quire.ops")

# Not below /tmp, as by default: what is found there is run.
_CACHES = {"FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash-attention", "QUACK_CACHE_DIR": "quack"}


@cache
def hopper(device: torch.device) -> bool:
    """Or newer: a GPU that these kernels are made for."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10, 11)


def start_early(device: torch.device) -> None:
    """Begin the imports, which take seconds, beside whatever comes, and the compilers."""
    ahead.start(device)
    Thread(target=lambda: (flash_attention_function(), gated_products()), daemon=True).start()


_QUACK = "0.6."  # whose epilogues are known; their interface is not a settled one
_BARE = ("quack", "quack.blockscaled")
_import = Lock()


def flash_attention_function() -> Callable[..., Any] | None:
    """``flash_attn_varlen_func`` of FlashAttention-4, or None where it cannot be imported."""
    with _import:
        return _flash_attention_function()


def gated_products() -> Callable[[str], Any] | None:
    """Makes the product of a gated activation, by its name in ``quack``. None where that cannot be imported."""
    with _import:
        return _gated_products()


@cache
def _flash_attention_function() -> Callable[..., Any] | None:
    _settle_caches()
    try:
        with bare_quack():
            from flash_attn.cute import flash_attn_varlen_func
    except ImportError as error:
        if not (error.name or "").startswith("flash_attn"):  # it is installed
            log.warning("FlashAttention-4 cannot be imported, so prompts take longer: %s", error)
        return None
    return flash_attn_varlen_func  # type: ignore[no-any-return]


@cache
def _gated_products() -> Callable[[str], Any] | None:
    _settle_caches()
    try:
        if not version("quack-kernels").startswith(_QUACK):
            log.warning("quack-kernels is not of version %sx, so prompts take longer.", _QUACK)
            return None
        with bare_quack():
            from quack.epilogue.library import linear_act_mod
    except PackageNotFoundError:
        return None
    except ImportError as error:
        log.warning("The fused products of quack cannot be imported, so prompts take longer: %s", error)
        return None
    return cache(lambda name: linear_act_mod(name, gated=True, has_c=False, has_rowvec=False, has_colvec=False))


def _settle_caches() -> None:
    """Both read these when they are imported."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")  # on disk: seconds a variant, once
    for variable, name in _CACHES.items():
        os.environ.setdefault(variable, str(cache_dir(name)))


@contextmanager
def bare_quack() -> Iterator[None]:
    """Within it ``quack`` and ``quack.blockscaled`` are packages of modules alone, as ``quack.dsl`` sets them up.

    Spares an import most of its seconds: the packages themselves import all of their kernels, and ``torch._dynamo``.
    """
    bare = [name for name in _BARE if name not in sys.modules]
    try:
        for name in bare:
            if (package := _package(name)) is None:
                break
            sys.modules[name] = package
        else:
            importlib.import_module("quack.dsl")
        yield
    finally:
        for name in bare:
            sys.modules.pop(name, None)


@cache
def _package(name: str) -> ModuleType | None:
    found = importlib.util.find_spec(name)
    return importlib.util.module_from_spec(found) if found else None
