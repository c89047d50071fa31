"""``python -m quire.entrypoints.openai.api_server --model M --port 8000``: ``quire serve`` under vLLM's old name."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Serve with these arguments (default: the process's own); returns the exit status."""
    from quire.cli.main import main as quire

    return quire(["serve", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
