"""The feed-forward part of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.model.linear import Linear
from quire.model.spec import MlpSpec
from quire.ops.backend import Ops


@dataclass(frozen=True)
class Mlp:
    spec: MlpSpec
    gate_up: Linear  # only up, without a gate
    down: Linear

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """``x [T, hidden]`` -> ``[T, hidden]``."""
        gate_up, activation = self.gate_up, self.spec.activation
        if self.spec.gated:
            return self.down(ops, ops.gated_linear(x, gate_up.weight, gate_up.bias, activation))
        return self.down(ops, ops.activate(gate_up(ops, x), activation))

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes
