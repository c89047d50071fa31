"""Environment variables that are no options, and those that are nothing: a typing error must not be passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quire.config.options import specs_of
from quire.config.sources import suggestion

PREFIX = "QUIRE_"
OTHER_VARIABLES = {
    "QUIRE_CPU_INSTRUCTIONS": "holds CPU kernels to avx512_vnni, avx512, avx_vnni, avx2 or portable (default: best)",
    "QUIRE_LLAMA_BIN": "folder of llama.cpp's programs, for benchmarks/compare_cpu.py",
}
# What Kubernetes sets in every pod beside a service that is called quire.
_SERVICE_LINK = re.compile(r"QUIRE_(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP))")


def unknown_variables(names: Iterable[str], classes: Iterable[type]) -> list[str]:
    """A note on each ``QUIRE_...`` among the variables' names that is neither an option of the classes nor another."""
    own = sorted(name for name in names if name.startswith(PREFIX) and not _SERVICE_LINK.match(name))
    if not own:
        return []
    known = {*OTHER_VARIABLES, *(name for cls in classes for spec in specs_of(cls) for name in spec.env_names)}
    # The common prefix would make any two names alike.
    rests = sorted(name.removeprefix(PREFIX) for name in known if name.startswith(PREFIX))
    return [
        f"{name} is no variable of Quire's and has no effect." + suggestion(name.removeprefix(PREFIX), rests, PREFIX)
        for name in own
        if name not in known
    ]
