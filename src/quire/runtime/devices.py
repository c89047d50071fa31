"""What kinds of device there are, how much they hold, and what they want where the config says nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from quire.config.engine import EngineConfig
from quire.config.options import ConfigError

MIB = 1 << 20
_LARGE_GPU = 60 << 30  # bytes; has room for keys and values of many requests
_DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class DeviceFacts:
    """``memory``: bytes that may be used. ``process``: bytes in use before any model. ``auto_kv``: what pages get when
    the user leaves it to us, and a request that needs more finds spare ones; ``None``: all that is left."""

    kind: str
    memory: int
    process: int
    auto_kv: int | None
    dtype: torch.dtype
    default_page_size: int
    default_slots: int
    default_step_tokens: int
    latent_once: bool  # latent attention's vectors, keys and values in one, are kept once

    @property
    def activation_bytes(self) -> int:
        return self.dtype.itemsize

    def slots(self, config: EngineConfig) -> int:
        return config.max_num_seqs or self.default_slots

    def step_tokens(self, config: EngineConfig) -> int:
        return config.max_num_batched_tokens or self.default_step_tokens

    def pages(self, config: EngineConfig) -> int:
        """Tokens in a page."""
        return config.page_size or self.default_page_size

    def kv_dtype(self, config: EngineConfig) -> torch.dtype:
        return self.dtype if config.kv_cache_dtype == "auto" else _DTYPES[config.kv_cache_dtype]


def device_of(config: EngineConfig) -> DeviceFacts:
    """The device that the config asks for. Raises ``ConfigError`` when it isn't there."""
    there = config.device != "cpu" and torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError("device", "--device cuda: no NVIDIA GPU can be used here; try nvidia-smi, or --device cpu.")
    return _gpu(config) if there else _cpu(config)


def _cpu(config: EngineConfig) -> DeviceFacts:
    if config.kv_cache_dtype == "fp8":
        raise ConfigError("kv_cache_dtype", "--kv-cache-dtype fp8 needs a GPU; on a CPU use float16.")
    return DeviceFacts(
        kind="cpu",
        memory=_host_memory(),
        process=330 * MIB,  # interpreter, torch and the front end
        auto_kv=256 * MIB,  # prompts of a few users at once, on a machine that has other work too
        dtype=torch.float32,
        default_page_size=16,
        default_slots=64,
        default_step_tokens=512,
        latent_once=False,
    )


def _gpu(config: EngineConfig) -> DeviceFacts:
    free, total = torch.cuda.mem_get_info()
    return DeviceFacts(
        kind="cuda",
        memory=total,
        process=total - free + total // 20,  # context and other programs; libraries, graphs and fragments of ours
        auto_kv=None,
        dtype=_DTYPES.get(config.dtype, torch.bfloat16),
        default_page_size=128,  # FlashAttention-4's best: benchmarks/results
        default_slots=1024 if total > _LARGE_GPU else 256,
        default_step_tokens=8192,
        latent_once=True,
    )


def _host_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its cgroup's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total
