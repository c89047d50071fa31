"""Regular expressions that come with a checkpoint and say which modules they mean."""

from __future__ import annotations

import re
from functools import lru_cache

from quire.weights.errors import CheckpointError

MAX_LENGTH = 1000
MAX_REPEATS = 6  # each multiplies the time that matching may take by a name's length


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
    """Raises ``CheckpointError`` for what is no expression, or one that could take for ever."""
    repeats = len(re.findall(r"[*+}]", pattern[:MAX_LENGTH]))
    try:
        if len(pattern) <= MAX_LENGTH and repeats <= MAX_REPEATS and not re.search(r"\)[*+{]", pattern):
            return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        pass
    raise CheckpointError(f"The checkpoint's quantization_config holds {pattern[:60]!r}, no usable regular expression.")


def matches(pattern: str, module: str) -> bool:
    """Whether ``pattern`` fits the beginning of the module's name."""
    return compiled(pattern).match(module) is not None
