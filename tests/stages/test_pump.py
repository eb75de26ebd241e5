"""Rows out of Ray Data, and leaving before the last one: a thread left behind would crash the run at its end."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.stages.pump import END, Pump

NUM_ROWS = 40


@pytest.fixture
def rows(ray_of_this_session):
    import ray

    class Slow:  # in here, so that it travels by value: workers do not know this file
        def __call__(self, row: dict) -> dict:
            time.sleep(0.1)
            return row

    rows = ray.data.from_items([{"number": number} for number in range(NUM_ROWS)], override_num_blocks=NUM_ROWS)
    return rows.map(Slow, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.1)


def at_work() -> set[threading.Thread]:
    return set(threading.enumerate())


def test_all_rows_come_and_then_the_end(rows):
    before = at_work()
    pump = Pump(rows)
    came = [pump.items.get(timeout=60) for _ in range(NUM_ROWS)]
    assert sorted(row["number"] for row in came) == list(range(NUM_ROWS))
    assert pump.items.get(timeout=60) is END
    pump.leave()
    assert at_work() <= before


@pytest.mark.parametrize("enough", [0, 3], ids=["at once", "after a few rows"])
def test_who_leaves_early_leaves_nothing_at_work(rows, enough):
    before = at_work()
    pump = Pump(rows)
    for _ in range(enough):
        pump.items.get(timeout=60)
    pump.leave()
    assert at_work() <= before
    assert pump.items.qsize() < NUM_ROWS - enough
