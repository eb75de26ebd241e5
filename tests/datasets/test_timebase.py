"""Rates either divide, or are refused with both of them and the way out in the message."""

from __future__ import annotations

import math

import pytest

from pipeline.datasets import Timebase, resolve_timebase
from pipeline.errors import TimebaseError


@pytest.mark.parametrize(
    ("dataset_fps", "model_fps", "stride"),
    [(15, 15, 1), (30, 15, 2), (60, 15, 4), (29.97, 15, 2), (30000 / 1001, 30, 1), (15.0, 5, 3)],
)
def test_integer_multiples_are_subsampled(dataset_fps, model_fps, stride):
    assert resolve_timebase(dataset_fps, model_fps) == Timebase(dataset_fps, model_fps, stride)


@pytest.mark.parametrize(("dataset_fps", "model_fps"), [(5, 15), (20, 15), (10, 15), (50, 15), (7.5, 5), (14.9, 15)])
def test_other_ratios_are_refused_with_both_rates_and_both_fixes(dataset_fps, model_fps):
    with pytest.raises(TimebaseError) as caught:
        resolve_timebase(dataset_fps, model_fps)
    for part in (f"{dataset_fps:g} fps", f"{model_fps:g} fps", "--dataset.timebase native", "integer multiple"):
        assert part in str(caught.value)


@pytest.mark.parametrize("model_fps", [15, None])
def test_native_keeps_every_frame_and_the_datasets_rate(model_fps):
    assert resolve_timebase(20, model_fps, "native") == Timebase(20, 20, 1)


def test_an_embodiment_without_a_rate_needs_native():
    with pytest.raises(TimebaseError, match=r"states no frame rate.*--dataset\.timebase native"):
        resolve_timebase(20, None)


def test_an_unknown_timebase_is_refused():
    with pytest.raises(TimebaseError, match=r"'modle'.*model or native"):
        resolve_timebase(20, 20, "modle")


@pytest.mark.parametrize("fps", [0, -5, math.nan, math.inf])
def test_impossible_rates_are_refused(fps):
    with pytest.raises(TimebaseError, match="positive dataset frame rate"):
        resolve_timebase(fps, 15, "native")
    with pytest.raises(TimebaseError, match="positive model frame rate"):
        resolve_timebase(15, fps)


@pytest.mark.parametrize(
    ("stride", "num_frames", "expected"), [(1, 3, [0, 1, 2]), (3, 7, [0, 3, 6]), (3, 6, [0, 3]), (2, 0, [])]
)
def test_frame_indexes_stay_inside_the_episode(stride, num_frames, expected):
    assert Timebase(15 * stride, 15, stride).frame_indexes(num_frames).tolist() == expected
