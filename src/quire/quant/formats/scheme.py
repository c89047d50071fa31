"""How one linear layer is stored: the tensors that make it up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Part:
    """A tensor of a module: the shapes it may have (the first is the usual one) and the types.

    ``floats``: how many of float32 each of its numbers becomes once loaded; 0: it stays as in the file.
    """

    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]
    optional: bool = False
    floats: int = 0


def part(*shape: int, types: tuple[str, ...] = FLOATS, optional: bool = False) -> Part:
    return Part((shape,), types, optional)


class Scheme(Protocol):
    """``parts`` are keyed by what follows the module's name, such as ``.qweight``."""

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        """The tensors of a layer. Raises ``CheckpointError`` where this scheme can't hold such a layer."""
        ...


# From a checkpoint and its settings to the scheme of each module, ``None`` for a plain one.
Schemes = Callable[[Checkpoint, Mapping[str, Any]], Callable[[str], Scheme | None]]


@dataclass(frozen=True)
class Settings:
    """Typed access to a ``quantization_config``; errors name the field."""

    method: str
    values: Mapping[str, Any]

    def group_size(self, default: int) -> int:
        """Inputs that share a scale; -1: all."""

        def good(value: Any) -> bool:
            return type(value) is int and (value == -1 or 8 <= value <= 1 << 20)

        return int(self._checked("group_size", default, good, "-1, or a number from 8 on,"))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._checked(key, default, lambda v: isinstance(v, bool), "true or false"))

    def text(self, key: str, default: str) -> str:
        return str(self._checked(key, default, lambda v: isinstance(v, str), "text"))

    def group(self, key: str) -> Settings:
        return Settings(self.method, self._checked(key, {}, lambda v: isinstance(v, dict), "an object"))

    def one_of(self, key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        def good(value: Any) -> bool:
            return value in allowed and type(value) is type(allowed[0])

        return self._checked(key, default, good, " or ".join(map(str, allowed)))

    def _checked(self, key: str, default: Any, good: Callable[[Any], bool], wanted: str) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if not good(value):
            raise CheckpointError(
                f"The {self.method} checkpoint's settings have {key}: {str(value)[:40]!r}; {wanted} is supported."
            )
        return value
