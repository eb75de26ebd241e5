"""Against a baseline and against thresholds: known differences, pairing, refusals, and what fails a gate."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from evaluation_rows import LAYOUT, LPIPS_STATUS, action, frame, full_table, table

from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import (
    FAIL_ABOVE,
    GATES,
    compare,
    failed_thresholds,
    parse_thresholds,
    read_baseline,
)
from pipeline.evaluation.scores import score


def metrics_of(levels: dict[int, float], **values):
    return score(
        table(frame(episode, psnr=level, **values) for episode, level in levels.items()),
        LAYOUT,
        lpips_status=LPIPS_STATUS,
    )


@pytest.fixture(scope="module")
def full():
    return score(full_table(), LAYOUT, lpips_status=LPIPS_STATUS)


def write(tmp_path, content) -> str:
    path = tmp_path / "metrics.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_known_difference_over_common_episodes():
    hard = np.random.default_rng(0).normal(20, 5, size=12)
    improvement = np.linspace(0.5, 1.5, 12)
    ours = metrics_of(dict(enumerate(hard + improvement)) | {100: 50.0})
    theirs = metrics_of(dict(enumerate(hard)) | {200: 0.0, 201: 0.0})
    found = compare(ours, theirs)
    assert (found["num_common_episodes"], found["num_only_here"], found["num_only_in_baseline"]) == (12, 1, 2)
    psnr = found["psnr"]
    assert psnr["mean"] == pytest.approx(1)
    assert 0.7 < psnr["low"] < 1 < psnr["high"] < 1.3, "paired: the spread of 5 dB over episodes is not in it"
    assert psnr["p"] == pytest.approx(2 / 2**12)
    assert (psnr["unit"], psnr["higher_is_better"], psnr["num_episodes"]) == ("dB", True, 12)


def test_fewer_episodes_suffice_where_differences_are_paired():
    hard = np.random.default_rng(0).normal(20, 5, size=12)
    ours, theirs = metrics_of(dict(enumerate(hard + np.linspace(0.5, 1.5, 12)))), metrics_of(dict(enumerate(hard)))
    paired = compare(ours, theirs)["differences"]
    spread = np.linspace(0.5, 1.5, 12).std(ddof=1)
    expected = (1.959964 + 0.841621) ** 2 * spread**2 / 0.25**2 + 1.959964**2 / 2
    assert paired["psnr"][0] == {"difference_db": 0.25, "episodes_needed": math.ceil(expected)}
    assert paired["psnr"][0]["episodes_needed"] < ours["differences"]["psnr"][0]["episodes_needed"]
    assert paired["moving_psnr"][0]["episodes_needed"] is None


def test_no_difference_to_itself(full):
    found = compare(full, full)
    for name in GATES.keys() - {"obedience_zero_motion"}:
        assert (found[name]["mean"], found[name]["low"], found[name]["high"], found[name]["p"]) == (0, 0, 0, 1)
    assert found["warning"] is None
    json.dumps(found, allow_nan=False)


def test_scores_that_one_side_lacks_are_null(full):
    found = compare(full, metrics_of({0: 20.0, 1: 21.0}))
    assert found["psnr"]["num_episodes"] == 2
    assert found["lpips"] is found["obedience"] is found["agreement_translation_rmse_m"] is None


def test_too_few_episodes_have_no_p_value():
    found = compare(metrics_of({0: 21.0, 1: 22.0, 2: 24.0}), metrics_of({0: 20.0, 1: 20.0, 2: 20.0}))
    assert found["psnr"]["p"] is None
    assert found["psnr"]["low"] is not None
    assert compare(metrics_of({0: 21.0}), metrics_of({0: 20.0}))["psnr"]["low"] is None


def test_no_common_episode_is_refused():
    with pytest.raises(ConfigError, match=r"here 0, there 1, 2, 3, 4, 5 and 2 more\. Evaluate both"):
        compare(metrics_of({0: 20.0}), metrics_of(dict.fromkeys(range(1, 8), 20.0)))


def test_other_settings_are_named():
    ours, theirs = ({**metrics_of({0: 20.0}), "settings": {"chaining": chained, "fps": 5}} for chained in (True, False))
    assert compare(ours, theirs)["warning"] == (
        "The settings differ, so part of the difference may be theirs: chaining (False before, True now)."
    )
    assert compare(ours, ours)["warning"] is None
    assert compare(ours, metrics_of({0: 20.0}))["warning"] is None


def test_a_baseline_survives_its_file(tmp_path, full):
    baseline = read_baseline(write(tmp_path, full))
    assert baseline == full
    assert compare(full, baseline)["psnr"]["mean"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "must be JSON"),
        ("[1]", "expected a baseline of schema 'world-model-metrics/1', found None"),
        ({"schema": "world-model-metrics/0"}, "found 'world-model-metrics/0'. Evaluate"),
        ({"schema": "world-model-metrics/1", "psnr": 20}, "scores of each episode under 'per_episode', found none"),
        ({"schema": "world-model-metrics/1", "per_episode": []}, "found none"),
        ({"schema": "world-model-metrics/1", "per_episode": [{"psnr": 1}]}, "found none"),
    ],
)
def test_files_that_are_no_baseline(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_baseline(path)
    assert path in str(caught.value)


@pytest.mark.parametrize("score", [True, "20", {}, [20], 1e300, float("nan"), 10**400])
def test_a_score_that_is_no_number(tmp_path, full, score):
    entries = [dict(entry) for entry in full["per_episode"]]
    entries[1]["recorded"] = entries[1]["recorded"] | {"psnr": score}
    with pytest.raises(ConfigError, match=rf"episode {entries[1]['episode_index']} should have a number as psnr"):
        read_baseline(write(tmp_path, full | {"per_episode": entries}))


def test_an_episode_that_is_there_twice(tmp_path, full):
    entries = [*full["per_episode"], full["per_episode"][0]]
    with pytest.raises(ConfigError, match="each episode once"):
        read_baseline(write(tmp_path, full | {"per_episode": entries}))


def test_a_baseline_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the baseline \(No such file or directory\)\. Give the metrics"):
        read_baseline(tmp_path / "metrics.json")
    with pytest.raises(ConfigError, match=r"cannot read the baseline \(Is a directory\)"):
        read_baseline(tmp_path)


def test_thresholds_are_read():
    assert parse_thresholds(["psnr=20", " lpips = 0.3 ", "obedience=-1e-1"]) == {
        "psnr": 20.0,
        "lpips": 0.3,
        "obedience": -0.1,
    }
    assert parse_thresholds([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psnr", "Expected a threshold as name=number"),
        ("psrn=20", "Unknown score 'psrn'. Did you mean 'psnr'"),
        ("=20", "Unknown score ''"),
        ("psnr=good", "threshold of psnr must be a number, found 'good'"),
        ("psnr=", "must be a number, found ''"),
        ("psnr=nan", "must be a number, found 'nan'"),
        ("psnr=inf", "must be a number, found 'inf'"),
    ],
)
def test_thresholds_that_mean_nothing(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_thresholds([text])


def test_a_threshold_is_given_once():
    with pytest.raises(ConfigError, match="Two thresholds for psnr"):
        parse_thresholds(["psnr=20", "psnr=21"])


def test_every_gate_is_a_shortcut_of_the_metrics(full):
    assert all(isinstance(full[name], float) for name in GATES)
    assert {name for name in GATES if "rmse" in name} | {"lpips"} == FAIL_ABOVE


@pytest.mark.parametrize("name", sorted(GATES))
def test_the_threshold_itself_passes_and_beyond_it_fails(full, name):
    value = full[name]
    worse = math.inf if name in FAIL_ABOVE else -math.inf
    assert failed_thresholds(full, {name: value}) == []
    assert failed_thresholds(full, {name: math.nextafter(value, worse)}) == []
    (failure,) = failed_thresholds(full, {name: math.nextafter(value, -worse)})
    assert failure.startswith(f"{name} is ")
    assert ("above" if name in FAIL_ABOVE else "below") in failure


def test_failures_are_sentences_in_order():
    metrics = metrics_of({0: 18.21}, action_given=action(), action_recovered=action((0.25, 0, 0)))
    thresholds = parse_thresholds(["agreement_translation_rmse_m=0.125", "psnr=20", "ssim=0.4"])
    assert failed_thresholds(metrics, thresholds) == [
        "agreement_translation_rmse_m is 0.25 m, above the threshold of 0.125 m.",
        "psnr is 18.21 dB, below the threshold of 20 dB.",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lpips", LPIPS_STATUS),
        ("moving_psnr", "nothing moves in these episodes."),
        ("obedience", "variant other_actions was not rolled out."),
        ("obedience_zero_motion", "variant zero_motion was not rolled out."),
        ("agreement_gripper", "no actions were recovered from the rollouts."),
    ],
)
def test_what_was_not_measured_cannot_pass(name, reason):
    (failure,) = failed_thresholds(metrics_of({0: 20.0}), {name: 0.5})
    assert failure == f"{name} was not measured, so it cannot pass 0.5{' dB' * (GATES[name] == 'dB')}: {reason}"


def test_unmeasured_for_other_reasons(full):
    still = score(full_table(moves=False), LAYOUT, lpips_status=LPIPS_STATUS)
    (failure,) = failed_thresholds(still, {"obedience": 0})
    assert failure.endswith("no moving pixel was scored in both the recorded variant and other_actions.")
    without = copy.deepcopy(full) | {"agreement_translation_rmse_m": None}
    (failure,) = failed_thresholds(without, {"agreement_translation_rmse_m": 0})
    assert failure.endswith("this embodiment's layout has no such columns, or not in that unit.")
