"""Which architectures the installed Transformers has decoders for: read from its source as data, without importing it.

Importing it takes a second, and with what its attention interface imports three; an unknown architecture is refused
before that.
"""

from __future__ import annotations

import ast
from collections.abc import Set
from importlib.util import find_spec
from pathlib import Path

_FILE = Path("models", "auto", "modeling_auto.py")
_TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def installed() -> Path | None:
    """The folder of the package; ``None``: there is none."""
    spec = find_spec("transformers")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def decoders(package: Path) -> Set[str] | None:
    """The ``model_type`` of every causal language model; ``None`` where the table is not found: ask the package."""
    try:
        tree = ast.parse((package / _FILE).read_text(encoding="utf-8"))
        tables = (node.value for node in tree.body if isinstance(node, ast.Assign) and _names(node) == [_TABLE])
        pairs = next(ast.literal_eval(call.args[0]) for call in tables if isinstance(call, ast.Call))
        return {str(model_type) for model_type, _ in pairs}
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, StopIteration):
        return None


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]
