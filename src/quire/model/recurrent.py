"""Layers that keep a state of fixed size a sequence: a short convolution, then the gated delta rule (Qwen3-Next)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from quire.model.delta import sequence_rule, step_rule
from quire.model.linear import Linear
from quire.model.spec import DeltaSpec
from quire.model.states import StatePages
from quire.ops.backend import AttentionStep, Ops, Pages


@dataclass(frozen=True)
class GatedDelta:
    spec: DeltaSpec
    inputs: Linear  # hidden -> queries, keys, values (which the convolution mixes), output gates, betas, decays
    kernel: torch.Tensor  # [channels, kernel]
    decay: torch.Tensor  # [value_heads], at most 0
    decay_bias: torch.Tensor  # [value_heads]
    norm: torch.Tensor  # [value_dim]
    eps: float
    out: Linear

    def __call__(
        self, ops: Ops, x: torch.Tensor, cos_sin: torch.Tensor | None, pages: Pages, step: AttentionStep
    ) -> torch.Tensor:
        """What ``out`` takes for ``x [T, hidden]``; moves the states in ``pages`` on."""
        if not isinstance(pages, StatePages):
            raise TypeError(f"These pages hold no states ({type(pages).__name__}).")
        s = self.spec
        width, heads = s.value_heads * s.value_dim, s.value_heads
        mixed, gate, beta, decay = self.inputs(ops, x).float().split([s.channels, width, heads, heads], dim=1)
        rates = (self.decay * F.softplus(decay + self.decay_bias), beta.sigmoid())
        y = self._attend(mixed, *rates, pages, step).reshape(-1, s.value_dim)
        y = ops.rms_norm(y, self.norm, self.eps)[0].view(len(x), width) * F.silu(gate)
        return y.to(x.dtype)

    def _attend(
        self, mixed: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, pages: StatePages, step: AttentionStep
    ) -> torch.Tensor:
        """``[T, value_heads, value_dim]``."""
        if step.max_query == 1:
            position = step.positions.long()
            page, source = (_page(step, at) for at in (position, position - 1))
            # A sequence may begin where another one of this step ends: then in turns.
            if bool(pages.found(source, position - 1).all()):
                return self._one_each(mixed, g, beta, pages, page, source, position)
        outputs = [
            self._run(mixed[rows], g[rows], beta[rows], pages, page, source, begin)
            for rows, page, source, begin in _runs(step)
        ]
        return torch.cat(outputs)

    def _one_each(
        self, mixed: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, pages: StatePages,
        page: torch.Tensor, source: torch.Tensor, position: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """One token of each sequence."""
        earlier, state = pages.load(source, position - 1)
        inputs = torch.cat([earlier, mixed[..., None]], dim=2)
        output, state = step_rule(*self._heads(F.silu((inputs * self.kernel).sum(dim=2))), g, beta, state)
        pages.save(page, source, position - 1, position, inputs[..., 1:], state)
        return output

    def _run(
        self, mixed: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, pages: StatePages,
        page: torch.Tensor, source: torch.Tensor, begin: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Tokens of one sequence, from position ``begin`` on, that lie in one page."""
        earlier, state = pages.load(source, begin - 1)
        inputs = torch.cat([earlier[0], mixed.T], dim=1)
        filtered = F.conv1d(inputs[None], self.kernel[:, None], groups=self.spec.channels)[0].T
        output, after = sequence_rule(*self._heads(F.silu(filtered)), g, beta, state[0])
        kept = inputs[:, inputs.shape[1] - earlier.shape[2] :]
        pages.save(page, source, begin - 1, begin + len(mixed) - 1, kept[None], after[None])
        return output

    def _heads(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys ``[T, value_heads, key_dim]``, of length one (queries then scaled), and values."""
        s = self.spec
        keys = s.key_heads * s.key_dim
        q, k, v = mixed.split([keys, keys, s.value_heads * s.value_dim], dim=1)
        q, k = (_unit(x.view(len(x), s.key_heads, s.key_dim)) for x in (q, k))
        q, k = (x.repeat_interleave(s.value_heads // s.key_heads, dim=1) for x in (q, k))
        return q * s.key_dim**-0.5, k, v.reshape(len(v), s.value_heads, s.value_dim)

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.out.nbytes


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def _page(step: AttentionStep, position: torch.Tensor) -> torch.Tensor:
    """The page of each sequence's ``position [S]``; that of its beginning for -1."""
    rows = torch.arange(len(position), device=position.device)
    return step.block_table[rows, position.clamp(min=0) // step.page_size].long()


def _runs(step: AttentionStep) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows of one sequence and one page each: (rows, page, page of the token before, first position)."""
    starts, lengths, size = step.query_start.tolist(), step.context_len.tolist(), step.page_size
    for s, end in enumerate(lengths):
        begin = end - (starts[s + 1] - starts[s])
        first = begin
        while begin < end:
            stop = min(end, (begin // size + 1) * size)
            rows = slice(starts[s] + begin - first, starts[s] + stop - first)
            pages = step.block_table[s, [begin // size, max(begin - 1, 0) // size]].long()
            yield rows, pages[:1], pages[1:], torch.tensor([begin], device=pages.device)
            begin = stop
