"""How an option is declared: once, as a dataclass field. CLI flags, YAML keys, environment and docs derive from it.

The checks of a field (its type, ``choices``, ``low``, ``high``) are declared with it too and hold however the value
came in, because ``Options.__post_init__`` runs them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from typing import Any, Literal, cast, get_args, get_origin
from weakref import WeakKeyDictionary


class ConfigError(ValueError):
    """An option is unknown, malformed or out of range; ``option`` names it, the message is for the user."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Option:
    """What the CLI and the docs need beyond a field's name, type and default.

    ``aliases`` are further flags (``-q``, ``--block-size``), whose names without dashes YAML and Python take too.
    ``env`` are environment variables read besides ``QUIRE_<NAME>``. ``low`` and ``high`` bound numbers, both allowed.
    """

    help: str
    aliases: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None
    positional: bool = False
    group: str = "General"
    env: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    secret: bool = False
    metavar: str | None = None


def option(default: Any, help: str, *aliases: str, **more: Any) -> Any:
    """A dataclass field that carries its ``Option`` in the metadata. ``--name-with-dashes`` is its flag."""
    declared = Option(help, aliases, **more)
    return field(default=default, repr=not declared.secret, metadata={"option": declared})


def option_of(f: Field[Any]) -> Option:
    return cast(Option, f.metadata["option"])


@dataclass(frozen=True)
class OptionSpec:
    """A declared option with what its annotation says: ``kind`` is the type of one value, ``many`` marks a tuple."""

    name: str
    kind: type
    optional: bool
    many: bool
    default: Any
    option: Option
    choices: tuple[str, ...] | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env_names(self) -> tuple[str, ...]:
        return (f"QUIRE_{self.name.upper()}", *self.option.env)

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which YAML and Python may set it."""
        return (self.name, *(a.lstrip("-").replace("-", "_") for a in self.option.aliases if a.startswith("--")))

    def convert(self, value: Any) -> Any:
        """``value``, from text or from Python, as the field's type; raises ``ConfigError`` where it can't be one."""
        if value is None and self.optional:
            return None
        if not self.many:
            return self._convert_one(value)
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            value = (value,)
        return tuple(self._convert_one(v) for v in value)

    def _convert_one(self, value: Any) -> Any:
        if self.option.parse and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            try:
                value = self.option.parse(str(value))
            except ValueError as error:
                raise ConfigError(self.name, f"{self.flag}: {error}") from None
            if value is None:
                return None
        converted = _as_kind(value, self.kind)
        if converted is None:
            found = f"a value of type {type(value).__name__}" if self.option.secret else repr(value)
            raise ConfigError(self.name, f"{self.flag} takes {_KIND_NAMES[self.kind]}, not {found}.")
        if self.choices and converted not in self.choices:
            raise ConfigError(self.name, f"{self.flag} must be one of {', '.join(self.choices)}; not {value!r}.")
        self._check_range(converted)
        return converted

    def _check_range(self, value: Any) -> None:
        low, high = self.option.low, self.option.high
        if self.kind not in (int, float) or ((low is None or value >= low) and (high is None or value <= high)):
            return
        bounds = " and ".join(
            f"{word} {bound:,.10g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
        )
        raise ConfigError(self.name, f"{self.flag} must be {bounds}; not {value:,.10g}.")


class Options:
    """Base of the option dataclasses: converts and checks every field on construction."""

    def __post_init__(self) -> None:
        for spec in specs_of(type(self)):
            object.__setattr__(self, spec.name, spec.convert(getattr(self, spec.name)))
        self.check()

    def check(self) -> None:
        """Rules between fields; raises ``ConfigError``."""


_SPECS: WeakKeyDictionary[type, tuple[OptionSpec, ...]] = WeakKeyDictionary()


def specs_of(cls: type) -> tuple[OptionSpec, ...]:
    """The options of a dataclass, in order."""
    if cls not in _SPECS:
        hints = typing.get_type_hints(cls)
        _SPECS[cls] = tuple(_spec(f, hints[f.name]) for f in dataclasses.fields(cls))
    return _SPECS[cls]


def changed(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults."""
    values = ((spec, getattr(config, spec.name)) for spec in specs_of(type(config)))
    return {spec.name: value for spec, value in values if value != spec.default}


def _spec(f: Field[Any], hint: Any) -> OptionSpec:
    declared = option_of(f)
    optional = many = False
    if _is_union(hint):
        optional = True
        hint = _not_none(hint)
    if get_origin(hint) is tuple:
        many = True
        hint = _not_none(get_args(hint)[0])
    choices = declared.choices
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = str
    return OptionSpec(f.name, hint, optional, many, f.default, declared, choices)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (typing.Union, types.UnionType)


def _not_none(hint: Any) -> Any:
    """Of ``X | None`` the ``X``."""
    return next(a for a in get_args(hint) if a is not type(None)) if _is_union(hint) else hint


_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_KIND_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _as_kind(value: Any, kind: type) -> Any:
    """``value`` as ``kind``, or ``None`` when it is none: text is read, other types are not bent."""
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is bool:
        text = value.strip().lower() if isinstance(value, str) else value
        return text if isinstance(text, bool) else True if text in _TRUE else False if text in _FALSE else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = kind(value)
        exact = isinstance(value, str) or number == value
        return number if exact and math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None
