"""What specs and checkpoints say of operations beyond sizes. There are no tensors here: both are read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Routing:
    """How a token chooses ``top_k`` of E experts, from the scores of its router logits.

    ``softmax`` and ``sigmoid`` score all experts; ``sparsemixer`` (arXiv:2409.12136, as Phi-3.5-MoE runs it) takes one
    expert after the other, each weighed by a softmax over the logits within ``2 * jitter`` of the best of those left.
    A bias added to the scores decides only which experts are taken. With ``groups`` the experts of all but the
    ``top_groups`` best groups are left out; a group is as good as its best ``group_score`` scores (bias included) add
    up to. ``renormalize``: the weights of a token add up to one. ``scale`` multiplies them at last.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    renormalize: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_score: int = 1
    jitter: float = 0.0


@dataclass(frozen=True)
class DeltaShape:
    """Of a layer with a short convolution and the gated delta rule; key heads serve groups of value heads."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int  # tokens that the convolution mixes

    @property
    def channels(self) -> int:
        """Of queries, keys and values, which the convolution mixes."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True)
class ActivationQuant:
    """How a checkpoint rounds the inputs of a layer before the product, as part of its arithmetic.

    ``scale``: one number, fixed at calibration; ``None``: from each token's own values (or, with ``group``, from each
    ``group`` of them). ``zero``: the integer that stands for 0 (``int8`` with a fixed scale). ``symmetric`` false: a
    zero point is found along with the scale.
    """

    kind: Literal["int8", "fp8"]
    scale: float | None = None
    zero: int = 0
    group: int | None = None
    symmetric: bool = True
