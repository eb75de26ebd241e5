"""What every run over a dataset has in common: it is prepared before a model is loaded, and driven over the road.

The vehicles differ (`labelling`, `rollouts`, `evaluation`): what a recipe says, what a segment is, what its record
becomes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.cosmos3.config import checkpoint_fingerprint, read_checkpoint_config, resolve_checkpoint
from pipeline.datasets import RobotVideoDataset, open_dataset
from pipeline.errors import StageError
from pipeline.outputs.manifest import make_manifest, write_manifest
from pipeline.outputs.records import RecordStore, remove_leftovers
from pipeline.outputs.summary import Tally
from pipeline.plan import Plan, Segment, count_windows, estimate_flops
from pipeline.recipe import Recipe
from pipeline.stages.stage import Road

# What one H100-class GPU sustains on such matrix products in bf16, roughly half of its peak; not measured here.
_SUSTAINED_FLOPS = 400e12

Progress = Callable[[Tally], None]


@dataclass(frozen=True)
class Prepared:
    """A run that was found possible: everything known before a model is loaded."""

    config: RunConfig
    dataset: RobotVideoDataset
    checkpoint: Path
    recipe: Recipe
    plan: Plan
    missing: list[Segment]
    road: Callable[[], Road]  # a function, because its stages take seconds to import
    forwards_per_window: int  # samples and counterfactuals of one window, for the estimate

    @property
    def output_dir(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def store(self) -> RecordStore:
        return RecordStore(self.output_dir)

    def recorded_keys(self) -> list[str]:
        """Keys of the plan that have a record by now, in the plan's order."""
        recorded = self.store.keys()
        return [segment.key for segment in self.plan.segments if segment.key in recorded]

    def manifest(self) -> dict[str, Any]:
        return make_manifest(self.config, self.recipe, self.dataset, self.checkpoint)


def open_input(config: RunConfig) -> RobotVideoDataset:
    """The dataset of a run. Raises DatasetError when it cannot be one."""
    return open_dataset(Path(config.dataset.root).expanduser(), config.dataset.format)


def input_root(config: RunConfig) -> Path:
    """Where the dataset is, as every process of the run can find it."""
    return Path(config.dataset.root).expanduser().resolve()


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
    planned = plan(recipe)
    missing = planned.missing(RecordStore(Path(config.output_dir)).keys())
    if missing and not config.dry_run:
        # Imported only now: a mistake above is told without waiting for transformers.
        from pipeline.cosmos3.checkpoint import check_checkpoint

        check_checkpoint(checkpoint)
    return Prepared(config, dataset, checkpoint, recipe, planned, missing, lambda: road(recipe), forwards_per_window)


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


def drive(prepared: Prepared, progress: Progress) -> Tally:
    """Sends what has no record yet down the road, and tells what came of it."""
    prepared.output_dir.mkdir(parents=True, exist_ok=True)
    write_manifest(prepared.output_dir, prepared.manifest())
    tally = Tally(prepared.missing)
    remove_leftovers(prepared.output_dir)
    started = time.monotonic()
    if prepared.missing:
        try:
            _send(prepared, tally, progress)
        except StageError as error:
            tally.stopped_by = str(error)
    tally.wall_s = time.monotonic() - started
    return tally


def _send(prepared: Prepared, tally: Tally, progress: Progress) -> None:
    from pipeline.stages.engine_stage import EngineSettings
    from pipeline.stages.on_ray import ray_session, stream

    config = prepared.config
    # A hub id travels as it is: other nodes of a cluster have the snapshot under a path of their own.
    is_local = Path(config.engine.checkpoint).expanduser().is_dir()
    settings = EngineSettings(
        checkpoint=str(prepared.checkpoint.resolve()) if is_local else config.engine.checkpoint,
        device=config.engine.device,
        batch_size=config.engine.batch_size,
        text_cache_bytes=config.engine.text_cache_mib * 1024**2,
    )
    with ray_session(config.ray):
        for status in stream(prepared.missing, prepared.recipe, prepared.road(), settings=settings, config=config.ray):
            tally.add(status)
            progress(tally)


def _estimate(prepared: Prepared) -> str:
    model = read_checkpoint_config(prepared.checkpoint).transformer
    num_windows = count_windows(prepared.missing) * prepared.forwards_per_window
    flops = estimate_flops(prepared.recipe, model, num_windows)
    seconds = flops / _SUSTAINED_FLOPS
    duration = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"at most {flops:.2g} FLOP: {duration} of one H100-class GPU at {_SUSTAINED_FLOPS / 1e12:g} TFLOP/s"
