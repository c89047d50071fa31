"""Choosing the CPU backend: kernels if they were built, the reference if not."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from quire.ops.backend import Ops

logger = logging.getLogger(__name__)

INSTRUCTIONS = "QUIRE_CPU_INSTRUCTIONS"
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def load(threads: int | None = None, int8_inputs: bool = False) -> Ops:
    """The CPU ops on ``threads`` threads (default: the cores this process may use). ``int8_inputs``: see ``CpuOps``.

    ``$QUIRE_CPU_INSTRUCTIONS`` holds them to an instruction set below the processor's best: avx512_vnni, avx512,
    avx_vnni, avx2 or portable. Raises ``ValueError`` when there are no such kernels for this processor.
    """
    try:
        from quire.ops.cpu.ops import CpuOps
    except ImportError as error:
        logger.warning("The CPU kernels are not built (%s): running on plain torch, several times slower.", error)
        from quire.ops.reference import ReferenceOps

        return ReferenceOps()
    instruction_set = os.environ.get(INSTRUCTIONS) or None
    return CpuOps(default_threads() if threads is None else threads, instruction_set, int8_inputs)


def default_threads() -> int:
    """Cores this process may use: its affinity, or a container's CPU quota if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_LIMIT.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return cores
