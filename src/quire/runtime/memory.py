"""How much memory a model takes, worked out from its config and tensor headers before anything is loaded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quire.config.engine import EngineConfig
from quire.config.values import memory_bytes
from quire.engine.plan import KVGroup
from quire.model.decoder import kv_windows
from quire.model.spec import DecoderSpec, DeltaSpec
from quire.runtime.devices import DeviceFacts

MIB = 1 << 20
_LOGIT_ROWS = 64
_STATE_PAGE_SIZE = 256  # a state is as large as the keys and values of so many tokens, or larger


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


def page_bytes(
    spec: DecoderSpec, window: int | None, page_size: int, item_bytes: int, latent_once: bool = False
) -> int:
    """Bytes of one page of a group: keys and values of all its layers."""
    layers = [layer.attention for layer in spec.layers if layer.attention.window == window]
    return sum(a.page_bytes(page_size, item_bytes, latent_once) for a in layers)


def plan_memory(
    spec: DecoderSpec, config: EngineConfig, weights: int, device: DeviceFacts, kv_item_bytes: int, widest: int = 0
) -> MemoryPlan:
    """Fit context and pages into the configured memory. Raises ``MemoryTooSmall``.

    ``widest``: numbers in the largest of the weights that are narrower than activations.
    """
    slots, chunk, page_size = device.slots(config), device.step_tokens(config), device.pages(config)
    if config.page_size is None and any(isinstance(layer.attention, DeltaSpec) for layer in spec.layers):
        page_size = max(page_size, _STATE_PAGE_SIZE)
    wanted_len = config.max_model_len or spec.max_position
    reach = max(spec.max_position, spec.max_stretched_position)
    if wanted_len > reach:
        raise MemoryTooSmall(
            f"--max-model-len {wanted_len} is beyond the model's {reach} positions; choose at most that."
        )
    windows = kv_windows(spec)
    workspace = _workspace_bytes(spec, slots, chunk, device)
    if device.kind == "cuda":
        workspace += _state_bytes(slots, wanted_len, page_size, len(windows))
        # Products of many rows expand narrow weights; captured steps have a buffer for that of their own.
        workspace += 2 * device.activation_bytes * widest
    total = memory_bytes(config.memory, device.memory)
    per_page = [page_bytes(spec, w, page_size, kv_item_bytes, device.latent_once) for w in windows]

    def request_bytes(tokens: int) -> int:
        return sum(pages_for(tokens, page_size, w, chunk) * b for w, b in zip(windows, per_page, strict=True))

    room = (total or device.memory) - weights - workspace - device.process
    max_len = wanted_len
    if request_bytes(max_len) > room:
        if config.max_model_len is not None or room <= 0:
            raise MemoryTooSmall(
                _too_small(request_bytes(max_len), weights, workspace, device.process, total or device.memory)
            )
        max_len = _longest(request_bytes, wanted_len, room, page_size)
    if max_len < min(wanted_len, 2 * page_size):
        raise MemoryTooSmall(
            _too_small(request_bytes(wanted_len), weights, workspace, device.process, total or device.memory)
        )
    most = request_bytes(max_len) * slots
    auto = room if device.auto_kv is None else max(device.auto_kv, request_bytes(max_len))
    kv = min(most, room, auto if total is None else room)
    counts = _split_pages(kv, max_len, windows, per_page, page_size, chunk, slots)
    kv = sum(count * b for count, b in zip(counts, per_page, strict=True))
    with_states = {a.window for layer in spec.layers if isinstance(a := layer.attention, DeltaSpec)}
    kept = 1.0 if total is not None or device.auto_kv is None else min(1.0, device.auto_kv / kv)
    groups = tuple(
        KVGroup(w, count, w in with_states, spare=int(count * (1 - kept)))
        for w, count in zip(windows, counts, strict=True)
    )
    return MemoryPlan(weights, kv, workspace, device.process, total, max_len, page_size, groups, chunk)


def _split_pages(
    kv: int,
    max_len: int,
    windows: Sequence[int | None],
    per_page: Sequence[int],
    page_size: int,
    chunk: int,
    max_num_seqs: int,
) -> list[int]:
    """Pages of each group: give each what one request of full length holds, and share out the rest.

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
    return counts


def _workspace_bytes(spec: DecoderSpec, slots: int, chunk: int, device: DeviceFacts) -> int:
    item_bytes = device.activation_bytes
    widest = max(2 * layer.mlp.size for layer in spec.layers)
    layer = item_bytes * chunk * (2 * widest + 4 * spec.hidden_size)
    if device.kind == "cpu":
        return layer + 4 * min(slots, _LOGIT_ROWS) * spec.vocab_size
    # Graphs have memory of their own. Logits: as they come, and in float32 where a request edits them.
    return 2 * layer + (item_bytes + 4) * slots * spec.vocab_size


def _state_bytes(slots: int, max_len: int, page_size: int, groups: int) -> int:
    """Of ``DeviceState``: tokens, and page tables of slots and of a step's rows."""
    return 4 * slots * (max_len + 1 + 2 * groups * -(-max_len // page_size))


def _longest(request_bytes: Callable[[int], int], wanted: int, room: int, page_size: int) -> int:
    """The most whole pages of tokens, up to ``wanted``, whose request fits in ``room`` (0 when none does)."""
    pages = bisect_right(range(wanted // page_size + 1), room, key=lambda p: request_bytes(p * page_size)) - 1
    return max(0, pages) * page_size


def _too_small(request: int, weights: int, workspace: int, process: int, total: int) -> str:
    return (
        f"The model needs {weights / MIB:.0f} MiB for weights, {workspace / MIB:.0f} MiB of work space, "
        f"{process / MIB:.0f} MiB for processes and {request / MIB:.0f} MiB for one request of full length, beyond the "
        f"{total / MIB:.0f} MiB given: raise --memory or lower --max-model-len."
    )
