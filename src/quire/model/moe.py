"""Mixture of experts: each token goes through a few of many gated feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.model.linear import Linear
from quire.model.mlp import Mlp
from quire.model.spec import MoeSpec
from quire.ops.backend import Ops, Weight


@dataclass(frozen=True)
class Experts:
    """The matrices of all experts, one after another; ``gate_up``: gates, then ups, of each."""

    gate_up: Weight
    down: Weight
    gate_up_bias: torch.Tensor | None = None  # [E, 2 * size]
    down_bias: torch.Tensor | None = None  # [E, hidden]


@dataclass(frozen=True)
class Moe:
    spec: MoeSpec
    router: Linear
    experts: Experts
    correction: torch.Tensor | None = None  # [E], added to the scores that choose
    shared: Mlp | None = None
    shared_gate: Linear | None = None  # by how much, before the sigmoid

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """``x [T, hidden]`` -> ``[T, hidden]``."""
        e, activation = self.experts, self.spec.activation
        routes = ops.route(self.router(ops, x), self.spec.routing, self.correction)
        y = ops.grouped_linear(x, e.gate_up, routes.offsets, e.gate_up_bias, routes.rows)
        y = ops.grouped_linear(ops.gate_up_act(y, activation), e.down, routes.offsets, e.down_bias)
        shared = self.shared(ops, x) if self.shared else None
        return ops.combine(y, routes, shared, self.shared_gate(ops, x) if self.shared_gate else None)

    @property
    def nbytes(self) -> int:
        shared = self.shared.nbytes if self.shared else 0
        return self.router.nbytes + self.experts.gate_up.nbytes + self.experts.down.nbytes + shared
