"""Building a runner from a config: read headers, plan memory, load weights, make pages."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quire.config.engine import EngineConfig
from quire.engine.plan import LoadedRunner
from quire.model.config_reader import UnsupportedVariant
from quire.model.dummy import DummyLoader, stored_dtype
from quire.model.fallback import FallbackLoader
from quire.model.families import describe
from quire.model.loader import Loader
from quire.model.rope import check_scaling
from quire.model.spec import DecoderSpec
from quire.ops.backend import Ops, backend
from quire.ops.cpu.load import default_threads
from quire.runtime.devices import DeviceFacts, device_of
from quire.runtime.memory import MemoryPlan, plan_memory
from quire.runtime.runner import ModelRunner
from quire.weights.checkpoint import Checkpoint, open_checkpoint
from quire.weights.sources import locate

if TYPE_CHECKING:
    from quire.runtime.device_runner import DeviceRunner


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
    loader: Loader | FallbackLoader | DummyLoader
    device: DeviceFacts
    memory: MemoryPlan
    threads: int
    ops: Ops


def make_blueprint(config: EngineConfig, ops: Ops | None = None) -> Blueprint:
    """Raises ``CheckpointError`` or ``MemoryTooSmall`` before anything large is read. ``ops``: if not the device's."""
    threads = config.threads or default_threads()
    torch.set_num_threads(threads)
    device = device_of(config)
    checkpoint = open_checkpoint(locate(config))
    ops = ops or _ops(config, checkpoint, device, threads)
    loader = _loader(config, checkpoint, ops)
    kv_dtype = device.kv_dtype(config)
    weights = loader.check()
    memory = plan_memory(loader.spec, config, weights.nbytes, device, kv_dtype.itemsize, weights.widest)
    return Blueprint(loader.spec, loader, device, memory, threads, ops)


def build_runner(config: EngineConfig, progress: Callable[[str], None] = lambda phase: None) -> LoadedRunner:
    """A runner that is ready for its first step."""
    ledger = Ledger(progress)
    with ledger.phase("reading headers"):
        b = make_blueprint(config)
    with ledger.phase("loading weights"):
        decoder = b.loader.decoder(b.threads, b.memory.max_model_len)
    facts = (b.memory, b.device.slots(config), b.device.step_tokens(config), b.device.kv_dtype(config))
    _return_free_memory()
    runner: ModelRunner | DeviceRunner
    with ledger.phase("making pages"):
        if b.device.kind == "cpu":
            runner = ModelRunner(decoder, b.ops, *facts)
        else:
            from quire.runtime.device_runner import DeviceRunner

            runner = DeviceRunner(decoder, b.ops, *facts)
    if not isinstance(runner, ModelRunner):
        with ledger.phase("compiling"):
            runner.compile()
        with ledger.phase("capturing"):
            runner.capture()
    runner.phases = ledger.phases
    runner.model_bytes = decoder.nbytes
    return runner


def _return_free_memory() -> None:
    """What loading used and freed goes back to the system (glibc keeps it otherwise)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _ops(config: EngineConfig, checkpoint: Checkpoint, device: DeviceFacts, threads: int) -> Ops:
    if device.kind != "cpu":
        return backend("triton", dtype=device.dtype)
    # GGUF's formats were made, and their quality is known, for products with inputs of 8 bits.
    auto = "float32" if checkpoint.path.is_dir() else "int8"
    activations = auto if config.cpu_activations == "auto" else config.cpu_activations
    return backend("cpu", threads=threads, int8_inputs=activations == "int8")


def _loader(config: EngineConfig, checkpoint: Checkpoint, ops: Ops) -> Loader | FallbackLoader | DummyLoader:
    """The loader of the architecture's family, or the one that goes through Transformers."""
    try:
        spec, names = describe(checkpoint.config)
    except UnsupportedVariant:
        if config.load_format == "dummy" or not checkpoint.path.is_dir():
            raise
        return FallbackLoader(checkpoint, ops, config.quantization)
    for rope in {layer.attention.rope for layer in spec.layers if layer.attention.rope}:
        check_scaling(rope)
    if config.load_format == "dummy":
        return DummyLoader(spec, names, ops, config.quantization, stored_dtype(checkpoint.config))
    return Loader(checkpoint, spec, names, ops, config.quantization)
