"""A config from command line and YAML: one schema for both, and a clear word for every mistake."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml
from draccus.utils import DecodingError, ParsingError

from pipeline.config import settings_of
from pipeline.errors import ConfigError, did_you_mean


def parse_config[ConfigT](config_class: type[ConfigT], arguments: Sequence[str] | None = None) -> ConfigT:
    """The config that command line and `--config_path` describe; flags win over the file.

    A YAML file is read as if its keys were flags typed before the others. Raises ConfigError for an unknown flag or key
    (with the closest known one), a value of the wrong type, or one that is impossible.
    """
    known = dict(settings_of(config_class))
    arguments = _with_config_files(list(sys.argv[1:] if arguments is None else arguments))
    for argument in arguments:
        name = argument.removeprefix("--").split("=", 1)[0]
        if argument.startswith("--") and name not in {*known, "help"}:
            raise ConfigError(f"Unknown setting --{name}.{did_you_mean(name, known)} --help lists all.")
    try:
        return draccus.parse(config_class, args=_spelt_out(arguments, known))
    except DecodingError as error:
        raise ConfigError(f"Bad setting {' '.join(str(error).split())}. --help lists all.") from error
    except ParsingError as error:
        # draccus wraps what a config's own checks raise.
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"Bad settings: {error}. --help lists all.") from error


def _with_config_files(arguments: list[str]) -> list[str]:
    """`--config_path FILE` replaced by the flags that the file stands for, in front of all others."""
    from_files, others = [], []
    waiting = iter(arguments)
    for argument in waiting:
        if argument.split("=", 1)[0] != "--config_path":
            others.append(argument)
            continue
        path = argument.split("=", 1)[1] if "=" in argument else next(waiting, "")
        from_files += [part for name, value in _read_yaml(Path(path)) for part in (f"--{name}", value)]
    return from_files + others


def _read_yaml(path: Path) -> list[tuple[str, str]]:
    """A YAML file's leaves as flag names and values. An empty file has none."""
    if not path.is_file():
        raise ConfigError(f"--config_path: expected a YAML file, found no file at {str(path)!r}.")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config_path: {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"--config_path: {path} must hold settings (name: value), found a {type(content).__name__}.")
    return list(_leaves(content or {}))


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)


def _spelt_out(arguments: list[str], known: dict[str, dataclasses.Field]) -> list[str]:
    """Shorthands written out: `--dry_run` alone means `--dry_run true`, and `--dataset.cameras video` a list of one.

    Values are read as YAML, so a text is quoted: `Lift: the #3 cup` has to arrive as it was typed.
    """
    separate = [part for argument in arguments for part in _split_flag(argument)]
    explicit: list[str] = []
    for position, argument in enumerate(separate):
        previous = separate[position - 1] if position else ""
        following = separate[position + 1 : position + 2]
        if _type_of(previous, known).startswith("tuple") and not argument.startswith("["):
            argument = f"[{argument}]"
        if _type_of(previous, known).startswith("str") and argument != "null" and not argument.startswith("--"):
            argument = json.dumps(argument, ensure_ascii=False)
        explicit.append(argument)
        if _type_of(argument, known) == "bool" and (not following or following[0].startswith("--")):
            explicit.append("true")
    return explicit


def _split_flag(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--") else [argument]


def _type_of(argument: str, known: dict[str, dataclasses.Field]) -> str:
    setting = known.get(argument.removeprefix("--")) if argument.startswith("--") else None
    return str(setting.type) if setting is not None else ""
