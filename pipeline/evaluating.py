"""Evaluating from config to report: how far a checkpoint's rollouts can be trusted on held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.action_sources import ActionSource, open_action_source
from pipeline.config import EvaluationConfig, all_settings
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import compare, failed_thresholds, parse_thresholds, read_baseline
from pipeline.evaluation.figures import render_world_model_scores
from pipeline.evaluation.gallery import PANELS, gallery_path
from pipeline.evaluation.report import GalleryItem, write_report
from pipeline.evaluation.rows import evaluation_schema
from pipeline.evaluation.scores import score
from pipeline.outputs.manifest import write_json
from pipeline.outputs.merging import merge_records, read_merged
from pipeline.outputs.summary import Summary
from pipeline.recipe import EvaluationRecipe, make_recipe
from pipeline.rollout_plan import EvaluationSegment, held_out_episodes, plan_evaluation
from pipeline.run import Prepared, Show, drive, input_root, open_input, output_root, prepare_run
from pipeline.scoring import action_layout
from pipeline.stages.stage import Road

# Part of every key: raise it when what is measured changes.
_METRICS_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation came to. `metrics` is empty where nothing could be measured."""

    summary: Summary
    metrics: Mapping[str, Any]
    report: Path | None
    failed_thresholds: Sequence[str]

    @property
    def is_complete(self) -> bool:
        return self.summary.is_complete

    @property
    def exit_code(self) -> int:
        """The summary's, and 1 where a score is below what was asked for."""
        return self.summary.exit_code or int(bool(self.failed_thresholds))

    def render(self) -> str:
        """Summary and verdict for a terminal."""
        verdict = ["", render_world_model_scores(self.metrics), "", self.metrics["verdict"]] if self.metrics else []
        return "\n".join([self.summary.render(), *verdict, *(f"BELOW      {line}" for line in self.failed_thresholds)])


def prepare(config: EvaluationConfig) -> Prepared:
    """Checks everything that a wrong answer would be told too late about: baseline and thresholds, too."""
    parse_thresholds(config.fail_below)
    baseline = None if config.baseline is None else read_baseline(config.baseline)
    dataset = open_input(config)
    if baseline is not None and _dataset_of(baseline) not in (None, dataset.fingerprint()):
        raise ConfigError(
            f"{config.baseline}: this baseline was measured on another dataset ({baseline['dataset'].get('root')}), "
            f"whose episodes differ from those of {dataset.root}. Evaluate both checkpoints on one dataset."
        )
    episodes = held_out_episodes(
        dataset, episodes=config.dataset.episodes, fraction=config.held_out_fraction, seed=config.held_out_seed
    )
    recipe = make_recipe(config, dataset, mode="forward_dynamics")
    source = open_action_source("recorded", dataset, recipe)
    evaluation_recipe = EvaluationRecipe(
        **vars(recipe),
        chaining=config.chaining,
        actions=source.to_json(),
        num_samples=config.num_samples,
        lpips=_lpips_network(config.lpips),
        metrics_version=_METRICS_VERSION,
    )
    return prepare_run(
        config,
        dataset,
        evaluation_recipe,
        plan=lambda recipe: plan_evaluation(
            dataset,
            recipe,
            episodes=episodes,
            gallery_episodes=config.gallery_episodes,
            max_segment_bytes=config.max_segment_mib * 1024**2,
        ),
        road=lambda recipe: _road(config, recipe, source),
        # Each sample is drawn and looked back at; two counterfactuals are drawn; the recording is looked at.
        forwards_per_window=2 * config.num_samples + 3,
    )


def evaluate(prepared: Prepared, show: Show | None = None) -> Evaluation:
    """Measures what has no record yet, scores all records of the plan, writes `metrics.json` and the report."""
    measured = _Measured()
    summary = drive(prepared, lambda keys: _score(prepared, keys, measured), show)
    if not measured.metrics:
        return Evaluation(summary, {}, None, ("nothing could be measured",) if prepared.config.fail_below else ())
    failed = failed_thresholds(measured.metrics, parse_thresholds(prepared.config.fail_below))
    return Evaluation(summary, measured.metrics, measured.report, failed)


def _score(prepared: Prepared, keys: Sequence[str], measured: _Measured) -> _Measured:
    config, recipe, output_dir = prepared.config, prepared.recipe, prepared.output_dir
    schema = evaluation_schema(recipe.action_names)
    merge_records(prepared.store, keys, schema, output_dir / "frames", manifest=prepared.manifest, look=measured.add)
    if not keys:
        return measured
    rows = read_merged(output_dir / "frames")
    scores = score(rows, action_layout(recipe), lpips_status=_lpips_status(config.lpips, recipe, rows))
    metrics = scores | _facts(prepared)
    if config.baseline is not None:
        metrics["comparison"] = compare(metrics, read_baseline(config.baseline))
    write_json(output_dir / "metrics.json", metrics)
    measured.metrics, measured.report = metrics, _write_report(prepared, metrics, rows, set(keys))
    return measured


def _dataset_of(baseline: Mapping[str, Any]) -> str | None:
    """The fingerprint of what a baseline was measured on; None where it does not tell."""
    dataset = baseline.get("dataset")
    return dataset.get("fingerprint") if isinstance(dataset, Mapping) else None


class _Measured:
    """Counts frames on their way to the merged files, and holds what came of them."""

    def __init__(self) -> None:
        self.num_rows = self.num_frames = 0
        self.metrics: dict[str, Any] = {}
        self.report: Path | None = None

    def add(self, table: pa.Table) -> None:
        self.num_rows += table.num_rows
        self.num_frames += pa.compute.sum(pa.compute.equal(table["variant"], "ceiling")).as_py() or 0

    def to_json(self) -> dict[str, Any]:
        return {"frames": self.num_frames, "rows": self.num_rows}

    def lines(self) -> list[str]:
        return [f"compared   {self.num_frames} recorded frames, {self.num_rows} rows"]

    def warnings(self) -> list[str]:
        return []


def _road(config: EvaluationConfig, recipe: EvaluationRecipe, source: ActionSource) -> Road:
    # The stages take seconds to import.
    from pipeline.stages.evaluate import Evaluate
    from pipeline.stages.load import LoadEvaluation
    from pipeline.stages.record import RecordEvaluation

    output_dir = output_root(config)
    return Road(
        load=(LoadEvaluation, (input_root(config), config.dataset.format, recipe, source)),
        infer=(Evaluate, (output_dir, config.lpips)),
        record=(RecordEvaluation, (output_dir, recipe)),
    )


def _lpips_network(choice: str) -> str:
    """What the recipe says of LPIPS. Asked once, here: a run measures it everywhere or nowhere."""
    from pipeline.evaluation.frames import alexnet_path

    is_there = choice == "download" or (choice == "auto" and alexnet_path().is_file())
    return "alexnet" if is_there else ""


def _lpips_status(choice: str, recipe: EvaluationRecipe, rows: pa.Table) -> str:
    """One sentence for those who miss LPIPS."""
    from pipeline.evaluation.frames import MIN_LPIPS_PX, load_lpips

    if not recipe.lpips:
        return load_lpips(choice)[1]
    if rows["lpips"].null_count == rows.num_rows:
        return f"LPIPS needs frames of at least {MIN_LPIPS_PX} px on each side; these are smaller."
    return "LPIPS on AlexNet, with the linear heads of torchmetrics."


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What the figures are of: travels with them."""
    manifest = prepared.manifest
    return {
        "settings": all_settings(prepared.config),
        **{name: manifest[name] for name in ("run_id", "recipe", "checkpoint", "dataset", "versions")},
    }


def _write_report(prepared: Prepared, metrics: dict[str, Any], rows: pa.Table, recorded: set[str]) -> Path:
    shown = [segment for segment in prepared.plan.segments if segment.in_gallery and segment.key in recorded]
    return write_report(
        prepared.output_dir / "report",
        metrics=metrics,
        gallery=[_gallery_item(prepared, segment, metrics, rows) for segment in shown],
        settings=metrics["settings"],
        checkpoint=metrics["checkpoint"],
        dataset={"name": prepared.dataset.root.resolve().name, **metrics["dataset"]},
        comparison=metrics.get("comparison"),
    )


def _gallery_item(
    prepared: Prepared, segment: EvaluationSegment, metrics: Mapping[str, Any], rows: pa.Table
) -> GalleryItem:
    """What the report shows under one episode's videos: those of its first segment, sample 0."""
    recipe, layout = prepared.recipe, action_layout(prepared.recipe)
    indexes = np.arange(segment.label_stop + 1) * recipe.timebase.stride
    episode = next(entry for entry in metrics["per_episode"] if entry["episode_index"] == segment.episode_index)
    frames = rows.filter(
        (pa.compute.field("episode_index") == segment.episode_index)
        & (pa.compute.field("variant") == "recorded")
        & (pa.compute.field("sample") == 0)
        & (pa.compute.field("frame_index") <= int(indexes[-1]))
    ).sort_by("frame_index")
    starts = (0,) if recipe.chaining == "autoregressive" else _redrawn_from(segment, recipe.action_chunk)
    return GalleryItem(
        episode_index=segment.episode_index,
        task=segment.task,
        fps=recipe.timebase.model_fps,
        num_frames=len(indexes),
        videos={panel: prepared.output_dir / gallery_path(segment.key, panel) for panel in PANELS},
        frame_indexes=indexes.tolist(),
        rollout_starts=starts,
        scores={**episode["recorded"], "obedience": episode["drop"], **(episode["agreement"] or {})},
        psnr=[None, *frames["psnr"].to_pylist()],
        action_names=recipe.action_names,
        action_units=[layout.unit(column) for column in range(recipe.raw_action_dim)],
        actions_given=frames["action_given"].to_pylist(),
        actions_recovered=frames["action_recovered"].to_pylist(),
    )


def _redrawn_from(segment: EvaluationSegment, action_chunk: int) -> list[int]:
    """Video frames after which another window's frames follow."""
    ends = [min(start + action_chunk, segment.label_stop) for start in segment.window_starts[:-1]]
    return [0, *ends]
