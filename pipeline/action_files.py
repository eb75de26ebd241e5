"""Action files: one sequence of actions as JSON, in the two formats that users of Cosmos3 know. Owns both directions.

`{"shape": [T, D], "dtype": "float32", "data": [[…], …]}` is written and read, `{"action_chunks": [[[…], …], …]}` is
read. Both are PhyAI's (its documentation of the action path). What the numbers mean, units above all, is the caller's
to know: a file only says it in keys that reading passes over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ActionFileError
from pipeline.storage import open_path, read_bytes, write_atomically

_FORMATS = '{"shape": [T, D], "dtype": "float32", "data": [[…], …]} or {"action_chunks": [[[…], …], …]}'
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_RESERVED = ("shape", "dtype", "data", "action_chunks")


def read_action_file(path: str | Path, *, raw_action_dim: int) -> np.ndarray:
    """The actions of a file of either format, float32 [T, raw_action_dim]; chunks follow each other in time.

    Other keys of the file are passed over. Raises ActionFileError when the file is missing, is not JSON or has neither
    format, when its `shape` contradicts its `data`, and for rows that are none: of unlike widths, of another width than
    `raw_action_dim`, with anything in them but finite numbers of float32's range.
    """
    path = open_path(path)
    rows = list(_rows(path, _read_object(path)))
    _check_widths(path, rows, raw_action_dim)
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, which is refused below
        actions = np.array([[_number(path, where, value) for where, value in row] for row in rows], dtype=np.float32)
    _check_finite(path, actions, rows)
    return actions


def write_action_file(path: str | Path, actions: np.ndarray, *, about: Mapping[str, Any] | None = None) -> None:
    """Writes actions [T, D] as `shape`, `dtype`, `data`, at once or not at all; float32 values come back bit for bit.

    `about` are further keys (names, units, …), for people and programs that want them. Raises ActionFileError unless
    the actions are T >= 1 rows of D >= 1 numbers that are finite in float32.
    """
    about = dict(about or {})
    assert not set(about) & set(_RESERVED), f"{sorted(set(about) & set(_RESERVED))} are the format's own keys"
    with np.errstate(over="ignore"):
        values = np.asarray(actions).astype(np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ActionFileError(
            f"{path}: expected actions [T >= 1, D >= 1] of finite numbers, found shape {list(values.shape)} with "
            f"{np.count_nonzero(~np.isfinite(values))} that are not finite; nothing is written."
        )
    head = {"shape": list(values.shape), "dtype": "float32", **about}
    # A row a line: such a file can be read by people and compared by line.
    data = ",\n  ".join(json.dumps(row) for row in values.tolist())
    text = f'{json.dumps(head, ensure_ascii=False, allow_nan=False)[:-1]}, "data": [\n  {data}\n]}}\n'
    write_atomically(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))


# A row is a list of (where in the file, value), a place is written as one would type it in Python.
_Row = list[tuple[str, Any]]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(path))
    except OSError as error:
        raise ActionFileError(f"{path}: cannot read the action file ({error}). Check its path.") from error
    except (ValueError, RecursionError) as error:
        raise ActionFileError(f"{path}: an action file must be JSON, but: {error}. Expected {_FORMATS}.") from error
    if not isinstance(value, dict):
        raise ActionFileError(f"{path}: expected {_FORMATS}, found a JSON {type(value).__name__}.")
    return value


def _rows(path: Path, content: dict[str, Any]) -> Iterator[_Row]:
    match "data" in content, "action_chunks" in content:
        case True, False:
            _check_dtype(path, content)
            rows = list(_rows_of(path, "data", content["data"]))
            _check_shape(path, content, rows)
            yield from rows
        case False, True:
            for where, chunk in _entries(path, "action_chunks", content["action_chunks"], "chunks"):
                yield from _rows_of(path, where, chunk)
        case True, True:
            raise ActionFileError(f"{path}: has both 'data' and 'action_chunks'. Keep the one that is meant.")
        case _:
            found = ", ".join(map(repr, content)) or "no key"
            raise ActionFileError(f"{path}: has neither 'data' nor 'action_chunks', but {found}. Expected {_FORMATS}.")


def _rows_of(path: Path, where: str, value: Any) -> Iterator[_Row]:
    for row_where, row in _entries(path, where, value, "rows"):
        yield _entries(path, row_where, row, "numbers")


def _entries(path: Path, where: str, value: Any, of_what: str) -> _Row:
    if not isinstance(value, list) or not value:
        found = "an empty one" if value == [] else f"a {type(value).__name__}"
        raise ActionFileError(f"{path}: {where} must be a list of {of_what}, found {found}. Expected {_FORMATS}.")
    return [(f"{where}[{index}]", entry) for index, entry in enumerate(value)]


def _check_dtype(path: Path, content: dict[str, Any]) -> None:
    if (dtype := content.get("dtype", "float32")) not in _DTYPES:
        raise ActionFileError(f"{path}: dtype must be one of {', '.join(_DTYPES)}, found {dtype!r}. Actions are reals.")


def _check_shape(path: Path, content: dict[str, Any], rows: list[_Row]) -> None:
    widths = sorted({len(row) for row in rows})
    if "shape" in content and len(widths) == 1 and content["shape"] != [len(rows), widths[0]]:
        raise ActionFileError(
            f"{path}: shape says {content['shape']}, data has {[len(rows), widths[0]]}. The file was cut or edited: "
            "write it again, or mend the one that is wrong."
        )


def _check_widths(path: Path, rows: list[_Row], raw_action_dim: int) -> None:
    width = len(rows[0])
    for row in rows:
        if len(row) != width:
            raise ActionFileError(
                f"{path}: expected rows of one width, found {width} numbers in the first and {len(row)} in "
                f"{_place_of(row)}. Mend that row."
            )
    if width != raw_action_dim:
        raise ActionFileError(
            f"{path}: expected actions of width {raw_action_dim}, found {width}. Use a file of this embodiment, or set "
            "domain_name or raw_action_dim to what the file holds."
        )


def _place_of(row: _Row) -> str:
    return row[0][0].rpartition("[")[0]


def _number(path: Path, where: str, value: Any) -> float:
    if type(value) not in (int, float):  # a bool is an int to isinstance
        raise ActionFileError(f"{path}: {where} must be a number, found {json.dumps(value)[:40]}.")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _check_finite(path: Path, actions: np.ndarray, rows: list[_Row]) -> None:
    wrong = np.argwhere(~np.isfinite(actions))
    if len(wrong):
        row, column = wrong[0]
        where, value = rows[row][column]
        raise ActionFileError(
            f"{path}: {where} (row {row}, column {column}) is {str(value)[:40]}, not finite in float32; {len(wrong)} "
            "such values in all. Remove those rows or repair them."
        )
