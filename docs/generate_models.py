"""The table of families in docs/models.md, from the families and their tests; docs/generate.py writes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quire.model.families import FAMILIES

MODELS = Path(__file__).with_name("models.md")
START, END = "change those. -->\n", "\n<!-- end -->"
HEAD = "\n| models | `model_type` | what is special | variants tested |\n|---|---|---|---|\n"


def page() -> str:
    """The whole of docs/models.md, with a new table."""
    before, _, rest = MODELS.read_text().partition(START)
    return before + START + HEAD + table() + END + rest.partition(END)[2]


def table() -> str:
    tested = variants()
    return "".join(row(family, tested) for family in sorted(set(FAMILIES.values()), key=title))


def row(family: Any, tested: Mapping[str, list[str]]) -> str:
    types = ", ".join(f"`{name}`" for name in family.MODEL_TYPES)
    cases = ", ".join(case for name in family.MODEL_TYPES for case in tested.get(name, []))
    special = summary(family).partition(": ")[2]
    return f"| {title(family)} | {types} | {special.rstrip('.')} | {cases} |\n"


def title(family: Any) -> str:
    return summary(family).partition(": ")[0].rstrip(".")


def summary(family: Any) -> str:
    return " ".join(str(family.__doc__).partition("\n\n")[0].split())


def variants() -> dict[str, list[str]]:
    """``model_type`` -> names of the models in the tests."""
    sys.path.insert(0, str(MODELS.parents[1]))
    from tests.model import test_families, test_moe_families, test_renamed_families

    found: dict[str, list[str]] = {}
    for cases in (test_families.CASES, test_moe_families.CASES):
        for name, settings in cases.items():
            found.setdefault(str(settings["model_type"]), []).append(name)
    for name, (model_type, _) in test_renamed_families.MODELS.items():
        found.setdefault(model_type, []).append(name)
    return found
