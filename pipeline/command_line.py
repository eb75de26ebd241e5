"""A config from command line and YAML: one schema for both, and a clear word for every mistake."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml
from draccus.utils import DecodingError, ParsingError

from pipeline.config import settings_of
from pipeline.errors import ConfigError, did_you_mean

# Aliases make a file of a kilobyte stand for gigabytes; no config has as many values.
_MOST_VALUES = 100_000


def parse_config[ConfigT](config_class: type[ConfigT], arguments: Sequence[str] | None = None) -> ConfigT:
    """The config that command line and `--config_path` describe; flags win over the file.

    A YAML file is read as if its keys were flags typed before the others. Raises ConfigError for an unknown flag or key
    (with the closest known one), a value of the wrong type, or one that is impossible. `--help` prints, and exits.
    """
    types = {name: str(setting.type) for name, setting in settings_of(config_class)}
    typed = list(_pairs(sys.argv[1:] if arguments is None else arguments))
    if any(name == "help" for name, _ in typed):
        draccus.parse(config_class, args=["--help"])
    from_files = [pair for name, value in typed if name == "config_path" for pair in _read_yaml(Path(value or ""))]
    settings = [*from_files, *(pair for pair in typed if pair[0] != "config_path")]
    for name, _ in settings:
        if name not in types:
            raise ConfigError(f"Unknown setting --{name}.{did_you_mean(name, types)} --help lists all.")
    # draccus reads dataclasses well, but of a command line it opens what follows `include` as a file.
    return _decode(config_class, _nested((name, _read_value(name, value, types[name])) for name, value in settings))


def _decode[ConfigT](config_class: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    try:
        return draccus.decode(config_class, values)
    except DecodingError as error:
        raise ConfigError(f"Bad setting {' '.join(str(error).split())}. --help lists all.") from error
    except ParsingError as error:
        # draccus wraps what a config's own checks raise.
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"Bad settings: {error}. --help lists all.") from error


def _pairs(arguments: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value) of each flag, however it is spelt; a flag that stands alone has None."""
    waiting = list(arguments)[::-1]
    while waiting:
        flag = waiting.pop()
        if flag == "-h":
            flag = "--help"
        if not flag.startswith("--"):
            raise ConfigError(f"Expected --name value, found {flag!r} without a name. --help lists all.")
        name, joined, value = flag.removeprefix("--").partition("=")
        if joined:
            yield name, value
        else:
            yield name, waiting.pop() if waiting and not waiting[-1].startswith("--") else None


def _read_value(name: str, value: str | None, kind: str) -> Any:
    """What was typed, as YAML unless the setting is a text: `Lift: the #3 cup` has to arrive as it was typed.

    Shorthands: `--dry_run` alone means `--dry_run true`, and `--dataset.cameras video` a list of one.
    """
    if value is None and kind != "bool":
        raise ConfigError(f"--{name} needs a value behind it. --help lists all.")
    if kind.startswith("str"):
        return None if value == "null" and "None" in kind else value
    if kind.startswith("tuple") and not value.startswith("["):
        value = f"[{value}]"
    return True if value is None else _load_yaml(f"--{name}", value)


def _load_yaml(where: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    # Beside its own errors, those of what it builds: dates that are none, numbers too long, nesting too deep.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error


def _read_yaml(path: Path) -> list[tuple[str, str]]:
    """A YAML file's leaves as flag names and values. An empty file has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config_path: expected a YAML file, found none that can be read: {error}.") from error
    content = _load_yaml(f"--config_path: {path}", text)
    if not isinstance(content, dict | None):
        raise ConfigError(f"--config_path: {path} must hold settings (name: value), found a {type(content).__name__}.")
    if _has_too_many_values(content):
        raise ConfigError(f"--config_path: {path} stands for more than {_MOST_VALUES:,} values. Write its aliases out.")
    return list(_leaves(content or {}))


def _has_too_many_values(content: Any) -> bool:
    """Counts what aliases stand for, too; one that holds itself never ends."""
    waiting, count = [content], 0
    while waiting and count <= _MOST_VALUES:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict | list | set | tuple):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return count > _MOST_VALUES


def _leaves(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _as_typed(value)


def _as_typed(value: Any) -> str:
    if isinstance(value, str | datetime.date):
        return str(value)
    return json.dumps(value, default=str, ensure_ascii=False)


def _nested(settings: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """`{"engine.seed": 5}` as `{"engine": {"seed": 5}}`; of two values for one name the later one."""
    tree: dict[str, Any] = {}
    for name, value in settings:
        *parents, leaf = name.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return tree
