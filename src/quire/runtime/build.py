"""Building a runner from a config: read headers, plan memory, load weights, make pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from quire.config.engine import EngineConfig
from quire.model.fallback import FallbackLoader
from quire.model.families import FAMILIES, family_of
from quire.model.loader import Loader
from quire.model.spec import DecoderSpec
from quire.ops.backend import Ops, backend
from quire.ops.cpu.load import default_threads
from quire.runtime.memory import MemoryPlan, device_memory, plan_memory
from quire.runtime.runner import ModelRunner
from quire.weights.checkpoint import Checkpoint, open_checkpoint
from quire.weights.sources import locate

CPU_PAGE_SIZE = 16
_KV_DTYPES = {"auto": torch.float32, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Ledger:
    """Names the phases of start-up and adds up their seconds."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.phases: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._progress(name)
        start = time.perf_counter()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Blueprint:
    """A checked checkpoint with its spec and memory plan; no weights read yet."""

    spec: DecoderSpec
    loader: Loader | FallbackLoader
    memory: MemoryPlan
    kv_dtype: torch.dtype
    threads: int
    ops: Ops


def make_blueprint(config: EngineConfig) -> Blueprint:
    """Raises ``CheckpointError`` or ``MemoryTooSmall`` before anything large is read."""
    threads = config.threads or default_threads()
    torch.set_num_threads(threads)
    checkpoint = open_checkpoint(locate(config))
    ops = backend("cpu", threads=threads)
    loader = _loader(checkpoint, ops)
    spec = loader.spec
    weight_bytes = loader.check()
    kv_dtype = _KV_DTYPES[config.kv_cache_dtype]
    memory = plan_memory(
        spec, config, weight_bytes, config.page_size or CPU_PAGE_SIZE, kv_dtype.itemsize, device_memory()
    )
    return Blueprint(spec, loader, memory, kv_dtype, threads, ops)


def build_runner(config: EngineConfig, progress: Callable[[str], None] = lambda phase: None) -> ModelRunner:
    """A runner that is ready for its first step."""
    ledger = Ledger(progress)
    with ledger.phase("reading headers"):
        b = make_blueprint(config)
    with ledger.phase("loading weights"):
        decoder = b.loader.decoder(b.threads, b.memory.max_model_len)
    with ledger.phase("making pages"):
        runner = ModelRunner(decoder, b.ops, b.memory, config.max_num_seqs, b.kv_dtype)
    runner.phases = ledger.phases
    runner.model_bytes = decoder.nbytes
    return runner


def _loader(checkpoint: Checkpoint, ops: Ops) -> Loader | FallbackLoader:
    """The loader of the architecture's family, or the one that goes through Transformers."""
    if checkpoint.config.get("model_type") not in FAMILIES and checkpoint.path.is_dir():
        return FallbackLoader(checkpoint.path, checkpoint.config, ops)
    family = family_of(checkpoint.config)
    return Loader(checkpoint, family.spec(checkpoint.config), family.WEIGHTS, ops)
