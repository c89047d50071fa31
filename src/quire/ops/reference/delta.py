"""The gated delta rule (arXiv:2412.06464): what attends through a state of fixed size, instead of keys and values.

A head's state S ``[K, V]`` maps keys to values. A token forgets a part of it and corrects what its key maps to:
``S <- exp(g) S; S <- S + k (beta (v - S^T k))^T``; its output is ``S^T q``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from quire.ops.backend import AttentionStep, DeltaWeights, Pages
from quire.ops.shapes import DeltaShape
from quire.ops.states import StatePages, state_pages

CHUNK = 64  # tokens that are worked out together


def gated_delta(
    mixed: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor, weights: DeltaWeights, shape: DeltaShape,
    pages: Pages, step: AttentionStep,
) -> torch.Tensor:  # fmt: skip
    """As ``Ops.gated_delta``."""
    own, rule = state_pages(pages), _Rule(weights, shape)
    mixed, beta = mixed.float(), beta.float().sigmoid()
    g = weights.decay * F.softplus(decay.float() + weights.decay_bias)
    if step.max_query == 1:
        return rule.one_each(mixed, g, beta, own, step).flatten(1)
    outputs = [
        rule.run(mixed[rows], g[rows], beta[rows], own, page, source, begin)
        for rows, page, source, begin in _runs(step)
    ]
    return torch.cat(outputs).flatten(1)


class _Rule:
    def __init__(self, weights: DeltaWeights, shape: DeltaShape) -> None:
        self._kernel = weights.kernel
        self._shape = shape

    def one_each(
        self, mixed: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, pages: StatePages, step: AttentionStep
    ) -> torch.Tensor:
        """One token of each sequence: ``[S, value_heads, value_dim]``."""
        position = step.positions.long()
        page, source = (_page(step, at) for at in (position, position - 1))
        earlier, state = pages.load(source, position - 1)
        inputs = torch.cat([earlier, mixed[..., None]], dim=2)
        output, state = step_rule(*self._heads(F.silu((inputs * self._kernel).sum(dim=2))), g, beta, state)
        pages.save(page, source, position - 1, position, inputs[..., 1:], state)
        return output

    def run(
        self, mixed: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, pages: StatePages,
        page: torch.Tensor, source: torch.Tensor, begin: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Tokens of one sequence, from position ``begin`` on, that lie in one page: ``[T, value_heads, value_dim]``."""
        earlier, state = pages.load(source, begin - 1)
        inputs = torch.cat([earlier[0], mixed.T], dim=1)
        filtered = F.conv1d(inputs[None], self._kernel[:, None], groups=self._shape.channels)[0].T
        output, after = sequence_rule(*self._heads(F.silu(filtered)), g, beta, state[0])
        kept = inputs[:, inputs.shape[1] - earlier.shape[2] :]
        pages.save(page, source, begin - 1, begin + len(mixed) - 1, kept[None], after[None])
        return output

    def _heads(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys ``[T, value_heads, key_dim]``, of length one (queries then scaled), and values."""
        s = self._shape
        keys = s.key_heads * s.key_dim
        q, k, v = mixed.split([keys, keys, s.value_heads * s.value_dim], dim=1)
        q, k = (_unit(x.view(len(x), s.key_heads, s.key_dim)) for x in (q, k))
        q, k = (x.repeat_interleave(s.value_heads // s.key_heads, dim=1) for x in (q, k))
        return q * s.key_dim**-0.5, k, v.reshape(len(v), s.value_heads, s.value_dim)


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


def step_rule(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each of S sequences.

    ``q, k [S, H, K]``, ``v [S, H, V]``, ``g, beta [S, H]``, ``state [S, H, K, V]``; returns outputs and new states.
    """
    state = state * g.exp()[..., None, None]
    error = (v - torch.einsum("shkv,shk->shv", state, k)) * beta[..., None]
    state = state + k[..., None] * error[..., None, :]
    return torch.einsum("shkv,shk->shv", state, q), state


def sequence_rule(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """T tokens of one sequence: ``q, k [T, H, K]``, ``v [T, H, V]``, ``g, beta [T, H]``, ``state [H, K, V]``.

    Returns outputs ``[T, H, V]`` and the state after the last.
    """
    outputs = []
    q, k, v, g, beta = (x.transpose(0, 1) for x in (q, k, v, g, beta))
    for start in range(0, q.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        output, state = _chunk(q[:, part], k[:, part], v[:, part], g[:, part], beta[:, part], state)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs), state


def _chunk(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[H, T, ...]``. The corrections of all tokens solve a triangular system, as each sees those before it."""
    decay = g.cumsum(dim=1)  # [H, T], log of what is left of the state at token t
    between = (decay[:, :, None] - decay[:, None, :]).tril()  # above the diagonal: would overflow, and is not used
    between = between.exp().tril()
    system = beta[..., None] * (k @ k.mT) * between  # its diagonal is taken as 1
    targets = v - (k * decay.exp()[..., None]) @ state
    errors = torch.linalg.solve_triangular(system, beta[..., None] * targets, upper=False, unitriangular=True)
    output = (q * decay.exp()[..., None]) @ state + ((q @ k.mT) * between) @ errors
    last = decay[:, -1:]
    state = state * last.exp()[..., None] + (k * (last - decay).exp()[..., None]).mT @ errors
    return output, state
