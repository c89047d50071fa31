"""What a subcommand is: its words, its options and the function that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """``run`` is 'module:function', imported when the command runs; it gets one config of each class in
    ``options`` and returns the exit status. ``foreign`` lets vLLM's engine flags in, to be judged.
    """

    name: str
    summary: str
    run: str
    options: tuple[str, ...]
    usage: str = "[options]"
    examples: tuple[str, ...] = ()
    foreign: bool = False

    def option_classes(self) -> list[type]:
        return [load(path) for path in self.options]


def load(path: str) -> Any:
    """The object that 'module:name' names."""
    module, name = path.split(":")
    return getattr(import_module(module), name)
