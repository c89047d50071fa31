"""What the scheduler tells the runner for one step: differences only, no tensors.

The runner keeps, for each slot, its token ids, page tables, counters and sampling parameters. A plan is applied
in the order ``release``, ``admit``, ``pages``, ``work``.

A runner may be ``ahead``: it takes the plan of the next step before the results of the last one are known, and keeps
the tokens sampled meanwhile to itself. A request that turns out to have ended is then computed once more, in vain.

When ``submit`` raises, the engine finds the guilty request: it runs the same work again, one item a plan. So that this
is safe:

- ``release``, ``admit`` and ``pages`` set a slot's state absolutely and may come a second time. ``admit`` replaces
  whatever the slot held. A plan may have no ``work``.
- A slot's counter and tokens advance last: when ``submit`` raises, no slot of that plan has advanced. Writing a
  token's keys and values again, into the same page, changes nothing.
- A slot whose result has an ``error`` need not have advanced: the engine releases it. A runner that is ahead may
  already have been asked for the slot's next token, and computes whatever it likes.

Slots of one plan may share pages that this same plan fills: each layer writes the keys and values of all work before
its attention reads any. The sharer comes later in ``work``. Table entries of positions out of the window were never
granted or are stale: they must not be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from quire.engine.messages import TokenLogprobs
from quire.params import SamplingParams


class SlotAdmit(msgspec.Struct, array_like=True):
    """Fill a slot with a request (again, after a preemption: then ``token_ids`` holds its output too)."""

    slot: int
    token_ids: list[int]  # prompt, then tokens generated before a preemption
    prompt_len: int
    computed: int  # leading tokens whose keys and values stand in cached pages
    params: SamplingParams
    seed: int
    stop_token_ids: list[int]  # ends of sequence, for min_tokens
    bad_words_token_ids: list[list[int]]


class PageGrant(msgspec.Struct, array_like=True):
    """Page ids to write into a slot's table of ``group``, from table index ``start`` on."""

    slot: int
    group: int
    start: int
    pages: list[int]


class SlotWork(msgspec.Struct, array_like=True):
    """Compute the next ``count`` tokens of the slot; ``sample`` when that reaches its last known token.

    The runner appends the sampled token to the slot's tokens.
    """

    slot: int
    count: int
    sample: bool


class StepPlan(msgspec.Struct):
    release: list[int] = []
    admit: list[SlotAdmit] = []
    pages: list[PageGrant] = []
    work: list[SlotWork] = []


class SlotResult(msgspec.Struct, array_like=True):
    """What a step gave for one slot that sampled, computed prompt logprobs, or failed (``error``)."""

    slot: int
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the prompt positions this step predicted, in order
    error: str | None = None


class KVGroup(msgspec.Struct, frozen=True):
    """Layers that share page tables: all full-attention layers, or all with the same sliding ``window`` (tokens).

    ``states``: pages hold states, so a sequence cannot begin in the step that fills the last page before it.
    ``spare``: as ``kv.pages.PagePool``.
    """

    window: int | None
    num_pages: int
    states: bool = False
    spare: int = 0


class Flight(Protocol):
    """A step that was submitted."""

    def land(self) -> list[SlotResult]:
        """Wait for the step's end. Raises when the device failed, which nothing but a restart cures."""
        ...


@dataclass(frozen=True)
class Landed:
    """A step that was over when ``submit`` returned."""

    results: list[SlotResult]

    def land(self) -> list[SlotResult]:
        return self.results


class Runner(Protocol):
    """One model on one device (or a group of devices), as the engine sees it."""

    ahead: int  # steps that may be in flight when the next one is submitted
    slots: int
    step_tokens: int  # most tokens in one step
    max_model_len: int
    vocab_size: int
    page_size: int
    groups: list[KVGroup]

    def submit(self, plan: StepPlan) -> Flight:
        """Begin a step. Raises only for a fault of the whole step; a fault of one slot is in its result."""
        ...


class LoadedRunner(Runner, Protocol):
    """A runner with the facts of its start-up, as a factory builds it."""

    phases: dict[str, float]  # name -> seconds, in order
    model_bytes: int
    kv_bytes: int
