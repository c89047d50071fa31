"""The engines that are compared: how each is started, and the model file it gets."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from quire.cli.child import ServerProcess, free_port

SLOTS = 16
SLOT_TOKENS = 1280  # room for the longest request of w1..w4
LLAMA_TYPES = ("Q4_0", "F16")


@dataclass(frozen=True)
class Engine:
    """``command`` has {port} where the port goes."""

    name: str
    command: str

    def process(self) -> ServerProcess:
        port = free_port()
        return ServerProcess(shlex.split(self.command.format(port=port)), port, {"QUIRE_API_KEY": ""})


def llama_instructions(binaries: Path) -> list[str]:
    """What llama.cpp's kernels were compiled for, as its own library says."""
    kernels = ctypes.CDLL(str(binaries / "libggml-cpu.so"))
    names = ("avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512", "avx512_vbmi", "avx512_vnni", "avx512_bf16")
    return [name for name in names if getattr(kernels, f"ggml_cpu_has_{name}")()]


def quire(model: Path) -> list[Engine]:
    """Quire as ``quire serve`` starts it, without any tuning flag; and with activations as they are."""
    command = f"{sys.executable} -m quire serve {shlex.quote(str(model))} --port {{port}}"
    return [Engine("quire", command), Engine("quire float32", f"{command} --cpu-activations float32")]


def llama_engines(binaries: Path, model: Path, folder: Path) -> list[Engine]:
    """llama.cpp's server on the file as it is, and on the conversions in which it is fastest."""
    files = {"as shipped": model}
    for kind in LLAMA_TYPES:
        files[kind] = _converted(binaries, model, folder / f"{model.stem}.{kind}.gguf", kind)
    return [Engine(f"llama.cpp {name}", _llama_command(binaries, file)) for name, file in files.items()]


def _llama_command(binaries: Path, file: Path) -> str:
    cores = len(os.sched_getaffinity(0))
    flags = f"--parallel {SLOTS} --ctx-size {SLOTS * SLOT_TOKENS} --threads {cores} --host 127.0.0.1 --port {{port}}"
    return f"{shlex.quote(str(binaries / 'llama-server'))} --model {shlex.quote(str(file))} {flags}"


def _converted(binaries: Path, model: Path, target: Path, kind: str) -> Path:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        command = [str(part) for part in (binaries / "llama-quantize", "--allow-requantize", model, partial, kind)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        partial.rename(target)
    return target
