"""Labelling from config to summary: windows of frames become pseudo-actions."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import LabelConfig
from pipeline.outputs.checks import LabelChecks
from pipeline.outputs.labels import merge_labels
from pipeline.outputs.summary import Summary
from pipeline.plan import make_plan
from pipeline.recipe import Recipe, make_recipe
from pipeline.run import Prepared, Show, drive, input_root, open_input, output_root, prepare_run
from pipeline.stages.stage import Road


def prepare(config: LabelConfig) -> Prepared:
    """Opens the dataset, resolves and checks every setting, plans. Raises a typed error for whatever does not fit."""
    dataset = open_input(config)
    return prepare_run(
        config,
        dataset,
        make_recipe(config, dataset, mode="inverse_dynamics"),
        plan=lambda recipe: make_plan(
            dataset, recipe, episodes=config.dataset.episodes, max_segment_bytes=config.max_segment_mib * 1024**2
        ),
        road=lambda recipe: _road(config, recipe),
    )


def label(prepared: Prepared, show: Show | None = None) -> Summary:
    """Infers what has no record yet, merges all records of the plan, and accounts for every segment."""
    return drive(prepared, lambda keys: merge_recorded(prepared, keys), show)


def merge_recorded(prepared: Prepared, keys: Sequence[str]) -> LabelChecks:
    """The labels of these records in the output folder's `labels`, in place of what is there."""
    folder = prepared.output_dir / "labels"
    return merge_labels(prepared.store, keys, prepared.recipe, folder, prepared.manifest)


def _road(config: LabelConfig, recipe: Recipe) -> Road:
    # The stages take seconds to import.
    from pipeline.stages.infer import Infer
    from pipeline.stages.load import Load
    from pipeline.stages.record import RecordLabels

    return Road(
        load=(Load, (input_root(config), config.dataset.format, recipe)),
        infer=(Infer, ()),
        record=(RecordLabels, (output_root(config), recipe)),
    )
