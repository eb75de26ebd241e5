"""What scorers of merged rows are given: each episode once, whole, in order."""

from __future__ import annotations

import pyarrow as pa

from pipeline.scoring import by_episode


def rows(episodes: list[int], valid: list[bool]) -> pa.Table:
    return pa.table({"episode_index": episodes, "frame_index": list(range(len(episodes))), "action_valid": valid})


def test_each_episode_comes_once_with_its_rows_in_order_and_only_those_with_an_action():
    table = rows([7, 7, 2, 7, 2, 5], [True, False, True, True, True, False])
    found = [(index, own["frame_index"].to_pylist()) for index, own in by_episode(table)]
    assert found == [(7, [0, 3]), (2, [2, 4])]


def test_nothing_to_score_is_no_episode():
    assert list(by_episode(rows([1], [False]))) == []
    assert list(by_episode(rows([], []).cast(rows([1], [True]).schema))) == []
