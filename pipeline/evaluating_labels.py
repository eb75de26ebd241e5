"""Evaluating labels from config to metrics: a label run on episodes whose actions were recorded, held against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import labelling
from pipeline.action_sources import open_action_source
from pipeline.config import LabelEvaluationConfig
from pipeline.evaluation.label_scores import LabelledEpisode, render_label_scores, score_labels
from pipeline.run import Prepared, Show
from pipeline.scoring import Scored, action_layout, by_episode, drive_and_score


def prepare(config: LabelEvaluationConfig) -> Prepared:
    """As for labelling; the dataset must have recorded actions, too. Raises a typed error for whatever does not fit."""
    prepared = labelling.prepare(config)
    open_action_source("recorded", prepared.dataset, prepared.recipe)
    return prepared


def evaluate(prepared: Prepared, show: Show | None = None) -> Scored:
    """Labels what has no record yet, then writes `metrics.json` beside the labels."""
    return drive_and_score(
        prepared,
        show,
        merge=labelling.merge_recorded,
        folder="labels",
        score=_score,
        render=lambda metrics: f"\n{render_label_scores(metrics)}",
    )


def labelled_episodes(prepared: Prepared, rows: pa.Table) -> list[LabelledEpisode]:
    """Each episode's labels in `rows`, beside what was recorded of the same steps."""
    recipe, dataset = prepared.recipe, prepared.dataset
    source = open_action_source("recorded", dataset, recipe)
    episodes = []
    for index, own in by_episode(rows):
        positions = own["frame_index"].to_numpy() // recipe.timebase.stride
        recorded = source.read(dataset, index, recipe.timebase)[positions]
        episodes.append(LabelledEpisode(index, np.array(own["action"].to_pylist()), recorded))
    return episodes


def _score(prepared: Prepared, rows: pa.Table) -> dict[str, Any]:
    return score_labels(labelled_episodes(prepared, rows), action_layout(prepared.recipe))
