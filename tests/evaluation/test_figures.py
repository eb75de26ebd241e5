"""What a terminal shows of a world model's scores is what the metrics say."""

from __future__ import annotations

from pipeline.evaluation.figures import render_world_model_scores


def entry(step: int, ours: float, copied: float | None) -> dict:
    return {
        "step": step,
        "recorded": {"moving_psnr": {"mean": ours}},
        "copy": {"moving_psnr": {"mean": copied}},
        "ceiling": {"moving_psnr": {"mean": 30.0}},
    }


def test_the_least_gain_past_the_fourth_frame_is_told_and_so_is_what_is_obeyed():
    horizon = [entry(step, 20.0, 19.0 if step <= 4 else 14.0 + (step == 7)) for step in range(1, 17)]
    metrics = {
        "horizon": horizon,
        "obedience": 2.5,
        "agreement": {"translation": {"r2": 0.91}, "rotation": {"r2": None}, "gripper": None},
    }
    told = render_world_model_scores(metrics)
    assert "at least 5.0 dB above" in told
    assert "loses 2.5 dB" in told
    assert told.splitlines()[1].split() == ["1", "2", "4", "8", "12", "16"]
    assert told.splitlines()[2].split() == ["rollout", *["20.0"] * 6]
    assert "translation 0.910" in told
    assert "rotation" not in told


def test_what_could_not_be_measured_is_left_out():
    metrics = {"horizon": [entry(1, 20.0, None)], "obedience": None, "agreement": None}
    told = render_world_model_scores(metrics)
    assert "–" in told
    assert "loses" not in told
    assert "R²" not in told
