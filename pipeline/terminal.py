"""What a job shows in a terminal, and how it begins and ends: the same for all jobs over a dataset."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from pipeline.command_line import parse_config
from pipeline.config import RunConfig
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.outputs.summary import Tally
    from pipeline.run import Prepared

_DEMO_FOLDER = Path("outputs/demo")


def run_job[ConfigT: RunConfig](config_class: type[ConfigT], job: Callable[[ConfigT, bool], int]) -> int:
    """Calls `job(config, is_demo)` with what the command line says and returns its exit code.

    The demo's dataset and checkpoint are filled in where neither is named. A typed error becomes a line on stderr and
    exit code 2.
    """
    try:
        config = parse_config(config_class)
        is_demo = config.is_demo
        if is_demo:
            # Heavy imports wait until the settings are known to be possible.
            from pipeline.demo import WARNING, fill_in_demo

            print(f"Demo: rendering a dataset and a tiny checkpoint under {_DEMO_FOLDER}. {WARNING}", flush=True)
            config = fill_in_demo(config, _DEMO_FOLDER)
        return job(config, is_demo)
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


class Result(Protocol):
    """What a run came to."""

    def render(self) -> str: ...


def carry_out[ResultT: Result](
    prepared: Prepared, work: Callable[[Prepared, Callable[[Tally], None]], ResultT], *, doing: str
) -> ResultT | None:
    """Shows the plan, then the progress of `work`, then its summary. With --dry_run the plan alone: gives None."""
    from pipeline.run import describe_plan

    print(describe_plan(prepared), flush=True)
    if prepared.config.dry_run:
        return None
    with ProgressBar(prepared, doing) as progress:
        summary = work(prepared, progress)
    print(summary.render())
    return summary


class ProgressBar:
    """A bar over windows; called with the tally after every segment that came to an end."""

    def __init__(self, prepared: Prepared, doing: str) -> None:
        from pipeline.plan import count_windows

        total = count_windows(prepared.missing)
        self._bar = tqdm(total=total, unit="window", desc=doing, disable=not total, smoothing=0.05)

    def __enter__(self) -> ProgressBar:
        return self

    def __call__(self, tally: Tally) -> None:
        self._bar.update(tally.windows_done - self._bar.n)
        if tally.failures:
            self._bar.set_postfix_str(f"{len(tally.failures)} segments failed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
