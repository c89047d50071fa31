"""Where a family's modules stand in a checkpoint of a bare model, or of one for images and text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from quire.model.weight_map import WeightMap

Names = TypeVar("Names")
# What may stand instead of the first part of the body's names, and before the head's.
_PLACES = (
    ("", ""),
    ("model.language_model.", ""),
    ("language_model.model.", "language_model."),
    ("language_model.", ""),
)


def placed(names: WeightMap, tensors: Collection[str]) -> WeightMap:
    """``names`` as this checkpoint has them."""
    body = names.embedding.partition(".")[0] + "."
    if any(tensor.startswith(names.embedding + ".") for tensor in tensors):
        return names
    for place, head in _PLACES:
        embedding = place + names.embedding.removeprefix(body) + "."
        if any(tensor.startswith(embedding) for tensor in tensors):
            return replace(_moved(names, body, place), head=head + names.head)
    return names


def _moved(names: Names, old: str, new: str) -> Names:
    """All names that begin with ``old``, beginning with ``new``."""

    def move(value: object) -> object:
        if isinstance(value, str):
            return new + value.removeprefix(old) if value.startswith(old) else value
        if isinstance(value, tuple):
            return tuple(move(part) for part in value)
        return _moved(value, old, new) if is_dataclass(value) else value

    return replace(names, **{f.name: move(getattr(names, f.name)) for f in fields(names)})  # type: ignore[arg-type,type-var]
