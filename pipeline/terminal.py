"""What a job shows in a terminal, and how it begins and ends: the same for all jobs over a dataset."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from tqdm import tqdm

from pipeline.command_line import parse_config
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from pipeline.printable import error_line, printable, printable_lines
from pipeline.progress import Progress, Standing
from pipeline.progress_file import every
from pipeline.stopping import EXIT_STOPPED, Stopped

if TYPE_CHECKING:
    from pipeline.run import Prepared, Show

LINE_EVERY_S = 30.0
_DRAW_EVERY_S = 1.0
_LEAST_BETWEEN_DRAWS_S = 0.1
_DEMO_FOLDER = Path("outputs/demo")


def run_job[ConfigT: RunConfig](config_class: type[ConfigT], job: Callable[[ConfigT, bool], int]) -> int:
    """Calls `job(config, is_demo)` with what the command line says and returns its exit code.

    The demo's dataset and checkpoint are filled in where neither is named. A typed error becomes a line on stderr and
    exit code 2. A run that is stopped before it has anything in hand says so, without a traceback, with exit code 3.
    """
    try:
        config = parse_config(config_class)
        is_demo = config.is_demo
        if is_demo:
            # Heavy imports wait until the settings are known to be possible.
            from pipeline.demo import NOTE, fill_in_demo

            print(f"Demo: rendering a dataset under {_DEMO_FOLDER}. {NOTE}", flush=True)
            config = fill_in_demo(config, _DEMO_FOLDER)
        return job(config, is_demo)
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt):
        print("Stopped before anything was in hand. The same command goes on from here.", file=sys.stderr)
        return EXIT_STOPPED


class Result(Protocol):
    """What a run came to."""

    def render(self) -> str: ...


def carry_out[ResultT: Result](
    prepared: Prepared, work: Callable[[Prepared, Show], ResultT], *, doing: str
) -> ResultT | None:
    """Shows the plan, then the progress of `work`, then its summary. With --dry_run the plan alone: gives None."""
    from pipeline.run import describe_plan

    print(printable_lines(describe_plan(prepared)), flush=True)
    if prepared.config.dry_run:
        return None
    # With --log_format json stderr holds one object a line, progress included, and nothing else.
    with ProgressBar(doing, is_quiet=prepared.config.log_format == "json") as show:
        summary = work(prepared, show)
    print(printable_lines(summary.render()))
    return summary


class ProgressBar:
    """A bar over windows in a terminal, a line about every 30 s elsewhere: what a run calls with its progress.

    It is drawn from a thread as well, because a run at a standstill calls nobody and has to look like one. With
    `is_quiet` nothing is shown.
    """

    def __init__(
        self,
        doing: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_quiet: bool = False,
    ) -> None:
        """`stream` is stderr by default; `clock` is the one that the progress is fed by."""
        self._doing = printable(doing)
        self._stream = stream or sys.stderr
        self._clock = clock
        self._is_quiet = is_quiet
        self._is_terminal = self._stream.isatty()
        self._progress: Progress | None = None  # until the run calls: it may be refused before it begins
        self._tqdm: tqdm | None = None
        self._shown_s = 0.0
        self._lock = threading.RLock()  # a signal's handler may want to say something while a line is being shown
        self._drawing = contextlib.ExitStack()

    @property
    def bar(self) -> Self | None:
        """Itself where there is a bar that other output must not run across."""
        return self if self._is_terminal and not self._is_quiet else None

    def write_above(self, line: str) -> None:
        """Shows a line without tearing the bar."""
        with self._lock, _unless_closed():
            if self._tqdm is not None:
                self._tqdm.write(line, file=self._stream)
            else:
                print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        if not self._is_quiet:
            self._drawing.enter_context(every(_DRAW_EVERY_S, self.refresh))
        return self

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            if self._progress is None:
                self._progress = progress
                self._shown_s = self._clock() - (_LEAST_BETWEEN_DRAWS_S if self.bar else 0)
        self.refresh()

    def __exit__(self, *exception: object) -> None:
        self._drawing.close()
        self._show(at_least_s=0)
        with self._lock, _unless_closed():
            if self._tqdm is not None:
                self._tqdm.close()

    def refresh(self) -> None:
        """Shows how things stand, also when nothing came; not more often than somebody would want to see it."""
        self._show(at_least_s=_LEAST_BETWEEN_DRAWS_S if self.bar else LINE_EVERY_S)

    def _show(self, *, at_least_s: float) -> None:
        """Unless it was shown within the last `at_least_s`, or there is nothing to do."""
        now_s = self._clock()
        with self._lock:
            if self._is_quiet or self._progress is None or now_s - self._shown_s < at_least_s:
                return
            self._shown_s = now_s
            standing = self._progress.standing(now_s)
            if standing.windows_total:
                with _unless_closed():
                    self._draw(standing)

    def _draw(self, standing: Standing) -> None:
        if self.bar is None:
            print(f"{self._doing} {standing.line()}", file=self._stream, flush=True)
            return
        if self._tqdm is None:
            self._tqdm = _bar(standing.windows_total, self._doing, self._stream)
        self._tqdm.n = standing.windows_done
        self._tqdm.set_description_str(f"{self._doing} {standing.percent:3d}%", refresh=False)
        self._tqdm.set_postfix_str(standing.pace(), refresh=False)
        self._tqdm.refresh()


def _bar(total: int, doing: str, stream: TextIO) -> tqdm:
    """tqdm's own rate and share are left out: the one stays when nothing comes any more, the other is rounded up."""
    return tqdm(
        total=total,
        desc=doing,
        file=stream,
        dynamic_ncols=True,
        bar_format="{desc}|{bar}| {n_fmt}/{total_fmt} windows{postfix}",
    )


def _unless_closed() -> contextlib.AbstractContextManager:
    """A terminal that was closed is no reason to stop: the run goes on, unseen."""
    return contextlib.suppress(OSError, ValueError)
