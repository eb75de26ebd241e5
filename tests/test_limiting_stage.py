"""Which stage a run waited for, from seconds and actors alone."""

from __future__ import annotations

import pytest

from pipeline.limiting_stage import limiting_stage

ACTORS = {"load": 4, "infer": 2, "record": 1}


def sentence(load: float = 0, infer: float = 0, record: float = 0, *, wall_s: float = 100) -> str:
    return limiting_stage({"load": load, "infer": infer, "record": record}, ACTORS, wall_s)


def test_busy_engines_are_the_limit_and_want_gpus():
    told = sentence(load=40, infer=190, record=3)
    assert told.startswith("infer was the limit: its 2 actors worked 95% of the time (load 10%, record 3%).")
    assert "--ray.num_engines" in told


def test_busy_loaders_are_the_limit_and_want_company():
    told = sentence(load=390, infer=80)
    assert told.startswith("load was the limit: its 4 actors worked 98% of the time (infer 40%, record 0%).")
    assert "--ray.num_loaders" in told


def test_a_slow_store_is_the_limit():
    told = sentence(load=40, infer=50, record=88)
    assert told.startswith("record was the limit: its actor worked 88% of the time")
    assert "--output_dir" in told


def test_of_two_busy_stages_the_earlier_one_is_the_limit():
    """Loaders that waited for the engine would stand idle. The engine's seconds overlap: they exceed its time."""
    assert sentence(load=380, infer=700).startswith("load was the limit")
    assert sentence(load=340, infer=700).startswith("infer was the limit: its 2 actors worked 100% of the time")


def test_nobody_is_blamed_for_start_up_and_waiting():
    told = sentence(load=40, infer=110, record=1)
    assert told.startswith("No stage was the limit: the busiest, infer, worked 55% of the time.")
    assert "start-up and waiting" in told


@pytest.mark.parametrize("wall_s", [0, 100])
def test_a_run_that_did_nothing_had_no_limit(wall_s):
    assert sentence(wall_s=wall_s) == "Nothing was worked on, so no stage was the limit."


def test_a_stage_that_is_not_known_here_is_named_all_the_same():
    told = limiting_stage({"evaluate": 90}, {"evaluate": 1}, 100)
    assert told == (
        "evaluate was the limit: its actor worked 90% of the time. More actors for it would make it faster."
    )


def test_a_stage_without_actors_is_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        limiting_stage({"load": 1.0}, {"infer": 1}, 10)
