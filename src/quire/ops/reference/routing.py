"""Routing to experts, as ``Routing`` (ops/backend.py) defines it."""

from __future__ import annotations

import torch

from quire.ops.backend import Routes
from quire.ops.shapes import Routing


def route(logits: torch.Tensor, routing: Routing, bias: torch.Tensor | None = None) -> Routes:
    """Choose by ``logits [T, E]``, on any device. Of equal scores the first expert's wins."""
    choose = _sparsemixer if routing.scoring == "sparsemixer" else _scored
    experts, weights = choose(logits.float(), routing, bias)
    if routing.renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return sorted_routes(experts, weights * routing.scale, logits.shape[1])


def sorted_routes(experts: torch.Tensor, weights: torch.Tensor, count: int) -> Routes:
    """The rows of choices ``experts [T, top_k]`` of ``count`` experts."""
    tokens, top_k = experts.shape
    order = experts.flatten().argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    borders = torch.arange(count + 1, device=order.device)
    offsets = torch.searchsorted(experts.flatten()[order], borders, out_int32=True)  # bincount would wait for a GPU
    return Routes((order // top_k).int(), offsets, places.view(tokens, top_k).int(), weights)


def _scored(logits: torch.Tensor, routing: Routing, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    scores = logits.sigmoid() if routing.scoring == "sigmoid" else logits.softmax(dim=-1)
    ranked = scores if bias is None else scores + bias.float()
    if routing.groups > 1:
        grouped = ranked.unflatten(1, (routing.groups, -1))
        worth = grouped.topk(routing.group_score, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, _best(worth, routing.top_groups), True)
        ranked = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
    experts = _best(ranked, routing.top_k)
    return experts, scores.gather(1, experts)


def _sparsemixer(
    logits: torch.Tensor, routing: Routing, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    left, experts, weights = logits, [], []
    for _ in range(routing.top_k):
        best = left.max(dim=-1, keepdim=True).values
        far = (best - left) / logits.abs().clamp(min=best) > 2 * routing.jitter
        expert = _best(left, 1)
        experts.append(expert)
        weights.append(left.masked_fill(far, float("-inf")).softmax(dim=-1).gather(1, expert))
        left = left.scatter(1, expert, float("-inf"))
    return torch.cat(experts, dim=1), torch.cat(weights, dim=1)


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices ``[T, count]`` of the highest, in order; ``topk`` does not say which of equal ones it takes."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
