"""What can go wrong between a model's name and its tensors."""

from __future__ import annotations


class WeightsError(Exception):
    """One clear sentence for the user: what is wrong with the model, and the cure where there is one."""


class SourceError(WeightsError):
    """The model cannot be found or fetched."""


class CheckpointError(WeightsError):
    """A checkpoint file is corrupt, unsupported, or lacks something."""
