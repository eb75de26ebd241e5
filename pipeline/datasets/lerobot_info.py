"""LeRobot's `meta/info.json`: the fields we need, checked once. Field names are the format's own (v2.0 to v3.0)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from upath import UPath

from pipeline.datasets.json_lines import read_json_object
from pipeline.errors import DatasetError
from pipeline.storage import inside, stays_inside

META = "meta"
INFO_PATH = f"{META}/info.json"

_SLOWEST_HZ, _FASTEST_HZ = 1e-3, 1e4
_MAX_WIDTH = 2**24  # numbers in one feature's row: a picture of 16 megapixels

# In every LeRobot dataset's features; they index the recording and record nothing themselves.
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NUMERIC_DTYPES = ("float", "int", "uint", "bool")


@dataclass(frozen=True)
class LeRobotInfo:
    """A checked `info.json`. `cameras` are those declared, whether or not they have files."""

    file: Path | UPath
    codebase_version: str
    fps: float
    cameras: tuple[str, ...]
    image_features: tuple[str, ...]  # pictures kept inside Parquet, which this pipeline does not read
    features: dict[str, int]  # numeric feature → width
    video_path: str
    data_path: str
    chunks_size: int | None  # v2.x needs it, see `require_chunks_size`
    total_episodes: int | None

    @classmethod
    def read(cls, root: Path | UPath) -> LeRobotInfo:
        """Read and check `root/meta/info.json`. Raises `DatasetError` naming the file and the field."""
        file = inside(root, INFO_PATH, said_by=root)
        raw = read_json_object(file)
        features = _features(file, raw)
        return cls(
            file=file,
            codebase_version=_text(file, raw, "codebase_version"),
            fps=_frame_rate(file, raw, "fps"),
            cameras=_named(features, "video"),
            image_features=_named(features, "image"),
            features=_numeric_widths(file, features),
            video_path=_text(file, raw, "video_path"),
            data_path=_text(file, raw, "data_path"),
            chunks_size=raw.get("chunks_size"),
            total_episodes=raw.get("total_episodes"),
        )

    def require_chunks_size(self) -> int:
        """Episodes per chunk folder in v2.x. Raises `DatasetError` unless it is a positive integer."""
        if not isinstance(self.chunks_size, int) or isinstance(self.chunks_size, bool) or self.chunks_size < 1:
            raise _wrong_field(self.file, "chunks_size", "a positive integer", self.chunks_size)
        return self.chunks_size

    def format_path(self, field: str, **values: int | str) -> str:
        """A path template ("video_path" or "data_path") filled in, relative to the root.

        Raises `DatasetError` when the template does not fit its format version, or leads out of the dataset.
        """
        template = getattr(self, field)
        names = template_names(template)
        if names is None or not names <= set(values):
            known = " ".join(f"{{{name}}}" for name in values)
            raise _wrong_field(self.file, field, f"a template of {known}", template)
        try:
            path = template.format(**values)
        except ValueError as error:  # a width for a name
            raise _wrong_field(self.file, field, "a template with widths for numbers only", template) from error
        if not stays_inside(path):
            raise _wrong_field(self.file, field, "a path inside the dataset", path)
        return path


@cache
def template_names(template: str) -> frozenset[str] | None:
    """The names in braces; None unless each is a bare name, or one with a small width such as `{file_index:03d}`.

    `str.format` would also follow attributes, and fill a gigabyte with spaces for `{file_index:999999999}`.
    """
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template)]
    except ValueError:
        return None
    named = [(name, spec, conversion) for name, spec, conversion in fields if name is not None]
    if not all(
        name.isidentifier() and conversion is None and re.fullmatch(r"0?\d{0,2}d?", spec)
        for name, spec, conversion in named
    ):
        return None
    return frozenset(name for name, _, _ in named)


def _wrong_field(file: Path | UPath, field: str, expected: str, found: Any) -> DatasetError:
    return DatasetError(f"{file}: expected {field!r} to be {expected}, found {found!r}; mend the file")


def _text(file: Path | UPath, raw: dict[str, Any], field: str) -> str:
    value = raw.get(field)
    if not isinstance(value, str) or not value:
        raise _wrong_field(file, field, "a text", value)
    return value


def _frame_rate(file: Path | UPath, raw: dict[str, Any], field: str) -> float:
    value = raw.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _SLOWEST_HZ <= value <= _FASTEST_HZ:
        raise _wrong_field(file, field, f"a number of frames per second, {_SLOWEST_HZ} to {_FASTEST_HZ:g}", value)
    return float(value)


def _features(file: Path | UPath, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    features = raw.get("features")
    if not isinstance(features, dict) or not features:
        raise _wrong_field(file, "features", "an object of features", features)
    for name, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise _wrong_field(file, f"features.{name}", "an object with a dtype", feature)
    return features


def _named(features: dict[str, dict[str, Any]], dtype: str) -> tuple[str, ...]:
    return tuple(sorted(name for name, feature in features.items() if feature["dtype"] == dtype))


def _numeric_widths(file: Path | UPath, features: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {
        name: _width(file, name, feature.get("shape"))
        for name, feature in sorted(features.items())
        if feature["dtype"].startswith(_NUMERIC_DTYPES) and name not in _BOOKKEEPING
    }


def _width(file: Path | UPath, name: str, shape: Any) -> int:
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise _wrong_field(file, f"features.{name}.shape", "a list of positive integers", shape)
    if math.prod(shape) > _MAX_WIDTH:
        raise _wrong_field(file, f"features.{name}.shape", f"of at most {_MAX_WIDTH} numbers", shape)
    return math.prod(shape)
