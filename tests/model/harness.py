"""Runs a decoder as the runner does, on pages scattered at random, and returns all logits."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch

from quire.config.engine import EngineConfig
from quire.engine.plan import KVGroup, PageGrant, SlotAdmit, SlotWork
from quire.model.decoder import Step, kv_windows
from quire.model.pages import new_pages
from quire.ops.backend import AttentionStep, Ops
from quire.params import SamplingParams
from quire.runtime.build import make_blueprint
from quire.runtime.state import SlotState

PAGE = 16
PAGES = 24


def moved(step: AttentionStep, device: torch.device) -> AttentionStep:
    names = ("positions", "slots", "query_start", "context_len", "block_table")
    return replace(step, **{name: getattr(step, name).to(device) for name in names})


class Harness:
    """``sequences`` slots over one set of pages; each call of ``step`` computes the next tokens of some of them."""

    def __init__(
        self, model: Path, sequences: list[list[int]], quantization: str | None = None, ops: Ops | None = None
    ) -> None:
        """``ops``: if not the CPU's."""
        config = EngineConfig(
            model=str(model),
            device="cpu",
            max_model_len=128,
            max_num_seqs=4,
            threads=1,
            quantization=quantization,
            cpu_activations="float32",
        )
        b = make_blueprint(config, ops)
        self.decoder = b.loader.decoder(1, 128)
        self._ops = b.ops
        windows = kv_windows(b.spec)
        groups = [KVGroup(w, PAGES) for w in windows]
        self._state = SlotState(len(sequences), 128, PAGE, groups)
        self._pages = [
            new_pages(a, b.ops, PAGES, PAGE, b.ops.dtype) for a in (layer.attention for layer in b.spec.layers)
        ]
        free = random.Random(0).sample(range(PAGES), PAGES)
        for slot, tokens in enumerate(sequences):
            self._state.admit(SlotAdmit(slot, tokens, len(tokens), 0, SamplingParams(), 0, [], []))
            need = -(-len(tokens) // PAGE)
            table, free = free[:need], free[need:]
            for group in range(len(groups)):
                self._state.grant(PageGrant(slot, group, 0, table))

    def share(self, source: int, target: int, pages: int) -> None:
        """Give ``target`` the first pages of ``source`` as a prefix hit does."""
        for group, table in enumerate(self._state._tables):
            self._state.grant(PageGrant(target, group, 0, table[source, :pages].tolist()))
        self._state.computed[target] = pages * PAGE

    def recorded(self, slots: list[int]) -> list[torch.Tensor] | None:
        """Logits ``[1, vocab]`` of each slot's next token from a step's replay; ``None`` if it can't be recorded."""
        work = [SlotWork(slot, 1, False) for slot in slots]
        with torch.inference_mode():
            step = self._step(work)
            replay = self._ops.record(lambda: self.decoder.logits(self.decoder.forward(step, self._pages)))
            logits = None if replay is None else replay()
        self._state.advance(work)
        return None if logits is None else list(logits.split(1))

    def last(self, counts: dict[int, int]) -> list[torch.Tensor]:
        """As ``step``, of each slot's last token alone, the only ones whose states are asked for."""
        work = [SlotWork(slot, count, False) for slot, count in counts.items()]
        with torch.inference_mode():
            step = self._step(work)
            ends = step.attention[0].query_start[1:].long() - 1
            logits = self.decoder.logits(self.decoder.forward(replace(step, wanted=ends), self._pages))
        self._state.advance(work)
        return list(logits.split(1))

    def _step(self, work: list[SlotWork]) -> Step:
        step, device = self._state.step(work), self._ops.device
        return Step(step.token_ids.to(device), [moved(attention, device) for attention in step.attention])

    def step(self, counts: dict[int, int]) -> list[torch.Tensor]:
        """Logits ``[count, vocab]`` of each slot's next ``count`` tokens."""
        work = [SlotWork(slot, count, False) for slot, count in counts.items()]
        with torch.inference_mode():
            hidden = self.decoder.forward(self._step(work), self._pages)
            logits = self.decoder.logits(hidden)
        self._state.advance(work)
        return list(logits.split(list(counts.values())))
