"""Scores: the rows of an evaluation as one dictionary for JSON, in the form that `metrics_schema` describes key by key.

Everything is averaged within an episode first, then over episodes. Needs no torch, so rows on disk can be scored again
anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluation.agreement import ActionLayout, describe_agreement, headline_errors, measure_agreement
from pipeline.evaluation.averages import FrameScores, average_samples
from pipeline.evaluation.metrics_schema import METRICS_SCHEMA
from pipeline.evaluation.rows import LOWER_IS_BETTER, METRICS, VARIANTS
from pipeline.evaluation.statistics import Estimate, episodes_needed, estimates, mean_or_none, number_or_none
from pipeline.evaluation.verdict import verdict

DIFFERENCES_DB = (0.25, 0.5, 1.0)
POWER, ALPHA = 0.8, 0.05

_DISOBEYING = ("other_actions", "zero_motion")
_NAMES = tuple(METRICS)
_SIGNS = np.array([-1.0 if name in LOWER_IS_BETTER else 1.0 for name in _NAMES])
_STEPS_AT_ONCE = 64
_INDEPENDENT = (
    "Two checkpoints whose scores spread over episodes as this one's do and are not correlated, so that differences "
    "spread √2 times as far. Checkpoints that find the same episodes hard need fewer episodes."
)


def score(rows: pa.Table, layout: ActionLayout, *, lpips_status: str) -> dict[str, Any]:
    """What the rows of `evaluation_schema` say, as `metrics_schema.SCHEMA` lays out; no NaN and no infinity in it.

    `lpips_status` is the sentence that `load_lpips` gave. Raises ResultError when the rows hold no frame of variant
    `recorded`, an unknown variant, a row twice, or numbers that are missing or not finite where they have to be.
    """
    scores = average_samples(rows)
    measured = measure_agreement(rows, scores.episode_index, layout)
    agreement = None if measured is None else describe_agreement(*measured, layout)
    by_episode = None if measured is None else headline_errors(measured[0]["recorded"], layout)
    per_variant = _per_variant(scores)
    drops = {variant: _paired(scores, "recorded", variant) for variant in _DISOBEYING}
    metrics = {
        "schema": METRICS_SCHEMA,
        "episodes": len(scores.episode_index),
        "frames": int(scores.num_frames().sum()),
        "num_samples": scores.num_samples,
        **_shortcuts(per_variant, drops, agreement),
        "metrics": per_variant,
        "drops": drops,
        "gains": {"copy": _paired(scores, "recorded", "copy"), "ceiling": _paired(scores, "ceiling", "recorded")},
        "horizon": list(_horizon(scores)),
        "agreement": agreement,
        "differences": _independent_differences(per_variant),
        "per_episode": list(_per_episode(scores, by_episode)),
        "lpips_status": lpips_status,
    }
    return metrics | {"verdict": verdict(metrics)}


def detectable_differences(stds: Mapping[str, float | None], assumption: str) -> dict[str, Any]:
    """How many episodes each of DIFFERENCES_DB needs, by metric, given the spread of paired differences in dB."""
    needed = {
        name: [
            {
                "difference_db": difference,
                "episodes_needed": episodes_needed(std, difference, power=POWER, alpha=ALPHA),
            }
            for difference in DIFFERENCES_DB
        ]
        for name, std in stds.items()
    }
    return {"assumption": assumption, "power": POWER, "alpha": ALPHA} | needed


def _per_variant(scores: FrameScores) -> dict[str, dict[str, Any]]:
    num_episodes = len(scores.episode_index)
    flat = iter(estimates(scores.by_episode.reshape(num_episodes, -1)))
    of_samples = iter(scores.sample_std.reshape(num_episodes, -1).T)
    found: dict[str, dict[str, Any]] = {name: {} for name in _NAMES}
    for variant in scores.variants:
        for name in _NAMES:
            spread = mean_or_none(next(of_samples))
            found[name][variant] = next(flat).to_json() | {"std_over_samples": spread}
    return {
        name: {
            "unit": METRICS[name],
            "higher_is_better": name not in LOWER_IS_BETTER,
            **{variant: found[name].get(variant) for variant in VARIANTS},
        }
        for name in _NAMES
    }


def _paired(scores: FrameScores, better: str, worse: str) -> dict[str, Any] | None:
    """How much better one variant is than the other, by metric: positive is better, for LPIPS too."""
    differences = scores.differences(better, worse)
    if differences is None:
        return None
    found = estimates(differences * _SIGNS)
    return {name: entry.to_json() for name, entry in zip(_NAMES, found, strict=True)}


def _shortcuts(
    per_variant: Mapping[str, Any], drops: Mapping[str, Any], agreement: Mapping[str, Any] | None
) -> dict[str, float | None]:
    obedience = {variant: drop and drop["moving_psnr"]["mean"] for variant, drop in drops.items()}
    intervals = (agreement or {}).get("intervals") or {}
    means = {name: entry and entry["mean"] for name, entry in intervals.items()}
    return {
        **{name: per_variant[name]["recorded"]["mean"] for name in _NAMES},
        "obedience": obedience["other_actions"],
        "obedience_zero_motion": obedience["zero_motion"],
        "agreement_translation_rmse_m": means.get("translation_rmse_m"),
        "agreement_rotation_rmse_rad": means.get("rotation_rmse_rad"),
        "agreement_gripper": means.get("gripper_agreement"),
    }


def _horizon(scores: FrameScores) -> Iterator[dict[str, Any]]:
    steps, num_episodes = scores.steps, len(scores.episode_index)
    for start in range(0, len(steps), _STEPS_AT_ONCE):
        block = steps[start : start + _STEPS_AT_ONCE]
        values = np.stack([scores.by_step(step) for step in block], axis=1)  # [E, S, V, M]
        found = iter(estimates(values.reshape(num_episodes, -1)))
        for index, step in enumerate(block):
            reached = np.isfinite(values[:, index, scores.variants.index("recorded"), 0])
            yield {"step": int(step), "num_episodes": int(reached.sum())} | _of_variants(scores, found)


def _of_variants(scores: FrameScores, found: Iterator[Estimate]) -> dict[str, Any]:
    def bounds(entry: Estimate) -> dict[str, float | None]:
        return {"mean": entry.mean, "low": entry.low, "high": entry.high}

    return {variant: {name: bounds(next(found)) for name in _NAMES} for variant in scores.variants}


def _independent_differences(per_variant: Mapping[str, Any]) -> dict[str, Any]:
    stds = {name: per_variant[name]["recorded"]["std_over_episodes"] for name in ("psnr", "moving_psnr")}
    return detectable_differences(
        {name: None if std is None else float(np.sqrt(2) * std) for name, std in stds.items()}, _INDEPENDENT
    )


def _per_episode(scores: FrameScores, agreement: Mapping[str, np.ndarray | None] | None) -> Iterator[dict[str, Any]]:
    num_frames = scores.num_frames()
    drops = scores.differences("recorded", "other_actions")
    moving = _NAMES.index("moving_psnr")
    for episode, episode_index in enumerate(scores.episode_index):
        means = {
            variant: dict(zip(_NAMES, map(number_or_none, scores.by_episode[episode, position]), strict=True))
            for position, variant in enumerate(scores.variants)
        }
        errors = {name: None if of is None else number_or_none(of[episode]) for name, of in (agreement or {}).items()}
        yield {
            "episode_index": int(episode_index),
            "task": scores.tasks[episode],
            "frames": int(num_frames[episode]),
            **means,
            "drop": None if drops is None else number_or_none(drops[episode, moving]),
            "agreement": errors or None,
        }
