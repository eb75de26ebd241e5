"""What all stages share: one row in, one row out, and the one place where an exception becomes a failed segment."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError

Row = dict[str, Any]

# What `error_type` says of a segment that nobody worked on, because the run was being stopped.
DROPPED = "Dropped"


class SickProcess(BaseException):
    """This process can no longer be trusted with any segment, such as after a CUDA error: a fresh one has to go on.

    No `Exception`, because it is not the fault of the segment at hand, and nothing may mistake it for one.
    """


@dataclass(frozen=True)
class Pulse:
    """How busy an engine is."""

    busy_s: float  # of its steps, since it was made
    num_waiting: int  # windows
    batch_size: int  # of the latest step


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
            produced = {**self.process(row), "error_type": "", "error": "", "failed_stage": ""}
        except Exception as error:
            failure = {"error_type": type(error).__name__, "error": describe(error), "failed_stage": self.name}
            produced = {**self.empty, **failure}
        return {**kept, **produced, f"{self.name}_s": time.perf_counter() - started}

    def drop(self, row: Row) -> Row:
        """The same row without any work: the run is being stopped, and the segment is left for the next one."""
        if row["error"]:
            return self(row)
        return self({**row, "error_type": DROPPED, "error": "The run was stopped before this segment's turn."})

    def pulse(self) -> Pulse | None:
        """Of the engine in this stage; None where there is none."""
        return None

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

    @property
    def stages(self) -> tuple[tuple[type[Stage], tuple], ...]:
        """All three, in the order in which a segment passes them."""
        return self.load, self.infer, self.record


def describe(error: Exception) -> str:
    """A user's error as it is; one of ours with the place where it came from."""
    if isinstance(error, PipelineError):
        return str(error) or type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error} (at {frame.filename}:{frame.lineno} in {frame.name})"
