"""The metrics: known means, drops and gains, and that they hold what their schema says and JSON can keep."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from evaluation_rows import LAYOUT, LPIPS_STATUS, action, frame, full_table, table

from pipeline.errors import ResultError
from pipeline.evaluation.metrics_schema import ESTIMATE_KEYS, METRICS_SCHEMA, SCHEMA
from pipeline.evaluation.rows import METRICS, VARIANTS
from pipeline.evaluation.scores import DIFFERENCES_DB, score
from pipeline.evaluation.statistics import estimate

SOURCES = ("ceiling", "always_the_mean")


def scored(rows) -> dict[str, Any]:
    return score(rows if hasattr(rows, "schema") else table(rows), LAYOUT, lpips_status=LPIPS_STATUS)


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return score(full_table(), LAYOUT, lpips_status=LPIPS_STATUS)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every place in the metrics as the schema's table writes it, down to numbers or to a source's object."""
    if path.endswith("<source>") or not isinstance(value, dict | list):
        yield path, value
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry, f"{path}[]")
    else:
        for name, entry in value.items():
            yield from leaves(entry, f"{path}.{placeholder(name, path)}".lstrip("."))


def placeholder(name: str, path: str) -> str:
    if path.startswith("agreement") and name in SOURCES:
        return "<source>"
    if path in ("metrics", "horizon[].<variant>", "per_episode[].<variant>") or path.startswith(("drops.", "gains.")):
        return "<metric>" if name in METRICS else name
    return "<variant>" if name in VARIANTS and path in ("metrics.<metric>", "horizon[]", "per_episode[]") else name


def is_documented(path: str) -> bool:
    """In the table itself, or a key of something that the table calls an estimate."""
    parent, _, key = path.rpartition(".")
    return path in SCHEMA or (SCHEMA.get(parent, "").startswith("estimate") and key in ESTIMATE_KEYS)


def test_every_key_is_documented_and_every_documented_key_is_there(full):
    found = {path for path, _ in leaves(full)}
    assert sorted(path for path in found if not is_documented(path)) == []
    above = {path.rsplit(".", depth)[0] for path in found for depth in range(1, path.count(".") + 1)}
    assert sorted(set(SCHEMA) - found - above) == []


def test_the_least_that_can_be_scored_has_the_same_keys_as_null(full):
    least = scored([frame(0)])
    assert sorted(least) == sorted(full)
    assert [path for path, _ in leaves(least) if not is_documented(path)] == []
    assert least["psnr"] == 20
    assert least["drops"] == {"other_actions": None, "zero_motion": None}
    assert least["gains"] == {"copy": None, "ceiling": None}
    nothing = ("moving_psnr", "lpips", "obedience", "obedience_zero_motion", "agreement", "agreement_gripper")
    assert [least[name] for name in nothing] == [None] * len(nothing)
    assert least["metrics"]["psnr"]["copy"] is None
    assert least["metrics"]["psnr"]["recorded"]["low"] is None
    assert least["differences"]["psnr"][0] == {"difference_db": 0.25, "episodes_needed": None}


@pytest.mark.parametrize("rows", [full_table(1), full_table(2, moves=False), [frame(0)]])
def test_json_keeps_it(rows):
    metrics = scored(rows)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert all(type(value) in (int, float, str, bool, type(None), dict) for _, value in leaves(metrics))


def test_it_is_the_same_each_time(full):
    assert scored(full_table()) == full


def test_means_are_over_episodes_of_means_over_frames():
    rows = [frame(0, step=step, psnr=10.0) for step in range(1, 10)] + [frame(1, psnr=30.0)]
    metrics = scored(rows)
    assert metrics["psnr"] == 20
    assert metrics["metrics"]["psnr"]["recorded"]["std_over_episodes"] == pytest.approx(np.std([10, 30], ddof=1))
    assert (metrics["episodes"], metrics["frames"], metrics["num_samples"]) == (2, 10, 1)
    assert [entry["frames"] for entry in metrics["per_episode"]] == [9, 1]


def test_the_spread_over_samples_is_averaged_over_episodes():
    rows = [frame(e, sample=k, psnr=20.0 + k * (e + 1)) for e in range(2) for k in range(2)]
    metrics = scored(rows)
    expected = (np.std([20, 21], ddof=1) + np.std([20, 22], ddof=1)) / 2
    assert metrics["metrics"]["psnr"]["recorded"]["std_over_samples"] == pytest.approx(expected)
    assert metrics["num_samples"] == 2


def test_known_drops_and_gains():
    rows = [
        frame(episode, variant, psnr=level + episode, moving_psnr=level - 10 + episode, lpips=1 - level / 100)
        for episode in range(9)
        for variant, level in {
            "recorded": 20.0,
            "other_actions": 18.0,
            "zero_motion": 19.0,
            "copy": 17.0,
            "ceiling": 30.0,
        }.items()
    ]
    metrics = scored(rows)
    assert metrics["obedience"] == pytest.approx(2)
    assert metrics["obedience_zero_motion"] == pytest.approx(1)
    for path, expected in {("drops", "other_actions"): 2, ("gains", "copy"): 3, ("gains", "ceiling"): 10}.items():
        found = metrics[path[0]][path[1]]
        for name in ("psnr", "moving_psnr"):
            estimate_of = [found[name][key] for key in ("mean", "low", "high")]
            assert estimate_of == pytest.approx([expected] * 3), "what episodes share drops out of paired differences"
        assert found["lpips"]["mean"] == pytest.approx(expected / 100), "less LPIPS is better, so a drop is positive"
        assert found["ssim"]["mean"] == 0
    assert [entry["drop"] for entry in metrics["per_episode"]] == pytest.approx([2] * 9)


def test_equal_rollouts_have_no_drop_at_all():
    values = np.random.default_rng(0).normal(20, 3, size=12)
    rows = [
        frame(episode, variant, psnr=value, moving_psnr=value)
        for episode, value in enumerate(values)
        for variant in ("recorded", "other_actions")
    ]
    drop = scored(rows)["drops"]["other_actions"]["moving_psnr"]
    assert (drop["mean"], drop["low"], drop["high"]) == (0, 0, 0)


def test_lower_is_better_for_lpips_alone(full):
    assert {name: entry["higher_is_better"] for name, entry in full["metrics"].items()} == {
        "psnr": True,
        "ssim": True,
        "moving_psnr": True,
        "lpips": False,
    }


def test_the_horizon_counts_who_is_still_there():
    rows = [frame(episode, step=step, psnr=20.0 - step) for episode in range(3) for step in range(1, 4 - episode)]
    rows.append(frame(2, "ceiling", step=3))
    horizon = scored(rows)["horizon"]
    assert [(entry["step"], entry["num_episodes"]) for entry in horizon] == [(1, 3), (2, 2), (3, 1)]
    assert [entry["recorded"]["psnr"]["mean"] for entry in horizon] == [19, 18, 17]
    assert horizon[0]["ceiling"]["psnr"]["mean"] is None
    assert horizon[2]["recorded"]["psnr"]["low"] is None


def test_a_long_horizon_is_as_complete_as_a_short_one():
    rows = [frame(episode, step=step, psnr=10.0 + step + episode) for episode in range(2) for step in range(1, 151)]
    horizon = scored(rows)["horizon"]
    assert [entry["step"] for entry in horizon] == list(range(1, 151))
    assert [entry["recorded"]["psnr"]["mean"] for entry in horizon] == [10.5 + step for step in range(1, 151)]


def test_episodes_needed_come_from_the_spread(full):
    spread = full["metrics"]["psnr"]["recorded"]["std_over_episodes"]
    needed = full["differences"]["psnr"]
    assert [entry["difference_db"] for entry in needed] == list(DIFFERENCES_DB)
    z = 1.959964 + 0.841621
    for entry in needed:
        expected = z**2 * 2 * spread**2 / entry["difference_db"] ** 2 + 1.959964**2 / 2
        assert entry["episodes_needed"] == math.ceil(expected)
    assert "not correlated" in full["differences"]["assumption"]


def test_agreement_shortcuts_are_the_means_of_the_episodes():
    rows = [
        frame(0, action_given=action(), action_recovered=action((0.1, 0, 0))),
        frame(1, action_given=action(gripper=1), action_recovered=action((0.3, 0, 0))),
        frame(2),
    ]
    metrics = scored(rows)
    assert metrics["agreement_translation_rmse_m"] == pytest.approx(0.2)
    assert metrics["agreement_rotation_rmse_rad"] == pytest.approx(0)
    assert metrics["agreement_gripper"] == 0.5
    errors = [entry["agreement"] for entry in metrics["per_episode"]]
    assert errors[0]["translation_rmse_m"] == pytest.approx(0.1)
    assert errors[1]["gripper_agreement"] == 0
    assert errors[2] == {"translation_rmse_m": None, "rotation_rmse_rad": None, "gripper_agreement": None}


def test_estimates_in_the_metrics_are_those_of_their_episodes(full):
    values = np.array([entry["recorded"]["psnr"] for entry in full["per_episode"]])
    expected = estimate(values).to_json()
    found = full["metrics"]["psnr"]["recorded"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_schema_and_statements(full):
    assert full["schema"] == METRICS_SCHEMA == "world-model-metrics/1"
    assert full["lpips_status"] == LPIPS_STATUS
    assert full["verdict"].startswith("Over 10 episodes")


def test_no_frames_are_no_metrics():
    with pytest.raises(ResultError, match="No frame was scored"):
        scored([])


def test_scoring_rows_again_needs_no_torch():
    code = "import sys, pipeline.evaluation.comparison; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
