"""The gated delta rule (arXiv:2412.06464): what attends through a state of fixed size, instead of keys and values.

A head's state S ``[K, V]`` maps keys to values. A token forgets a part of it and corrects what its key maps to:
``S <- exp(g) S; S <- S + k (beta (v - S^T k))^T``; its output is ``S^T q``.
"""

from __future__ import annotations

import torch

CHUNK = 64  # tokens that are worked out together


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
