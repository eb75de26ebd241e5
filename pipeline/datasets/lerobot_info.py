"""LeRobot's `meta/info.json`: the fields we need, checked once. Field names are the format's own (v2.0 to v3.0)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import DatasetError

INFO_PATH = Path("meta/info.json")

# In every LeRobot dataset's features; they index the recording and record nothing themselves.
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NUMERIC_DTYPES = ("float", "int", "uint", "bool")


@dataclass(frozen=True)
class LeRobotInfo:
    """A checked `info.json`. `cameras` are those declared, whether or not they have files."""

    file: Path
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
    def read(cls, root: Path) -> LeRobotInfo:
        """Read and check `root/meta/info.json`. Raises `DatasetError` naming the file and the field."""
        file = root / INFO_PATH
        raw = _read_object(file)
        features = _features(file, raw)
        return cls(
            file=file,
            codebase_version=_text(file, raw, "codebase_version"),
            fps=_positive_number(file, raw, "fps"),
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
        if not isinstance(self.chunks_size, int) or self.chunks_size < 1:
            raise _wrong_field(self.file, "chunks_size", "a positive integer", self.chunks_size)
        return self.chunks_size

    def format_path(self, field: str, **values: int | str) -> str:
        """A path template ("video_path" or "data_path") filled in, relative to the root.

        Raises `DatasetError` when the template does not fit its format version, or leads out of the dataset.
        """
        template = getattr(self, field)
        try:
            path = template.format(**values)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            known = " ".join(f"{{{name}}}" for name in values)
            raise _wrong_field(self.file, field, f"a template of {known}", template) from error
        # Links are left alone: the Hugging Face cache is made of them.
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise _wrong_field(self.file, field, "a path inside the dataset", path)
        return path


def _read_object(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: expected a JSON file, found {error}; fetch it again") from error
    if not isinstance(raw, dict):
        raise DatasetError(f"{file}: expected a JSON object, found {type(raw).__name__}; fetch it again")
    return raw


def _wrong_field(file: Path, field: str, expected: str, found: Any) -> DatasetError:
    return DatasetError(f"{file}: expected {field!r} to be {expected}, found {found!r}; mend the file")


def _text(file: Path, raw: dict[str, Any], field: str) -> str:
    value = raw.get(field)
    if not isinstance(value, str) or not value:
        raise _wrong_field(file, field, "a text", value)
    return value


def _positive_number(file: Path, raw: dict[str, Any], field: str) -> float:
    value = raw.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise _wrong_field(file, field, "a positive number", value)
    return float(value)


def _features(file: Path, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    features = raw.get("features")
    if not isinstance(features, dict) or not features:
        raise _wrong_field(file, "features", "an object of features", features)
    for name, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise _wrong_field(file, f"features.{name}", "an object with a dtype", feature)
    return features


def _named(features: dict[str, dict[str, Any]], dtype: str) -> tuple[str, ...]:
    return tuple(sorted(name for name, feature in features.items() if feature["dtype"] == dtype))


def _numeric_widths(file: Path, features: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {
        name: _width(file, name, feature.get("shape"))
        for name, feature in sorted(features.items())
        if feature["dtype"].startswith(_NUMERIC_DTYPES) and name not in _BOOKKEEPING
    }


def _width(file: Path, name: str, shape: Any) -> int:
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise _wrong_field(file, f"features.{name}.shape", "a list of positive integers", shape)
    return math.prod(shape)
