"""``quire pull``: fetch a model now, so that it is there when it is needed."""

from __future__ import annotations

from quire.config.engine import ModelSource


def run(source: ModelSource) -> int:
    from quire.weights.progress import progress_bar
    from quire.weights.sources import locate

    with progress_bar() as progress:
        path = locate(source, progress)
    print(path)
    return 0
