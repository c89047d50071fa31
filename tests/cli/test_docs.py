"""The generated part of the documentation is up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_cli_page_is_what_the_declarations_say() -> None:
    page = runpy.run_path(str(DOCS / "generate_cli.py"))["page"]
    assert (DOCS / "cli.md").read_text() == page(), "run: python docs/generate_cli.py"
