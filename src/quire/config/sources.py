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
    values, notes = _named_values((cls,), kwargs)
    return cls(**values), notes


def from_sources(
    classes: Sequence[type],
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    config_file: str | None = None,
    elsewhere: Iterable[type] = (),
) -> tuple[list[Any], list[str]]:
    """Make one config of each class; ``given`` (the command line, by field name) wins over the rest.

    The file may hold options of the classes ``elsewhere`` too, so that one serves several commands. Returns the
    configs and notes on YAML keys that were accepted without effect.
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    origins: dict[str, str] = {}
    if config_file is not None:
        content = read_yaml(config_file)
        try:
            values, notes = _named_values(classes, content, elsewhere)
        except ConfigError as error:
            raise _said_of(config_file, error) from None
        origins = dict.fromkeys(values, config_file)
    for spec in _all_specs(classes):
        variable = next((name for name in spec.env_names if environ.get(name)), None)
        if variable is not None:
            values[spec.name] = _listed(environ[variable]) if spec.many else environ[variable]
            origins[spec.name] = variable
    values |= given
    for name in given:
        origins.pop(name, None)
    configs = []
    for cls in classes:
        try:
            configs.append(cls(**{s.name: values[s.name] for s in specs_of(cls) if s.name in values}))
        except ConfigError as error:
            raise _said_of(origins.get(error.option), error) from None
    return configs, notes


def _said_of(origin: str | None, error: ConfigError) -> ConfigError:
    """The error with the file or variable that the value came from, where it was no flag."""
    return ConfigError(error.option, f"{origin}: {error}") if origin else error


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


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


def suggestion(name: str, known: Iterable[str], prefix: str = "", likeness: float = 0.6) -> str:
    """' Did you mean X?' for the nearest known name, or nothing; ``prefix`` is what all names had before them."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f" Did you mean {prefix}{near[0]}?" if near else ""


def _named_values(
    classes: Sequence[type], named: Mapping[str, Any], elsewhere: Iterable[type] = ()
) -> tuple[dict[str, Any], list[str]]:
    """``named`` values by field name, with the notes on foreign ones and those of the classes ``elsewhere``."""
    by_name = {name: spec.name for spec in _all_specs(classes) for name in spec.names}
    others = {name for spec in _all_specs(elsewhere) for name in spec.names}
    foreign = {name: f for f in FOREIGN for name in f.names}
    values: dict[str, Any] = {}
    notes: list[str] = []
    keys: dict[str, str] = {}
    for key, value in named.items():
        name = key.replace("-", "_")
        if name in by_name:
            field = by_name[name]
            if field in values:
                raise ConfigError(field, f"{keys[field]} and {key} are the same option, given twice: leave one out.")
            values[field] = value
            keys[field] = key
        elif name in foreign:
            note = judge(foreign[name], value)
            notes += [note] if note else []
        elif name in others:
            notes.append(f"{key} is an option of other commands and has no effect here.")
        else:
            raise ConfigError(name, f"{key} is no option.{suggestion(name, by_name)}")
    return values, notes


def _all_specs(classes: Iterable[type]) -> Iterable[OptionSpec]:
    return (spec for cls in classes for spec in specs_of(cls))
