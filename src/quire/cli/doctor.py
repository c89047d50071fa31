"""``quire doctor``: what this machine and installation are like, and the command that mends what is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from quire.cli.checks import Finding, examine
from quire.config.client import ReportConfig

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fault": "[red]fault[/]"}


def run(report: ReportConfig) -> int:
    findings = examine()
    if report.json:
        print(json.dumps([dataclasses.asdict(f) for f in findings], indent=1))
    else:
        show(findings)
    return 1 if any(f.level == "fault" for f in findings) else 0


def show(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(_MARKS[finding.level], finding.topic, Text(finding.text, overflow="fold"))
        if finding.cure:
            table.add_row("", "", Text(f"cure: {finding.cure}", style="bold"))
    Console(highlight=False).print(table)
