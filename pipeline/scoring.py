"""A run whose merged rows are scored: what the evaluations of labels and of a policy have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluation.agreement import ActionLayout
from pipeline.outputs.manifest import write_json
from pipeline.outputs.merging import read_merged
from pipeline.outputs.summary import Checks, Summary
from pipeline.recipe import Recipe
from pipeline.run import Prepared, Show, drive


@dataclass(frozen=True)
class Scored:
    """`metrics` is empty, and nothing is told of it, where there was nothing to score."""

    summary: Summary
    metrics: Mapping[str, Any]
    told: str

    @property
    def exit_code(self) -> int:
        return self.summary.exit_code

    def render(self) -> str:
        """Summary and scores for a terminal."""
        return "\n".join([self.summary.render(), *([self.told] if self.told else [])])


def drive_and_score[PreparedT: Prepared](
    prepared: PreparedT,
    show: Show | None,
    *,
    merge: Callable[[PreparedT, Sequence[str]], Checks],
    folder: str,
    score: Callable[[PreparedT, pa.Table], dict[str, Any]],
    render: Callable[[Mapping[str, Any]], str],
) -> Scored:
    """Does what has no record yet, merges all records into `folder`, and writes `metrics.json` beside it."""
    metrics: dict[str, Any] = {}

    def finish(keys: Sequence[str]) -> Checks:
        checks = merge(prepared, keys)
        if keys:
            metrics.update(score(prepared, read_merged(prepared.output_dir / folder)))
            write_json(prepared.output_dir / "metrics.json", metrics)
        return checks

    summary = drive(prepared, finish, show)
    return Scored(summary, metrics, render(metrics) if metrics else "")


def by_episode(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Each episode's rows that have an action, in their order; episodes in the order of their first row."""
    rows = rows.filter(rows["action_valid"])
    if not rows.num_rows:
        return
    _, first_rows, inverse = np.unique(rows["episode_index"].to_numpy(), return_index=True, return_inverse=True)
    begins = first_rows[inverse]
    order = np.argsort(begins, kind="stable")
    rows, bounds = rows.take(order), np.flatnonzero(np.diff(begins[order])) + 1
    for start, stop in zip([0, *bounds], [*bounds, rows.num_rows], strict=True):
        own = rows.slice(start, stop - start)
        yield own["episode_index"][0].as_py(), own


def action_layout(recipe: Recipe) -> ActionLayout:
    """What the action's columns mean; of a width of the user's own nothing is known."""
    is_known = recipe.raw_action_dim == recipe.embodiment.raw_action_dim
    return ActionLayout(recipe.action_names, recipe.rot6d_starts, recipe.embodiment.gripper_columns if is_known else ())
