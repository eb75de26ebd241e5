"""What all stages share: one row in, one row out, and the one place where an exception becomes a failed segment."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError

Row = dict[str, Any]


class Stage:
    """A callable over rows. A row that failed earlier passes through; its payload is replaced by an empty one.

    Subclasses set `name`, `consumes` (payload columns that end here), `empty` (what a failed row carries instead of
    the payload that this stage makes, of the same types) and implement `process`.
    """

    name: str
    consumes: tuple[str, ...] = ()
    empty: Mapping[str, Any]

    def __call__(self, row: Row) -> Row:
        kept = {column: value for column, value in row.items() if column not in self.consumes}
        if row["error"]:
            return {**kept, **self.empty, f"{self.name}_s": 0.0}
        started = time.perf_counter()
        try:
            produced = {**self.process(row), "error_type": "", "error": ""}
        except Exception as error:
            produced = {**self.empty, "error_type": type(error).__name__, "error": describe(error)}
        return {**kept, **produced, f"{self.name}_s": time.perf_counter() - started}

    def process(self, row: Row) -> Row:
        """The payload that this stage adds to `row`. May raise: that fails this segment, and no other."""
        raise NotImplementedError


@dataclass(frozen=True)
class Road:
    """The three stages that a segment passes, each with what its constructor takes.

    `infer` is an EngineStage: recipe and engine settings come first, and `arguments` of its own follow.
    """

    load: tuple[type[Stage], tuple]
    infer: tuple[type[Stage], tuple]
    record: tuple[type[Stage], tuple]


def describe(error: Exception) -> str:
    """A user's error as it is; one of ours with the place where it came from."""
    if isinstance(error, PipelineError):
        return str(error) or type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error} (at {frame.filename}:{frame.lineno} in {frame.name})"
