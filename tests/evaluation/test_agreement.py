"""Recovered against given actions: known errors, known angles, and what is left out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from evaluation_rows import LAYOUT, NAMES, action, frame, table, turn_about_z

from pipeline.embodiments import EMBODIMENTS
from pipeline.errors import ConfigError, ResultError
from pipeline.evaluation.agreement import ActionLayout, describe_agreement, headline_errors, measure_agreement

EPISODES = np.arange(3)


def described(rows, layout: ActionLayout = LAYOUT):
    measured = measure_agreement(table(rows, layout.names), EPISODES, layout)
    return measured and describe_agreement(*measured, layout)


def pair(episode, given, recovered, *, variant="recorded", step=1):
    return frame(episode, variant, step=step, action_given=given, action_recovered=recovered)


def moving_pairs(error: float = 0.0):
    """Six given actions that differ in every column, recovered with the same error added to each number."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(6):
        given = action(rng.normal(size=3), turn_about_z(0.2 * index), index % 2)
        recovered = [value + error for value in given]
        pairs.append(pair(index % 3, given, recovered, step=index))
    return pairs


def test_perfect_recovery():
    found = described(moving_pairs())
    by_name = {dimension["name"]: dimension for dimension in found["dimensions"]}
    assert list(by_name) == list(NAMES)
    assert by_name["dx_m"]["unit"] == "m"
    assert by_name["r00"]["unit"] == ""
    assert by_name["gripper_open"]["unit"] == "0..1"
    for name in ("dx_m", "r00", "r11", "gripper_open"):
        assert (by_name[name]["mae"], by_name[name]["rmse"], by_name[name]["r2"]) == (0, 0, 1)
    assert found["translation"]["rmse"] == found["translation"]["mae"] == 0
    assert found["rotation"]["rmse"] == pytest.approx(0, abs=1e-7)
    assert found["gripper"]["agreement"] == 1


def test_always_the_mean_explains_nothing():
    found = described(moving_pairs())
    for dimension in found["dimensions"]:
        if dimension["name"] not in ("r20", "r21"):
            assert dimension["always_the_mean"]["r2"] == pytest.approx(0)
            assert dimension["always_the_mean"]["rmse"] > 0.01


def test_what_never_changes_has_no_r2():
    """Also where its value is no round number, whose mean is off by a rounding error."""
    rows = [pair(0, action((0.1, 0, 0)), action((0.1, 0, 0)), step=step) for step in range(7)]
    assert [dimension["r2"] for dimension in described(rows)["dimensions"]] == [None] * 10


def test_r2_of_a_known_error():
    """Given values -1 and 1 have a mean square of 1 about their mean; an error of 0.5 is 0.25 of it."""
    rows = [pair(0, action((x, 0, 0)), action((x + 0.5, 0, 0)), step=step) for step, x in enumerate((-1, 1))]
    first = described(rows)["dimensions"][0]
    assert (first["mae"], first["rmse"], first["r2"]) == pytest.approx((0.5, 0.5, 0.75))
    assert first["ceiling"] is None


def test_translation_is_a_distance():
    rows = [
        pair(0, action((1, 1, 1)), action((1.3, 1.4, 1)), step=1),
        pair(0, action((1, 1, 1)), action((1, 1, 1)), step=2),
    ]
    found = described(rows)["translation"]
    assert found["unit"] == "m"
    assert found["mae"] == pytest.approx(0.25)
    assert found["rmse"] == pytest.approx(np.sqrt(0.5**2 / 2))


def test_rotation_is_an_angle():
    rows = [
        pair(0, action(rot6d=turn_about_z(0.3)), action(rot6d=turn_about_z(0.5)), step=1),
        pair(0, action(rot6d=turn_about_z(-0.2)), action(rot6d=2 * np.array(turn_about_z(0.2))), step=2),
    ]
    found = described(rows)["rotation"]
    assert found["unit"] == "rad"
    assert found["mean"] == pytest.approx(0.3, abs=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt((0.2**2 + 0.4**2) / 2), abs=1e-6)


@pytest.mark.parametrize("broken", [(0,) * 6, (1, 0, 0, 2, 0, 0)])
def test_numbers_that_are_no_rotation_are_counted_and_left_out(broken):
    rows = [
        pair(0, action(), action(rot6d=turn_about_z(0.1)), step=1),
        pair(0, action(), action(rot6d=broken), step=2),
    ]
    found = described(rows)
    assert found["num_no_rotation"] == {"recorded": 1, "ceiling": None, "always_the_mean": 0}
    assert found["num_frames"] == {"recorded": 2, "ceiling": None, "always_the_mean": 2}
    assert found["rotation"]["rmse"] == pytest.approx(0.1, abs=1e-6)
    nothing_left = described(rows[1:])
    assert nothing_left["rotation"]["rmse"] is None
    assert nothing_left["intervals"]["rotation_rmse_rad"]["mean"] is None


def test_the_gripper_agrees_on_one_side_of_the_middle():
    sides = [(0.1, 0.4), (0.9, 0.6), (0.9, 0.4), (0.5, 0.5)]
    rows = [
        pair(0, action(gripper=given), action(gripper=found), step=step) for step, (given, found) in enumerate(sides)
    ]
    assert described(rows)["gripper"]["agreement"] == 0.75


def test_arms_count_alike():
    names = tuple(f"{arm}_{name}" for arm in ("left", "right") for name in NAMES)
    layout = ActionLayout(names, rot6d_starts=(3, 13), gripper_columns=(9, 19))
    given = action() + action()
    recovered = action((0.1, 0, 0), gripper=1) + action((0.3, 0, 0), turn_about_z(0.2))
    found = described([pair(0, given, recovered)], layout)
    assert found["translation"]["mae"] == pytest.approx(0.2)
    assert found["rotation"]["mean"] == pytest.approx(0.1, abs=1e-6)
    assert found["gripper"]["agreement"] == 0.5


def test_episodes_count_alike_however_long():
    rows = [pair(0, action(), action((0.1, 0, 0)), step=step) for step in range(9)]
    rows.append(pair(1, action(), action((0.3, 0, 0))))
    found = described(rows)
    assert found["translation"]["rmse"] == pytest.approx(0.2)
    estimate = found["intervals"]["translation_rmse_m"]
    assert (estimate["mean"], estimate["num_episodes"]) == (pytest.approx(0.2), 2)


def test_the_ceiling_stands_beside_the_rollout():
    rows = [
        pair(0, action((0, 0, 0)), action((0.2, 0, 0)), step=1),
        pair(0, action((1, 0, 0)), action((1.2, 0, 0)), step=2),
        pair(0, action((1, 0, 0)), action((1.1, 0, 0)), variant="ceiling"),
        pair(0, action((1, 0, 0)), action((9, 9, 9)), variant="other_actions"),
    ]
    found = described(rows)
    assert found["translation"]["rmse"] == pytest.approx(0.2)
    assert found["translation"]["ceiling"]["rmse"] == pytest.approx(0.1)
    assert found["translation"]["always_the_mean"]["rmse"] == pytest.approx(0.5)
    assert found["dimensions"][0]["ceiling"]["mae"] == pytest.approx(0.1)


def test_frames_without_recovered_actions_are_not_errors():
    rows = [frame(0, step=1, action_given=action()), pair(0, action(), action((0.1, 0, 0)), step=2)]
    assert described(rows)["translation"]["mae"] == pytest.approx(0.1)
    assert described(rows[:1]) is None


def test_headlines_are_by_episode():
    rows = [pair(0, action(), action((0.1, 0, 0))), pair(2, action(), action((0.3, 0, 0)))]
    errors, _ = measure_agreement(table(rows), EPISODES, LAYOUT)
    found = headline_errors(errors["recorded"], LAYOUT)
    np.testing.assert_allclose(found["translation_rmse_m"], [0.1, np.nan, 0.3], rtol=1e-6)


def test_translations_without_a_unit_are_no_metres():
    names = tuple(name.removesuffix("_m") for name in NAMES)
    layout = ActionLayout(names, rot6d_starts=(3,), gripper_columns=(9,))
    found = described([pair(0, action(), action((0.1, 0, 0)))], layout)
    assert found["translation"]["unit"] == ""
    assert found["translation"]["rmse"] == pytest.approx(0.1)
    assert found["intervals"]["translation_rmse_m"] is None


def test_a_gripper_width_in_metres_has_no_middle():
    """0.5 m would call every width closed, and every recovery right."""
    layout = ActionLayout((*NAMES[:9], "gripper_width_m"), rot6d_starts=(3,), gripper_columns=(9,))
    found = described([pair(0, action(gripper=0.01), action(gripper=0.09))], layout)
    assert found["gripper"] is None
    assert found["dimensions"][9]["unit"] == "m"
    assert found["intervals"]["gripper_agreement"] is None


def test_columns_without_meaning_have_their_dimensions_only():
    layout = ActionLayout(("x", "y"))
    found = described([pair(0, [0.0, 1.0], [0.5, 1.0])], layout)
    assert [dimension["mae"] for dimension in found["dimensions"]] == [0.5, 0]
    assert found["translation"] is found["rotation"] is found["gripper"] is None


@pytest.mark.parametrize("name", sorted(EMBODIMENTS))
def test_every_embodiment_of_the_table_is_a_layout(name):
    row = EMBODIMENTS[name]
    names = row.names_for(row.raw_action_dim or 30)
    layout = ActionLayout(names, row.rot6d_starts, row.gripper_columns)
    for start in layout.translation_starts:
        translation = [name.removesuffix("_m")[-2:] for name in names[start : start + 3]]
        assert translation == ["dx", "dy", "dz"]


def test_a_layout_has_to_fit():
    with pytest.raises(ConfigError, match="do not fit into 8 columns"):
        ActionLayout(NAMES[:8], rot6d_starts=(3,))
    with pytest.raises(ConfigError, match="translation in the three before"):
        ActionLayout(NAMES, rot6d_starts=(2,))
    with pytest.raises(ConfigError, match="Gripper columns"):
        ActionLayout(NAMES, gripper_columns=(10,))


def test_rows_of_another_width_are_refused():
    with pytest.raises(ResultError, match="action_given has 10 columns, the embodiment's layout 2"):
        measure_agreement(table([pair(0, action(), action())]), EPISODES, ActionLayout(("x", "y")))


def test_recovered_actions_that_are_no_numbers_are_refused():
    rows = [pair(0, action(), action((np.nan, 0, 0)), step=1), pair(0, action(), action(), step=2)]
    with pytest.raises(ResultError, match="action_recovered is not finite in 1 of 2 rows"):
        described(rows)


def test_chunks_and_nulls_between_rows_keep_their_places():
    parts = [
        table([frame(0, step=1), pair(0, action((1, 0, 0)), action((1, 0, 0)), step=2)]),
        table([pair(1, action((5, 0, 0)), action((5.5, 0, 0))), frame(1, step=2)]),
    ]
    errors, _ = measure_agreement(pa.concat_tables(parts).slice(1), EPISODES, LAYOUT)
    np.testing.assert_allclose(errors["recorded"].mae[:, 0], [0, 0.5, np.nan])


def test_r2_is_what_is_explained_of_the_given_motion():
    """An answer halfway from the mean to the truth leaves a quarter of the mean's square error."""
    given = [np.array(action(np.array([0.1 * step, 0, 0]), turn_about_z(0), 0)) for step in range(5)]
    mean = np.mean(given, axis=0)
    found = described([pair(0, each, (each + mean) / 2, step=step) for step, each in enumerate(given)])
    assert found["translation"]["r2"] == pytest.approx(0.75)
    assert found["translation"]["always_the_mean"]["r2"] == pytest.approx(0)
    assert found["rotation"]["r2"] is None, "nothing turned"
