"""Write the generated parts of docs/ and say which were out of date: ``make docs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import generate_cli
import generate_models

DOCS = Path(__file__).parent
PAGES: dict[str, Callable[[], str]] = {"cli.md": generate_cli.page, "models.md": generate_models.page}


def main() -> None:
    for name, page in PAGES.items():
        content = page()
        stale = (DOCS / name).read_text() != content
        print(f"docs/{name} {'was out of date and is written anew' if stale else 'is up to date'}")
        if stale:
            (DOCS / name).write_text(content)


if __name__ == "__main__":
    main()
