"""What every run over a dataset has in common: it is prepared before a model is loaded, and driven over the road.

The vehicles differ (`labelling`, `rollouts`, `evaluating`): what a recipe says, what a segment is, what its record
becomes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from pipeline.bookkeeping import Bookkeeper
from pipeline.config import RunConfig
from pipeline.cosmos3.config import checkpoint_fingerprint, read_checkpoint_config, resolve_checkpoint
from pipeline.datasets import RobotVideoDataset, open_dataset
from pipeline.errors import StageError
from pipeline.outputs.accounting import Account, account
from pipeline.outputs.failures import FailureStore, Outcome
from pipeline.outputs.lease import Lease, hold_lease
from pipeline.outputs.manifest import make_manifest, write_manifest
from pipeline.outputs.plans import write_plan
from pipeline.outputs.records import RecordStore, remove_leftovers
from pipeline.outputs.summary import Checks, NotMerged, Summary, Tally, write_summary
from pipeline.plan import Plan, Segment, count_windows, estimate_flops
from pipeline.progress import Progress, duration
from pipeline.progress_file import ProgressFile, every
from pipeline.recipe import Recipe
from pipeline.run_log import LOG_EVERY_S, Bar, RunLog
from pipeline.stages.register import Attendance
from pipeline.stages.stage import Road
from pipeline.stopping import Stop, Stopped, stop_on_signals
from pipeline.storage import absolute, open_path

# What one H100-class GPU sustains on such matrix products in bf16, roughly half of its peak; not measured here.
_SUSTAINED_FLOPS = 400e12


class Show(Protocol):
    """Whoever shows a run's progress. Called with it now and then, from the run's own thread."""

    bar: Bar | None  # what log lines must not run across

    def __call__(self, progress: Progress) -> None: ...


class Silent:
    """Shows nothing."""

    bar: Bar | None = None

    def __call__(self, progress: Progress) -> None:
        pass


@dataclass(frozen=True)
class Prepared:
    """A run that was found possible: everything known before a model is loaded."""

    config: RunConfig
    dataset: RobotVideoDataset
    checkpoint: Path
    recipe: Recipe
    plan: Plan
    missing: list[Segment]  # when it was prepared; `drive` looks again once it holds the folder
    road: Callable[[], Road]  # a function, because its stages take seconds to import
    forwards_per_window: int  # samples and counterfactuals of one window, for the estimate

    @property
    def output_dir(self) -> UPath:
        return open_path(self.config.output_dir)

    @property
    def store(self) -> RecordStore:
        return RecordStore(self.output_dir)

    @property
    def failures(self) -> FailureStore:
        return FailureStore(self.output_dir)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return make_manifest(self.config, self.recipe, self.dataset, self.checkpoint)

    def recorded_keys(self) -> list[str]:
        """Keys of the plan that have a record by now, in the plan's order."""
        recorded = self.store.keys()
        return [segment.key for segment in self.plan.segments if segment.key in recorded]

    def left_to_do(self, recorded: set[str]) -> list[Segment]:
        """Planned and neither recorded nor failed; with `retry_failed` just those that failed."""
        missing = self.plan.missing(recorded)
        failed = self.failures.keys()
        return [segment for segment in missing if (segment.key in failed) == self.config.retry_failed]


def open_input(config: RunConfig) -> RobotVideoDataset:
    """The dataset of a run. Raises DatasetError when it cannot be one."""
    return open_dataset(config.dataset.root, config.dataset.format)


def input_root(config: RunConfig) -> str:
    """Where the dataset is, as every process of the run can find it."""
    return absolute(config.dataset.root)


def output_root(config: RunConfig) -> str:
    """Where results go, as every process of the run can find it."""
    return absolute(config.output_dir)


def prepare_run(
    config: RunConfig,
    dataset: RobotVideoDataset,
    recipe: Recipe,
    *,
    plan: Callable[[Recipe], Plan],
    road: Callable[[Recipe], Road],
    forwards_per_window: int = 1,
) -> Prepared:
    """Adds the checkpoint's fingerprint to `recipe`, plans with it, and looks up what is left to do.

    `recipe` comes without the fingerprint, so that a wrong setting is told before anything is downloaded. Raises a
    typed error for whatever does not fit.
    """
    checkpoint = resolve_checkpoint(config.engine.checkpoint, with_weights=not config.dry_run)
    recipe = replace(recipe, checkpoint_fingerprint=checkpoint_fingerprint(checkpoint))
    prepared = Prepared(
        config, dataset, checkpoint, recipe, plan(recipe), [], lambda: road(recipe), forwards_per_window
    )
    prepared = replace(prepared, missing=prepared.left_to_do(prepared.store.keys()))
    if prepared.missing and not config.dry_run:
        # Imported only now: a mistake above is told without waiting for transformers.
        from pipeline.cosmos3.checkpoint import check_checkpoint

        check_checkpoint(checkpoint)
    return prepared


def describe_plan(prepared: Prepared) -> str:
    """What would be done, in words: `--dry_run` prints just this."""
    plan, recipe, missing = prepared.plan, prepared.recipe, prepared.missing
    base = recipe.timebase
    lines = [
        f"dataset    {prepared.dataset.root} ({prepared.dataset.format}), cameras {', '.join(recipe.cameras)}",
        f"timebase   dataset {base.dataset_fps:g} fps, model {base.model_fps:g} fps, one frame in {base.stride}",
        f"plan       {plan.num_episodes} episodes, {len(plan.segments)} segments, {plan.num_windows} windows of "
        f"{recipe.action_chunk} actions; left to do: {len(missing)} segments, {count_windows(missing)} windows",
        f"estimate   {_estimate(prepared)}",
    ]
    return "\n".join(lines)


def drive(prepared: Prepared, finish: Callable[[Sequence[str]], Checks], show: Show | None = None) -> Summary:
    """Sends what is left down the road, has `finish` merge the records of the plan, and accounts for every segment.

    The output folder is this run's alone meanwhile. `finish` gets the recorded keys in the plan's order; where the run
    was stopped it is left for the next one. Raises LeaseError where another run holds the folder, or took it.
    """
    show, run_id = show or Silent(), prepared.recipe.run_id
    with (
        stop_on_signals(prepared.config.grace_s) as stop,
        hold_lease(prepared.output_dir, run_id=run_id, on_lost=stop.request, say=_say(show)) as lease,
        RunLog(prepared.output_dir, run_id, log_format=prepared.config.log_format, bar=show.bar) as log,
    ):
        taken_from = lease.taken_from.describe() if lease.taken_from else ""
        log.lease_taken(holder=lease.holder.describe(), taken_from=taken_from)
        write_manifest(prepared.output_dir, prepared.manifest)
        write_plan(prepared.output_dir, run_id, prepared.plan)
        tally = Tally(prepared.left_to_do(remove_leftovers(prepared.output_dir)))
        progress = Progress(run_id, tally.num_windows, started_s=time.monotonic())
        with ProgressFile(prepared.output_dir, run_id).following(progress):
            _log_start(prepared, tally, log)
            _send(prepared, tally, _Teller(tally, progress, show, log), stop)
            lease.check()
            progress.enter("merging")
            summary = _settle(prepared, tally, finish, lease)
            progress.enter("ended")
        log.run_ended(exit_code=summary.exit_code, wall_s=tally.wall_s, segments=summary.segments, limit=summary.limit)
    return summary


def _settle(prepared: Prepared, tally: Tally, finish: Callable[[Sequence[str]], Checks], lease: Lease) -> Summary:
    """After the road: pack, merge, and hold the plan against what is there."""
    store, failures = prepared.store, prepared.failures
    planned = [segment.key for segment in prepared.plan.segments]
    store.compact(order=planned)
    recorded = store.keys()
    outcomes = failures.read(_in_order(planned, failures.keys()))
    accounted = account(planned, recorded, outcomes)
    failures.remove(accounted.overtaken_failures)
    checks: Checks = NotMerged()
    try:
        if not tally.signal:
            checks = finish(_in_order(planned, recorded))
    except Stopped as stopped:
        tally.signal, tally.stopped_by = str(stopped), f"{stopped} came while the results were merged."
    lease.check()
    summary = Summary.of(
        prepared.dataset,
        prepared.recipe,
        prepared.plan,
        tally,
        checks,
        account=accounted,
        outcomes=_unrecorded(outcomes, accounted),
        max_failed_fraction=prepared.config.max_failed_fraction,
    )
    write_summary(prepared.output_dir, summary)
    return summary


def _in_order(planned: Sequence[str], some: set[str]) -> list[str]:
    return [key for key in planned if key in some]


def _unrecorded(outcomes: Sequence[Outcome], accounted: Account) -> list[Outcome]:
    overtaken = set(accounted.overtaken_failures)
    return [outcome for outcome in outcomes if outcome.key not in overtaken]


class _Teller:
    """Passes on how the run stands: to whoever shows it, to the log, and to those who look from elsewhere."""

    def __init__(self, tally: Tally, progress: Progress, show: Show, log: RunLog) -> None:
        self.tally, self.progress, self.log = tally, progress, log
        self._show = show

    def tell(self) -> None:
        tally = self.tally
        self.progress.feed(
            time.monotonic(),
            tally.windows_done,
            len(tally.outcomes) - tally.num_quarantined,
            tally.num_quarantined,
            windows_lost=tally.windows_lost,
        )
        self._show(self.progress)

    def watch(self, attendance: Attendance) -> None:
        """What the register saw."""
        self.tally.engine_busy_s, self.tally.actors = attendance.busy_s, dict(attendance.actors)
        restarts = max(0, sum(attendance.births.values()) - sum(attendance.actors.values()))
        if restarts > self.tally.restarts:
            self.log.engine_restarted(reason=f"{restarts - self.tally.restarts} processes died and were replaced")
            self.tally.restarts = restarts


def _log_start(prepared: Prepared, tally: Tally, log: RunLog) -> None:
    log.run_started(
        job=prepared.recipe.mode,
        output_dir=str(prepared.output_dir),
        segments=len(tally.segments),
        windows=tally.num_windows,
        settings=prepared.manifest["settings"],
    )


def _send(prepared: Prepared, tally: Tally, teller: _Teller, stop: Stop) -> None:
    """What is left to do, down the road. However it ends, the tally knows why."""
    started = time.monotonic()
    log = teller.log
    teller.tell()
    try:
        if tally.segments:
            with (
                stop.draining(),
                Bookkeeper(prepared, tally, log) as books,
                every(LOG_EVERY_S, lambda: log.progress(teller.progress.standing(time.monotonic()))),
            ):
                _stream(prepared, tally, books, teller, stop)
    except StageError as error:
        tally.stopped_by = str(error)
    if stop.is_requested:
        tally.signal = stop.signal
        tally.stopped_by = f"{stop.signal} came before every segment had come to an end."
    tally.wall_s = time.monotonic() - started


def _stream(prepared: Prepared, tally: Tally, books: Bookkeeper, teller: _Teller, stop: Stop) -> None:
    from pipeline.stages.engine_stage import EngineSettings
    from pipeline.stages.on_ray import Errand, ray_session, stream

    config = prepared.config
    # A hub id or a URL travels as it is: other nodes of a cluster have their copy under a path of their own.
    is_local = Path(config.engine.checkpoint).expanduser().is_dir()
    settings = EngineSettings(
        checkpoint=str(prepared.checkpoint.resolve()) if is_local else config.engine.checkpoint,
        device=config.engine.device,
        batch_size=config.engine.batch_size,
        text_cache_bytes=config.engine.text_cache_mib * 1024**2,
    )
    with ray_session(config.ray):
        stop.listen()  # again: Ray takes SIGTERM for itself
        errand = Errand(prepared.recipe, prepared.road(), settings, config.ray, stop, teller.watch)
        was_told = False
        for status in stream(tally.segments, errand):
            if stop.is_requested and not was_told:
                was_told = True
                teller.progress.enter("stopping")
                teller.log.stopping(signal_name=stop.signal, grace_s=stop.grace_s)
            if status is not None:
                books.take(status)
                teller.tell()
        if not stop.is_requested:
            books.finish()


def _say(show: Show) -> Callable[[str], None]:
    """Where a line for the user goes before the run's log is open."""
    return show.bar.write_above if show.bar is not None else print


def _estimate(prepared: Prepared) -> str:
    model = read_checkpoint_config(prepared.checkpoint).transformer
    num_windows = count_windows(prepared.missing) * prepared.forwards_per_window
    flops = estimate_flops(prepared.recipe, model, num_windows)
    seconds = flops / _SUSTAINED_FLOPS
    told = duration(seconds) if seconds >= 1 else "under 1 s"
    return f"at most {flops:.2g} FLOP: {told} of one H100-class GPU at {_SUSTAINED_FLOPS / 1e12:g} TFLOP/s"
