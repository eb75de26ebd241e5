"""The verdict says what the numbers show, and no more."""

from __future__ import annotations

import pytest
from evaluation_rows import LAYOUT, LPIPS_STATUS, action, frame, full_table, table, turn_about_z

from pipeline.evaluation.agreement import ActionLayout
from pipeline.evaluation.scores import score


def verdict_of(rows) -> str:
    return score(rows, LAYOUT, lpips_status=LPIPS_STATUS)["verdict"]


def steady(num_episodes: int = 9, **levels: float):
    """Each variant at its level in dB, in every episode."""
    return table(
        frame(episode, variant, psnr=level, moving_psnr=level - 5)
        for episode in range(num_episodes)
        for variant, level in levels.items()
    )


def test_a_model_that_draws_well_and_obeys():
    assert verdict_of(steady(recorded=24.0, copy=21.0, ceiling=30.0, other_actions=22.5)) == (
        "Over 9 episodes its rollouts are 3.0 dB (95% interval 3.0 to 3.0) better than copying the first frame where "
        "something moves, which is beyond chance, and 6.0 dB below the ceiling of its own VAE. "
        "Told another episode's actions it loses 1.50 dB (1.50 to 1.50) where something moves: beyond chance, so it "
        "obeys its actions; no actions were recovered from its rollouts."
    )


def test_a_model_worse_than_a_copy():
    said = verdict_of(full_table(gain_db=-2.0, noise=0.3))
    told, rest = said.split(" worse than copying the first frame where something moves, ")
    assert rest.startswith("which is beyond chance")
    low, high = told.rsplit("(95% interval ", 1)[1].rstrip(")").split(" to ")
    assert 0 < float(low) < float(high), "bounds of how much worse, the smaller one first"


def test_what_may_be_chance_is_called_so():
    levels = {"recorded": 20.0, "copy": 19.9, "other_actions": 19.9}
    said = verdict_of(
        table(
            frame(episode, variant, psnr=level + (variant != "recorded") * (-1) ** episode)
            for episode in range(10)
            for variant, level in levels.items()
        )
    )
    assert "its rollouts are 0.1 dB (95% interval -" in said
    assert "copying the first frame, which may be chance" in said
    assert "as far as these episodes can tell, its rollouts do not depend on the actions" in said
    assert "beyond chance" not in said


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            24.0,
            "it loses 0.00 dB (0.00 to 0.00) where something moves: as far as these episodes can tell, its rollouts",
        ),
        (24.0 - 1e-9, "its rollouts do not depend on the actions"),
        (23.95, "it loses 0.05 dB (0.05 to 0.05) where something moves: beyond chance, but its rollouts hardly depend"),
        (25.0, "it gains 1.00 dB (1.00 to 1.00) where something moves: beyond chance and the wrong way round"),
    ],
)
def test_obedience_has_degrees(other, words):
    assert words in verdict_of(steady(recorded=24.0, other_actions=other))


def test_one_episode_has_numbers_and_no_certainty():
    said = verdict_of(full_table(1))
    assert said.startswith("Over one episode its rollouts are ")
    assert "which one episode cannot tell from chance" in said
    assert "and one episode cannot tell that from chance" in said
    assert "beyond chance" not in said
    assert "interval" not in said


def test_where_nothing_moves_all_pixels_count():
    said = verdict_of(full_table(moves=False))
    assert "where something moves" not in said
    assert "than copying the first frame, which" in said


def test_what_was_not_measured_is_said():
    assert verdict_of(table([frame(0)])) == (
        "Over one episode its rollouts reach a PSNR of 20.0 dB (copying the first frame was not compared). "
        "Whether it obeys was not measured, for want of another episode's actions; no actions were recovered from its "
        "rollouts."
    )


def agreeing(*, share: float, turns: float = 0.0, opens: bool = True) -> str:
    """Of two steps along x, back and forth, this share is recovered, and a turn that nobody asked for."""
    rows = [
        frame(
            0,
            step=step,
            action_given=action((x, 0, 0), gripper=step),
            action_recovered=action((x * share, 0, 0), turn_about_z(turns), step if opens else 1 - step),
        )
        for step, x in enumerate((-0.01, 0.01))
    ]
    return verdict_of(table(rows))


def test_agreeing_with_itself_is_to_do_no_worse_than_guessing():
    assert agreeing(share=0.5).endswith(
        "it agrees with itself: inverse dynamics finds the given actions again to 5 mm (guessing their mean: 10 mm)."
    )
    assert "it agrees only in part with itself" in agreeing(share=-1)
    assert "to 20 mm (guessing their mean: 10 mm)" in agreeing(share=-1)
    assert "it does not agree with itself" in agreeing(share=-1, turns=0.2, opens=False)


def test_a_layout_with_nothing_to_sum_up():
    rows = table([frame(0, action_given=[0.0, 0.0], action_recovered=[0.0, 1.0])], names=("x", "y"))
    said = score(rows, ActionLayout(("x", "y")), lpips_status=LPIPS_STATUS)["verdict"]
    assert said.endswith("the recovered actions have neither poses in metres nor grippers to sum up.")
