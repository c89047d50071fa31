"""Where option values come from: keyword arguments, command line, environment, YAML file, defaults, in that order."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from quire.config.foreign import FOREIGN, judge
from quire.config.options import ConfigError, OptionSpec, specs_of

T = TypeVar("T")
MAX_CONFIG_BYTES = 1 << 20


def from_kwargs(cls: type[T], kwargs: Mapping[str, Any]) -> tuple[T, list[str]]:
    """Make a config from Python keyword arguments, under our names, their aliases, or vLLM's.

    Returns the config and notes on arguments that were accepted without effect. Raises ``ConfigError`` for an
    unknown name (naming the nearest), a name Quire doesn't offer, or a bad value.
    """
    values, notes = _named_values((cls,), kwargs, shown=lambda name: name)
    return cls(**values), notes


def from_sources(
    classes: Sequence[type],
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    config_file: str | None = None,
) -> tuple[list[Any], list[str]]:
    """Make one config of each class; ``given`` (the command line, by field name) wins over the rest.

    Returns the configs and notes on YAML keys that were accepted without effect.
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    if config_file is not None:
        values, notes = _named_values(classes, read_yaml(config_file), shown=lambda name: f"{config_file}: {name}")
    values |= environment_values(classes, environ)
    values |= given
    return [cls(**{s.name: values[s.name] for s in specs_of(cls) if s.name in values}) for cls in classes], notes


def environment_values(classes: Iterable[type], environ: Mapping[str, str]) -> dict[str, Any]:
    """The options set by environment variables; a list is split at commas. An empty variable counts as unset."""
    found: dict[str, Any] = {}
    for spec in _all_specs(classes):
        name = next((n for n in spec.env_names if environ.get(n)), None)
        if name is not None:
            text = environ[name]
            found[spec.name] = [part.strip() for part in text.split(",") if part.strip()] if spec.many else text
    return found


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; raises ``ConfigError`` where there is none."""
    import yaml

    try:
        with Path(path).open("rb") as file:
            content = yaml.safe_load(file.read(MAX_CONFIG_BYTES).decode())
    except OSError as error:
        raise ConfigError("config", f"--config: can't read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError("config", f"--config: {path} is no valid YAML.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError("config", f"--config: {path} must hold 'option: value' lines.")
    return content


def suggestion(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def _named_values(classes: Sequence[type], named: Mapping[str, Any], shown: Any) -> tuple[dict[str, Any], list[str]]:
    """``named`` values by field name, with the notes on foreign ones."""
    by_name = {name: spec.name for spec in _all_specs(classes) for name in spec.names}
    foreign = {name: f for f in FOREIGN for name in f.names}
    values: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in named.items():
        name = key.replace("-", "_")
        if name in by_name:
            if by_name[name] in values:
                raise ConfigError(by_name[name], f"{shown(key)} is given twice (as {by_name[name]} too).")
            values[by_name[name]] = value
        elif name in foreign:
            note = judge(foreign[name], value)
            notes += [note] if note else []
        else:
            raise ConfigError(name, f"{shown(key)} is no option.{suggestion(name, by_name)}")
    return values, notes


def _all_specs(classes: Iterable[type]) -> Iterable[OptionSpec]:
    return (spec for cls in classes for spec in specs_of(cls))
