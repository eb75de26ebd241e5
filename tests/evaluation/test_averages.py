"""From rows to arrays: the order of averaging, pairing by frame, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from evaluation_rows import frame, table

from pipeline.errors import ResultError
from pipeline.evaluation.averages import average_samples
from pipeline.evaluation.rows import METRICS

PSNR, SSIM, MOVING = (list(METRICS).index(name) for name in ("psnr", "ssim", "moving_psnr"))


def test_samples_then_frames_then_nothing_else():
    rows = [
        frame(4, step=1, sample=0, psnr=10.0),
        frame(4, step=1, sample=1, psnr=14.0),
        frame(4, step=2, sample=0, psnr=20.0),
        frame(4, step=2, sample=1, psnr=22.0),
        frame(2, step=1, psnr=30.0),
    ]
    scores = average_samples(table(rows))
    assert scores.episode_index.tolist() == [2, 4]
    assert scores.tasks == ("task 2", "task 4")
    assert scores.num_samples == 2
    assert scores.steps.tolist() == [1, 2]
    np.testing.assert_allclose(scores.by_episode[:, 0, PSNR], [30, (12 + 21) / 2])
    np.testing.assert_allclose(scores.by_step(1)[:, 0, PSNR], [30, 12])
    np.testing.assert_array_equal(scores.by_step(2)[:, 0, PSNR], [np.nan, 21])
    assert scores.num_frames().tolist() == [1, 2]
    np.testing.assert_allclose(scores.sample_std[:, 0, PSNR], [np.nan, np.std([15, 18], ddof=1)])


def test_the_order_of_rows_does_not_matter():
    rows = [
        frame(episode, variant, step=step, sample=sample, psnr=float(np.sin(episode + 3 * step + 7 * sample)) + 20)
        for episode in (1, 5, 9)
        for variant in ("recorded", "copy")
        for step in (1, 2, 3)
        for sample in (0, 1)
    ]
    first = average_samples(table(rows))
    second = average_samples(table([rows[index] for index in np.random.default_rng(0).permutation(len(rows))]))
    assert first.variants == second.variants == ("recorded", "copy")
    np.testing.assert_allclose(first.by_episode, second.by_episode)
    np.testing.assert_allclose(first.sample_std, second.sample_std)
    np.testing.assert_array_equal(first.num_frames(), second.num_frames())


def test_two_rollouts_of_an_episode_share_a_step_and_are_two_frames():
    rows = [frame(0, rollout_start=0, psnr=10.0), frame(0, rollout_start=16, psnr=20.0)]
    scores = average_samples(table(rows))
    assert scores.num_frames().tolist() == [2]
    assert scores.steps.tolist() == [1]
    assert scores.by_step(1)[0, 0, PSNR] == 15


def test_missing_values_are_skipped():
    rows = [frame(0, step=1, moving_psnr=None), frame(0, step=2, moving_psnr=12.0), frame(1, moving_psnr=None)]
    scores = average_samples(table(rows))
    np.testing.assert_array_equal(scores.by_episode[:, 0, MOVING], [12, np.nan])


def test_a_nan_is_as_missing_as_a_null():
    rows = [frame(0, step=1, moving_psnr=float("nan")), frame(0, step=2, moving_psnr=12.0)]
    assert average_samples(table(rows)).by_episode[0, 0, MOVING] == 12


def test_differences_use_frames_that_both_have():
    """The other rollout stopped a step earlier. Its mean is higher only because late frames are harder."""
    rows = [
        frame(0, "recorded", step=1, psnr=30.0),
        frame(0, "recorded", step=2, psnr=10.0),
        frame(0, "other_actions", step=1, psnr=25.0),
    ]
    scores = average_samples(table(rows))
    assert scores.by_episode[0, :, PSNR].tolist() == [20, 25]
    assert scores.differences("recorded", "other_actions")[0, PSNR] == 5
    assert scores.differences("recorded", "copy") is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "found no rows at all"),
        ([frame(0, "copy")], "expected rows of variant 'recorded', found copy"),
        ([frame(0), frame(0, "celing")], "Unknown variant 'celing'.* Did you mean 'ceiling'"),
        ([frame(0), frame(0)], "occurs twice"),
        ([frame(0), frame(1, psnr=None)], "psnr is missing or infinite in 1 of 2 rows"),
        ([frame(0, ssim=float("nan"))], "ssim is missing"),
        ([frame(0, moving_psnr=float("inf"))], "moving_psnr is missing or infinite"),
    ],
)
def test_rows_that_cannot_be_averaged(rows, message):
    with pytest.raises(ResultError, match=message):
        average_samples(table(rows))


def test_chunked_tables_are_one_table():
    parts = [table([frame(episode, psnr=10.0 + episode)]) for episode in range(3)]
    scores = average_samples(pa.concat_tables(parts))
    assert scores.by_episode[:, 0, PSNR].tolist() == [10, 11, 12]
