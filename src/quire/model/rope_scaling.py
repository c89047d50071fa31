"""Kinds of scaled rotary embeddings, and how far they reach: what a config says of them, without a tensor."""

from __future__ import annotations

import math

from quire.model.spec import RopeSpec
from quire.weights.errors import CheckpointError

ORIGINAL = "original_max_position_embeddings"
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "factors")


def check_form(rope: RopeSpec) -> None:
    """Raises ``CheckpointError`` for a kind of scaling that is not supported, or values that can't be numbers."""
    scaling = dict(rope.scaling)
    kind = str(scaling.get("rope_type", "default"))
    if kind not in KINDS:
        raise CheckpointError(f"The rope scaling {kind[:40]!r} is not supported; supported are {', '.join(KINDS)}.")
    lists = (value if isinstance(value, tuple) else (value,) for value in scaling.values())
    if not all(isinstance(value, (int, float, str)) for values in lists for value in values):
        raise spoilt(kind)


def stretched(rope: RopeSpec, max_position: int) -> int:
    """How many positions a model of ``max_position`` can be run with, thanks to the scaling.

    Raises ``CheckpointError`` where a number for it is missing or spoilt.
    """
    scaling = dict(rope.scaling)
    kind = scaling.get("rope_type")
    try:
        if kind in ("linear", "dynamic"):
            return int(max_position * float(str(scaling["factor"])))
        if kind == "yarn":
            return max(max_position, int(float(str(scaling["factor"])) * int(str(scaling[ORIGINAL]))))
    except (KeyError, ValueError, ArithmeticError) as error:
        raise spoilt(str(kind)) from error
    return max_position


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies scores by, its square root rather, for a context ``factor`` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def spoilt(kind: str) -> CheckpointError:
    return CheckpointError(f"The rope scaling {kind!r} of the model's config lacks or spoils a number.")
