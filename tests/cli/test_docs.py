"""The generated part of the documentation is up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_table_of_families_is_what_the_families_and_their_tests_say() -> None:
    page = runpy.run_path(str(DOCS / "generate_models.py"))["page"]
    assert (DOCS / "models.md").read_text() == page(), "run: python docs/generate_models.py"
    assert "|  |\n" not in page(), "a family has no tested variant"


def test_cli_page_is_what_the_declarations_say() -> None:
    page = runpy.run_path(str(DOCS / "generate_cli.py"))["page"]
    assert (DOCS / "cli.md").read_text() == page(), "run: python docs/generate_cli.py"
