"""``quire plan``: the memory that a model will take, from its headers alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from quire.config.client import ReportConfig
from quire.config.engine import EngineConfig

if TYPE_CHECKING:
    from quire.runtime.memory import MemoryPlan

MIB = 1 << 20


def run(engine: EngineConfig, report: ReportConfig) -> int:
    from quire.runtime.build import make_blueprint

    memory = make_blueprint(engine).memory
    if report.json:
        print(json.dumps(facts(memory)))
    else:
        show(engine.model, memory)
    return 0


def facts(memory: MemoryPlan) -> dict[str, object]:
    return {
        "bytes": dict(memory.rows()),
        "max_model_len": memory.max_model_len,
        "page_size": memory.page_size,
        "pages": [{"window": g.window, "num_pages": g.num_pages} for g in memory.groups],
        "requests_of_full_length": round(memory.concurrency, 2),
    }


def show(model: str, memory: MemoryPlan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("use", "MiB", title=model)
    table.columns[1].justify = "right"
    for name, size in memory.rows():
        table.add_row(name, f"{size / MIB:,.1f}", style="bold" if name == "sum" else None)
    console = Console()
    console.print(table)
    console.print(
        f"Context: {memory.max_model_len:,} tokens. {memory.concurrency:.1f} requests of that length fit at once, "
        f"or more shorter ones."
    )
