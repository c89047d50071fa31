"""What can go wrong between a model's name and its tensors."""

from __future__ import annotations

FROM_ONE = "take config.json and the weights from one and the same checkpoint"


class WeightsError(Exception):
    """One clear sentence for the user: what is wrong with the model, and the cure where there is one."""


class SourceError(WeightsError):
    """The model cannot be found or fetched."""


class CheckpointError(WeightsError):
    """A checkpoint file is corrupt, unsupported, or lacks something."""


def misshapen(name: str, actual: tuple[int, ...], wanted: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"The tensor {name} has the shape {list(actual)}, but the config calls for {list(wanted)}; {FROM_ONE}."
    )
