"""How much memory a model takes, worked out from its config and tensor headers before anything is loaded."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.config.engine import EngineConfig
from quire.config.values import memory_bytes
from quire.engine.plan import KVGroup
from quire.model.decoder import kv_windows
from quire.model.spec import DecoderSpec

MIB = 1 << 20
# What auto gives to pages on a CPU: prompts of a few users at once, on a machine that has other work too.
_AUTO_KV_BYTES = 384 * MIB
_PROCESS_BYTES = 330 * MIB  # interpreter, torch and the front end, before any model
_LOGIT_ROWS = 64


class MemoryTooSmall(ValueError):
    """The model, or one request of the asked length, does not fit; the message has the numbers and the cure."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each use, the context that fits, and how many requests of that length fit at once."""

    weights: int
    kv: int
    workspace: int
    process: int
    total: int | None
    max_model_len: int
    page_size: int
    groups: tuple[KVGroup, ...]
    chunk: int

    @property
    def concurrency(self) -> float:
        """Requests of ``max_model_len`` tokens that fit at once."""
        return min(
            g.num_pages / pages_for(self.max_model_len, self.page_size, g.window, self.chunk) for g in self.groups
        )

    def rows(self) -> list[tuple[str, int]]:
        """Names and bytes, for a table."""
        return [
            ("weights", self.weights),
            ("keys and values", self.kv),
            ("work space", self.workspace),
            ("processes", self.process),
            ("sum", self.weights + self.kv + self.workspace + self.process),
        ]


def pages_for(tokens: int, page_size: int, window: int | None, chunk: int) -> int:
    """Pages that one request of ``tokens`` holds at most in a group: a window needs itself and the chunk on top."""
    held = tokens if window is None else min(tokens, window + chunk + page_size)
    return -(-held // page_size)


def page_bytes(spec: DecoderSpec, window: int | None, page_size: int, item_bytes: int) -> int:
    """Bytes of one page of a group: keys and values of all its layers."""
    layers = [layer.attention for layer in spec.layers if layer.attention.window == window]
    return sum(2 * a.kv_heads * a.head_dim for a in layers) * page_size * item_bytes


def plan_memory(
    spec: DecoderSpec, config: EngineConfig, weights: int, page_size: int, kv_item_bytes: int, device_bytes: int
) -> MemoryPlan:
    """Fit context and pages into the configured memory. Raises ``MemoryTooSmall``."""
    wanted_len = config.max_model_len or spec.max_position
    if wanted_len > spec.max_position:
        raise MemoryTooSmall(
            f"--max-model-len {wanted_len} is beyond the model's {spec.max_position} positions; choose at most that."
        )
    windows = kv_windows(spec)
    chunk = config.max_num_batched_tokens
    workspace = _workspace_bytes(spec, config)
    total = memory_bytes(config.memory, device_bytes)
    per_page = [page_bytes(spec, w, page_size, kv_item_bytes) for w in windows]

    def request_bytes(tokens: int) -> int:
        return sum(pages_for(tokens, page_size, w, chunk) * b for w, b in zip(windows, per_page, strict=True))

    room = (total or device_bytes) - weights - workspace - _PROCESS_BYTES
    max_len = wanted_len
    if request_bytes(max_len) > room:
        if config.max_model_len is not None or room <= 0:
            raise MemoryTooSmall(_too_small(request_bytes(max_len), weights, workspace, total or device_bytes))
        max_len = _longest(request_bytes, wanted_len, room, page_size)
    if max_len < min(wanted_len, 2 * page_size):
        raise MemoryTooSmall(_too_small(request_bytes(wanted_len), weights, workspace, total or device_bytes))
    most = request_bytes(max_len) * config.max_num_seqs
    kv = min(most, room) if total is not None else min(most, room, max(_AUTO_KV_BYTES, request_bytes(max_len)))
    groups = _split_pages(kv, max_len, windows, per_page, page_size, chunk, config.max_num_seqs)
    kv = sum(g.num_pages * b for g, b in zip(groups, per_page, strict=True))
    return MemoryPlan(weights, kv, workspace, _PROCESS_BYTES, total, max_len, page_size, groups, chunk)


def device_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its cgroup's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _split_pages(
    kv: int,
    max_len: int,
    windows: Sequence[int | None],
    per_page: Sequence[int],
    page_size: int,
    chunk: int,
    max_num_seqs: int,
) -> tuple[KVGroup, ...]:
    """Give each group what one request of full length holds, and share out the rest.

    Short requests hold as many pages in every group, so the rest is split into equal numbers of pages; a window group
    needs no more than ``max_num_seqs`` requests can hold.
    """
    one = [pages_for(max_len, page_size, w, chunk) for w in windows]
    counts = list(one)
    open_groups = list(range(len(windows)))
    while open_groups:
        rest = kv - sum(c * b for c, b in zip(counts, per_page, strict=True))
        more = rest // sum(per_page[i] for i in open_groups)
        full = [i for i in open_groups if counts[i] + more >= one[i] * max_num_seqs]
        for i in full or open_groups:
            counts[i] = one[i] * max_num_seqs if full else counts[i] + more
        open_groups = [i for i in open_groups if i not in full] if full else []
    return tuple(KVGroup(w, c) for w, c in zip(windows, counts, strict=True))


def _workspace_bytes(spec: DecoderSpec, config: EngineConfig) -> int:
    widest = max(2 * layer.mlp.size for layer in spec.layers)
    rows = min(config.max_num_seqs, _LOGIT_ROWS)
    return 4 * (config.max_num_batched_tokens * (2 * widest + 4 * spec.hidden_size) + rows * spec.vocab_size)


def _longest(request_bytes: Callable[[int], int], wanted: int, room: int, page_size: int) -> int:
    """The most whole pages of tokens, up to ``wanted``, whose request fits in ``room`` (0 when none does)."""
    pages = bisect_right(range(wanted // page_size + 1), room, key=lambda p: request_bytes(p * page_size)) - 1
    return max(0, pages) * page_size


def _too_small(request: int, weights: int, workspace: int, total: int) -> str:
    return (
        f"The model needs {weights / MIB:.0f} MiB for weights, {workspace / MIB:.0f} MiB of work space and "
        f"{request / MIB:.0f} MiB for one request of full length, beyond the {total / MIB:.0f} MiB given: "
        "raise --memory or lower --max-model-len."
    )
