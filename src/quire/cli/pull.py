"""``quire pull``: fetch a model now, so that it is there when it is needed."""

from __future__ import annotations

from quire.config.engine import ModelSource


def run(source: ModelSource) -> int:
    from quire.weights.progress import progress_bar
    from quire.weights.sources import resolve

    with progress_bar() as progress:
        path = resolve(
            source.model,
            revision=source.revision,
            download_dir=source.download_dir,
            hf_token=source.hf_token,
            offline=source.offline,
            progress=progress,
        )
    print(path)
    return 0
