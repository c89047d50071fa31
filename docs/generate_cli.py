"""The text of docs/cli.md, from the declared commands and options; docs/generate.py writes it."""

from __future__ import annotations

from collections.abc import Iterable

from quire.cli.command import Command
from quire.cli.commands import COMMANDS
from quire.config.flags import default_text, value_text
from quire.config.foreign import FOREIGN, Foreign
from quire.config.options import OptionSpec, specs_of
from quire.config.variables import OTHER_VARIABLES

HEAD = """# Command line

<!-- Made by `make docs` from the declarations in src/quire/config; change those. -->

Every option can be given in four ways; the earlier wins:

1. a flag, `--max-model-len 8k` (`--max_model_len` is the same; switches have a `--no-` form; a flag of a list takes
   several values and may be repeated);
2. a variable, `QUIRE_MAX_MODEL_LEN=8k` (lists are split at commas);
3. a line in the YAML file given by `--config`, `max-model-len: 8k`;
4. the default.

`MODEL` stands for `--model`. Lengths read `8192`, `32k` (thousands) or `32K` (times 1,024). Unknown options are
refused, naming the nearest; so are unknown lines of the file, which may hold options of several commands. An unknown
`QUIRE_...` variable gets a warning. `quire --version` prints the version.
"""
VARIABLES_HEAD = """Variables that are no options:

| variable | meaning |
|---|---|
"""
FOREIGN_HEAD = """## Options of vLLM

These flags of vLLM are known to `serve`, `generate`, `plan` and `bench`. A value in the second column is accepted; any
other ends in a sentence with the reason.

| flag | accepted | reason |
|---|---|---|
"""


def page() -> str:
    """The whole of docs/cli.md."""
    sections = [section(command) for command in COMMANDS]
    rows = "\n".join(foreign_row(f) for f in FOREIGN)
    variables = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in OTHER_VARIABLES.items())
    return "\n".join([HEAD, VARIABLES_HEAD + variables, *sections, FOREIGN_HEAD + rows]) + "\n"


def section(command: Command) -> str:
    lines = [f"## quire {command.name}", "", command.summary, ""]
    lines += ["```", *command.examples, "```", ""] if command.examples else []
    specs = [spec for cls in command.option_classes() for spec in specs_of(cls)]
    for group, members in grouped(specs):
        lines += [f"**{group}**", "", "| option | default | meaning |", "|---|---|---|"]
        lines += [row(spec) for spec in members] + [""]
    return "\n".join(lines)


def grouped(specs: Iterable[OptionSpec]) -> list[tuple[str, list[OptionSpec]]]:
    """Options by group, in the order of first appearance."""
    specs = list(specs)
    titles = list(dict.fromkeys(spec.option.group for spec in specs))
    return [(title, [s for s in specs if s.option.group == title]) for title in titles]


def row(spec: OptionSpec) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (spec.flag, *spec.option.aliases))
    value = "" if spec.kind is bool else f" {escaped(value_text(spec))}"
    also = "".join(f" Also `${name}`." for name in spec.option.env)
    default = f"`{default_text(spec)}`" if default_text(spec) else ""
    return f"| {flags}{value} | {default} | {escaped(spec.option.help)}{also} |"


def foreign_row(foreign: Foreign) -> str:
    flags = ", ".join(f"`{flag}`" for flag in foreign.flags)
    accepted = "any" if "*" in foreign.harmless else ", ".join(f"`{v}`" for v in foreign.harmless)
    return f"| {flags} | {accepted} | {escaped(foreign.why)} |"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")
