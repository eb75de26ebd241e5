"""Overlapping windows become one action per position."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.actions import merge_windows


def windows(num_windows: int, chunk: int) -> np.ndarray:
    """float32 [W, chunk, 2]: every row says which window and which of its rows it is."""
    rows = np.stack(np.meshgrid(np.arange(num_windows), np.arange(chunk), indexing="ij"), axis=-1)
    return rows.astype(np.float32)


def test_windows_side_by_side_are_laid_end_to_end():
    merged = merge_windows(windows(2, 4), [0, 4], 0, 8)
    assert merged.tolist() == [[w, k] for w in (0, 1) for k in range(4)]
    assert merged.dtype == np.float32


def test_where_two_windows_overlap_the_earlier_one_answers():
    merged = merge_windows(windows(2, 4), [0, 1], 0, 5)
    assert merged.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 3]]


def test_what_lies_beyond_the_labels_is_padding():
    assert merge_windows(windows(1, 4), [0], 0, 2).tolist() == [[0, 0], [0, 1]]


def test_a_later_segment_starts_where_the_one_before_it_ended():
    """Its window overlaps positions that the earlier segment answers for."""
    assert merge_windows(windows(1, 4), [5], 8, 9).tolist() == [[0, 3]]
    assert merge_windows(windows(2, 4), [8, 9], 8, 13).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 3]]


def test_no_label_at_all():
    assert merge_windows(windows(1, 4), [0], 0, 0).shape == (0, 2)


@pytest.mark.parametrize(
    ("starts", "label_start", "label_stop"), [([0, 5], 0, 9), ([0, 4], 0, 9), ([3], 0, 7)], ids=["gap", "end", "start"]
)
def test_a_position_without_an_answer_is_never_made_up(starts, label_start, label_stop):
    with pytest.raises(AssertionError):
        merge_windows(windows(len(starts), 4), starts, label_start, label_stop)


def test_every_window_has_its_start():
    with pytest.raises(ValueError, match="zip"):
        merge_windows(windows(2, 4), [0], 0, 4)
