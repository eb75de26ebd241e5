"""One labelling run from config to summary: plan → load → infer → record → merge."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import LabelConfig
from pipeline.cosmos3.config import checkpoint_fingerprint, read_checkpoint_config, resolve_checkpoint
from pipeline.datasets import RobotVideoDataset, open_dataset
from pipeline.errors import StageError
from pipeline.outputs.labels import merge_labels
from pipeline.outputs.manifest import make_manifest, write_manifest
from pipeline.outputs.records import RecordStore
from pipeline.outputs.summary import Summary, Tally, write_summary
from pipeline.plan import Plan, Segment, count_windows, estimate_flops, make_plan
from pipeline.recipe import Recipe, make_recipe

# What one H100-class GPU sustains on such matrix products in bf16, roughly half of its peak; not measured here.
_SUSTAINED_FLOPS = 400e12

Progress = Callable[[Tally], None]


@dataclass(frozen=True)
class Prepared:
    """A run that was found possible: everything known before a model is loaded."""

    config: LabelConfig
    dataset: RobotVideoDataset
    checkpoint: Path
    recipe: Recipe
    plan: Plan
    missing: list[Segment]


def prepare(config: LabelConfig) -> Prepared:
    """Opens the dataset, resolves and checks every setting, plans. Raises a typed error for whatever does not fit."""
    dataset = open_dataset(Path(config.dataset.root).expanduser(), config.dataset.format)
    # Made without the checkpoint at first, so that a wrong setting is told before anything is downloaded.
    recipe = make_recipe(config, dataset, checkpoint_fingerprint="")
    checkpoint = resolve_checkpoint(config.engine.checkpoint, with_weights=not config.dry_run)
    recipe = replace(recipe, checkpoint_fingerprint=checkpoint_fingerprint(checkpoint))
    plan = make_plan(
        dataset, recipe, episodes=config.dataset.episodes, max_segment_bytes=config.max_segment_mib * 1024**2
    )
    missing = plan.missing(RecordStore(Path(config.output_dir)).keys())
    if missing and not config.dry_run:
        # Imported only now: a mistake above is told without waiting for transformers.
        from pipeline.cosmos3.checkpoint import check_checkpoint

        check_checkpoint(checkpoint)
    return Prepared(config, dataset, checkpoint, recipe, plan, missing)


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


def label(prepared: Prepared, progress: Progress = lambda tally: None) -> Summary:
    """Infers what has no record yet, merges all records of the plan, and accounts for every segment."""
    config, recipe, plan = prepared.config, prepared.recipe, prepared.plan
    output_dir = Path(config.output_dir)
    store = RecordStore(output_dir)
    manifest = make_manifest(config, recipe, prepared.dataset, prepared.checkpoint)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_manifest(output_dir, manifest)
    tally = Tally(prepared.missing)
    started = time.monotonic()
    if prepared.missing:
        try:
            _infer(prepared, tally, progress)
        except StageError as error:
            tally.stopped_by = str(error)
    tally.wall_s = time.monotonic() - started
    recorded = store.keys()
    keys = [segment.key for segment in plan.segments if segment.key in recorded]
    checks = merge_labels(store, keys, recipe, output_dir / "labels", manifest)
    summary = Summary.of(prepared.dataset, recipe, plan, tally, checks, recorded=set(keys))
    write_summary(output_dir, summary)
    return summary


def _estimate(prepared: Prepared) -> str:
    model = read_checkpoint_config(prepared.checkpoint).transformer
    flops = estimate_flops(prepared.recipe, model, count_windows(prepared.missing))
    seconds = flops / _SUSTAINED_FLOPS
    duration = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"at most {flops:.2g} FLOP: {duration} of one H100-class GPU at {_SUSTAINED_FLOPS / 1e12:g} TFLOP/s"


def _infer(prepared: Prepared, tally: Tally, progress: Progress) -> None:
    # These take seconds to import, and a run with nothing left to do, or with a mistake in it, needs neither.
    from pipeline.stages.infer import EngineSettings
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
        for status in stream(
            prepared.missing,
            prepared.recipe,
            dataset_root=str(prepared.dataset.root.resolve()),
            dataset_format=config.dataset.format,
            output_dir=str(Path(config.output_dir).resolve()),
            settings=settings,
            config=config.ray,
        ):
            tally.add(status)
            progress(tally)
