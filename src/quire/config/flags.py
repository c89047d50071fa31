"""Command-line flags, derived from the declared options."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from typing import Any, NoReturn

from quire.config.foreign import FOREIGN, Foreign
from quire.config.options import ConfigError, OptionSpec, specs_of
from quire.config.sources import suggestion


class _Help(argparse.RawDescriptionHelpFormatter):
    """As argparse of Python 3.13: ``-q, --quick TEXT``, the placeholder once; and no wider than reads well."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(100, shutil.get_terminal_size().columns - 2))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class FlagParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``ConfigError`` and takes underscores in flags for dashes.

    ``positionals`` names the options that may also be given without their flag, in order.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **more)
        self.positionals: list[str] = []

    def error(self, message: str) -> NoReturn:
        message = re.sub("ignored explicit argument.*", "a switch takes no value: give one of its forms", message)
        raise ConfigError("", message[:1].upper() + message[1:] + ("" if message.endswith(".") else "."))

    def parse(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[tuple[Foreign, Any]]]:
        """(values by field name, foreign flags with their values); raises ``ConfigError``."""
        parsed, rest = self.parse_known_args([dashed(token) for token in argv])
        given = vars(parsed)
        foreign = given.pop("foreign", [])
        # argparse of Python 3.11 drops an optional positional that comes after a flag, so they are placed here.
        places = iter(self.positionals)
        for token in rest:
            if token == "--":
                continue
            if token.startswith("-") and token != "-":
                self._refuse(token.split("=", 1)[0])
            name = next(places, None)
            if name is None:
                raise ConfigError("", f"Unexpected argument {token!r}.")
            if given.setdefault(name, token) != token:
                raise ConfigError(name, f"{name} is given twice: {given[name]!r} and {token!r}.")
        return given, foreign

    def _refuse(self, flag: str) -> NoReturn:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        raise ConfigError(flag, f"Unknown option {flag}.{suggestion(flag, known)}")


def dashed(token: str) -> str:
    """``--max_model_len=8`` as ``--max-model-len=8``."""
    match = re.match(r"--[A-Za-z0-9_-]+", token)
    return match[0].replace("_", "-") + token[match.end() :] if match else token


def add_options(parser: FlagParser, classes: Sequence[type]) -> None:
    """Add a flag for each option of the dataclasses, in their groups. Nothing is set for flags not given."""
    groups: dict[str, Any] = {}
    for spec in (spec for cls in classes for spec in specs_of(cls)):
        title = spec.option.group
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_option(groups[title], spec)
        if spec.option.positional:
            parser.positionals.append(spec.name)


def add_foreign(parser: FlagParser) -> None:
    """Let the parser take other engines' flags, hidden from the help, into ``foreign``."""
    for foreign in FOREIGN:
        flags = list(foreign.flags)
        if foreign.takes == "none":
            flags += ["--no-" + f[2:] for f in foreign.flags]
        nargs = {"none": 0, "one": None, "many": "+"}[foreign.takes]
        parser.add_argument(*flags, action=_ForeignAction, foreign=foreign, nargs=nargs, help=argparse.SUPPRESS)


def help_text(spec: OptionSpec) -> str:
    """The option's help with its default and variables, as ``--help`` shows it."""
    notes = [f"default: {default_text(spec)}"] if default_text(spec) else []
    notes += [f"also ${name}" for name in spec.option.env]
    return f"{spec.option.help} ({'; '.join(notes)})" if notes else spec.option.help


def default_text(spec: OptionSpec) -> str:
    """The default for readers; empty where there is none to speak of."""
    if isinstance(spec.default, bool):
        return "on" if spec.default else ""
    return "" if spec.default in (None, (), "") else str(spec.default)


def value_text(spec: OptionSpec) -> str:
    """The placeholder of the option's value."""
    if spec.option.metavar:
        return spec.option.metavar
    if spec.choices:
        return "{" + ",".join(spec.choices) + "}"
    return {int: "N", float: "X", str: spec.name.upper()}[spec.kind]


def _add_option(group: Any, spec: OptionSpec) -> None:
    common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text(spec).replace("%", "%%")}
    flags = [spec.flag, *spec.option.aliases]
    if spec.kind is bool and not spec.many:
        group.add_argument(*flags, dest=spec.name, action=argparse.BooleanOptionalAction, **common)
        return
    if spec.many:
        common |= {"nargs": "+", "action": "extend"}
    group.add_argument(*flags, dest=spec.name, metavar=value_text(spec), **common)


class _ForeignAction(argparse.Action):
    def __init__(self, foreign: Foreign, **more: Any) -> None:
        super().__init__(default=argparse.SUPPRESS, **more)
        self.foreign = foreign

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.foreign.takes == "none":
            values = not (option_string or "").startswith("--no-")
        elif isinstance(values, list):
            values = " ".join(values)
        namespace.foreign = [*getattr(namespace, "foreign", []), (self.foreign, values)]
