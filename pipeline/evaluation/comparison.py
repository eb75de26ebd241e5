"""Against an earlier evaluation, and against thresholds. Owns what a difference between checkpoints and a gate are.

A threshold is the worst value that passes. Scores that are better when higher fail below it; `lpips` and the two
root mean square errors are better when lower and fail above it. A score that was not measured fails.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, did_you_mean
from pipeline.evaluation.metrics_schema import METRICS_SCHEMA
from pipeline.evaluation.rows import METRICS
from pipeline.evaluation.scores import detectable_differences
from pipeline.evaluation.statistics import differences_estimate, sign_flip_p_value
from pipeline.printable import listed
from pipeline.storage import open_path, read_bytes

# Shortcut of the metrics → unit.
GATES = {
    **METRICS,
    "obedience": "dB",
    "obedience_zero_motion": "dB",
    "agreement_translation_rmse_m": "m",
    "agreement_rotation_rmse_rad": "rad",
    "agreement_gripper": "",
}
FAIL_ABOVE = frozenset({"lpips", "agreement_translation_rmse_m", "agreement_rotation_rmse_rad"})

# Shortcut → where an episode's entry in `per_episode` has it.
_OF_EPISODES: Mapping[str, tuple[str, ...]] = {
    **{name: ("recorded", name) for name in METRICS},
    "obedience": ("drop",),
    "agreement_translation_rmse_m": ("agreement", "translation_rmse_m"),
    "agreement_rotation_rmse_rad": ("agreement", "rotation_rmse_rad"),
    "agreement_gripper": ("agreement", "gripper_agreement"),
}
_LARGEST_SCORE = 1e9  # far above any; what is squared and added up stays finite
_PAIRED = "The same pair of checkpoints: the spread of their paired differences over the episodes that both have."


def read_baseline(path: str | Path) -> dict[str, Any]:
    """The metrics file of an earlier evaluation.

    Raises ConfigError when it cannot be read, is not JSON, has another schema, or lists no episodes to pair with.
    """
    path = open_path(path)
    advice = f"Give the metrics file that an evaluation wrote (schema {METRICS_SCHEMA!r})."
    try:
        baseline = json.loads(read_bytes(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the baseline ({error.strerror or error}). {advice}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: a baseline must be JSON, but: {error}. {advice}") from error
    schema = baseline.get("schema") if isinstance(baseline, dict) else None
    if schema != METRICS_SCHEMA:
        raise ConfigError(
            f"{path}: expected a baseline of schema {METRICS_SCHEMA!r}, found {schema!r}. Evaluate the baseline's "
            "checkpoint again with this version."
        )
    if not _has_episodes(baseline.get("per_episode")):
        raise ConfigError(
            f"{path}: expected the scores of each episode under 'per_episode', found none. Comparing pairs episodes, "
            "so means alone do not do. Evaluate the baseline's checkpoint again."
        )
    _check_scores(path, baseline["per_episode"])
    return baseline


def compare(metrics: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """These metrics minus the baseline's, paired over the episodes that both have, by shortcut.

    Each entry is an estimate (metrics_schema) with `unit`, `higher_is_better` and `p`, the two-sided p-value of a
    sign-flip test, null below six episodes; it is null where no common episode has the score in both. Beside them:
    `num_common_episodes`, `num_only_here`, `num_only_in_baseline`, `warning` (a sentence, or null) and `differences`
    (as in the metrics, now from the spread of these pairs). Raises ConfigError when no episode is common.
    """
    ours, theirs = (_by_episode(side["per_episode"]) for side in (metrics, baseline))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ConfigError(
            f"The baseline has no episode in common with this evaluation: here {listed(sorted(ours))}, there "
            f"{listed(sorted(theirs))}. Evaluate both checkpoints on the same episodes of the same dataset."
        )
    compared = {
        name: _difference(name, [ours[e] for e in common], [theirs[e] for e in common]) for name in _OF_EPISODES
    }
    stds = {name: (compared[name] or {}).get("std_over_episodes") for name in ("psnr", "moving_psnr")}
    return {
        "num_common_episodes": len(common),
        "num_only_here": len(ours) - len(common),
        "num_only_in_baseline": len(theirs) - len(common),
        "warning": _warning(metrics.get("settings"), baseline.get("settings")),
        **compared,
        "differences": detectable_differences(stds, _PAIRED),
    }


def parse_thresholds(texts: Sequence[str]) -> dict[str, float]:
    """`["psnr=20", "lpips=0.3"]` as {name: worst value that passes}; names are the keys of GATES.

    Raises ConfigError for an unknown name, a name given twice, or a value that is no finite number.
    """
    thresholds: dict[str, float] = {}
    for text in texts:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator:
            raise ConfigError(f"Expected a threshold as name=number, for instance psnr=20, found {text!r}.")
        if name not in GATES:
            raise ConfigError(f"Unknown score {name!r}.{did_you_mean(name, GATES)} Known: {', '.join(GATES)}.")
        if name in thresholds:
            raise ConfigError(f"Two thresholds for {name}. Keep the one that is meant.")
        thresholds[name] = _finite(name, value)
    return thresholds


def failed_thresholds(metrics: Mapping[str, Any], thresholds: Mapping[str, float]) -> list[str]:
    """One sentence for each threshold that is missed, in the order of `thresholds`; equality passes."""
    failures = []
    for name, threshold in thresholds.items():
        value, unit = metrics[name], f" {GATES[name]}".rstrip()
        if value is None:
            failures.append(f"{name} was not measured, so it cannot pass {threshold:g}{unit}: {_reason(name, metrics)}")
        elif name in FAIL_ABOVE and value > threshold:
            failures.append(f"{name} is {value:.6g}{unit}, above the threshold of {threshold:g}{unit}.")
        elif name not in FAIL_ABOVE and value < threshold:
            failures.append(f"{name} is {value:.6g}{unit}, below the threshold of {threshold:g}{unit}.")
    return failures


def _reason(name: str, metrics: Mapping[str, Any]) -> str:
    if name == "lpips":
        return str(metrics["lpips_status"])
    if name == "moving_psnr":
        return "nothing moves in these episodes."
    if name in ("obedience", "obedience_zero_motion"):
        variant = "other_actions" if name == "obedience" else "zero_motion"
        if metrics["drops"][variant] is None:
            return f"variant {variant} was not rolled out."
        return f"no moving pixel was scored in both the recorded variant and {variant}."
    if metrics["agreement"] is None:
        return "no actions were recovered from the rollouts."
    return "this embodiment's layout has no such columns, or not in that unit."


def _finite(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"The threshold of {name} must be a number, found {value!r}. Write for instance {name}=0.5.")
    return number


def _has_episodes(per_episode: Any) -> bool:
    return (
        isinstance(per_episode, list)
        and len(per_episode) > 0
        and all(isinstance(entry, dict) and type(entry.get("episode_index")) is int for entry in per_episode)
    )


def _check_scores(path: Path, per_episode: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError for an episode that is there twice, and for a score that is no number."""
    if len(_by_episode(per_episode)) < len(per_episode):
        raise ConfigError(f"{path}: expected each episode once under 'per_episode'. Evaluate the baseline again.")
    for entry in per_episode:
        for name in _OF_EPISODES:
            score = _raw_value(entry, name)
            if score is not None and not (type(score) in (int, float) and abs(score) <= _LARGEST_SCORE):
                raise ConfigError(
                    f"{path}: episode {entry['episode_index']} should have a number as {name}, found "
                    f"{repr(score)[:40]}. Evaluate the baseline's checkpoint again."
                )


def _by_episode(per_episode: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {entry["episode_index"]: entry for entry in per_episode}


def _difference(
    name: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    first, second = (np.array([_value(entry, name) for entry in side]) for side in (ours, theirs))
    found = differences_estimate(first, second)
    if found.mean is None:
        return None
    return found.to_json() | {
        "unit": GATES[name],
        "higher_is_better": name not in FAIL_ABOVE,
        "p": sign_flip_p_value(first - second),
    }


def _value(entry: Any, name: str) -> float:
    score = _raw_value(entry, name)
    return math.nan if score is None else float(score)


def _raw_value(entry: Any, name: str) -> Any:
    for key in _OF_EPISODES[name]:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return entry


def _warning(ours: Any, theirs: Any) -> str | None:
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return None
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if not names:
        return None
    told = ", ".join(f"{name} ({theirs.get(name)!r} before, {ours.get(name)!r} now)" for name in names)
    return f"The settings differ, so part of the difference may be theirs: {told}."
