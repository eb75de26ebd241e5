"""Intervals, the sign-flip test and the sample size: closed forms, SciPy's own answers, and coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.statistics import (
    MIN_BOOTSTRAP,
    MIN_TESTED,
    Estimate,
    differences_estimate,
    episodes_needed,
    estimate,
    estimates,
    mean_or_none,
    number_or_none,
    sign_flip_p_value,
)


def test_one_episode_has_a_mean_and_no_interval():
    assert estimate(np.array([3.5])) == Estimate(3.5, None, None, None, 1)
    assert estimate(np.array([np.nan, 3.5])) == Estimate(3.5, None, None, None, 1)


def test_no_episode_has_nothing():
    nothing = Estimate(None, None, None, None, 0)
    assert estimate(np.array([])) == nothing
    assert estimate(np.array([np.nan, np.nan])) == nothing


def test_few_episodes_have_students_interval():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.num_episodes) == (4.0, 4)
    np.testing.assert_allclose([found.low, found.high, found.std], [low, high, values.std(ddof=1)])


def test_more_episodes_are_resampled_like_scipys_percentile_bootstrap():
    values = np.random.default_rng(3).exponential(size=12)
    found = estimate(values)
    tail = stats.norm.cdf(-np.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    peer = stats.bootstrap(
        (values,), np.mean, confidence_level=1 - 2 * tail, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    np.testing.assert_allclose([found.low, found.high], [peer.low, peer.high], rtol=0.05)
    assert found.high - found.mean > found.mean - found.low, "a skewed sample has a skewed interval"


def test_the_interval_is_the_same_each_time_and_another_with_another_seed():
    values = np.random.default_rng(0).normal(size=20)
    assert estimate(values) == estimate(values)
    assert estimate(values, seed=1).low != estimate(values).low


@pytest.mark.parametrize("num_episodes", [2, MIN_BOOTSTRAP, 30])
def test_equal_episodes_leave_no_doubt(num_episodes):
    found = estimate(np.full(num_episodes, 0.1))
    np.testing.assert_allclose([found.low, found.mean, found.high], 0.1, rtol=1e-15)
    assert found.std == pytest.approx(0, abs=1e-15)


def test_columns_are_estimated_each_over_the_episodes_they_have():
    values = np.random.default_rng(0).normal(size=(15, 3))
    values[4:, 1] = np.nan
    values[::2, 2] = np.nan
    found = estimates(values)
    assert [entry.num_episodes for entry in found] == [15, 4, 7]
    for column, entry in enumerate(found):
        alone = estimate(values[:, column])
        np.testing.assert_allclose([entry.mean, entry.low, entry.high], [alone.mean, alone.low, alone.high])


@pytest.mark.parametrize("num_episodes", [3, 5, MIN_BOOTSTRAP, 20])
def test_intervals_cover_the_truth_as_often_as_they_say(num_episodes):
    """A percentile bootstrap of 3 values would be at 77% here, of 5 at 85%."""
    samples = np.random.default_rng(0).normal(size=(num_episodes, 2000))
    covered = np.mean([entry.low <= 0 <= entry.high for entry in estimates(samples)])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_paired_differences_lose_what_episodes_share():
    shared = 100 * np.random.default_rng(0).normal(size=10)
    found = differences_estimate(shared + 2, shared)
    assert found.mean == pytest.approx(2)
    assert found.low == pytest.approx(2)
    assert differences_estimate(np.array([1.0, np.nan, 3.0]), np.array([0.0, 5.0, np.nan])).num_episodes == 1


def test_numbers_for_json():
    assert estimate(np.array([1.0])).to_json() == {
        "mean": 1.0,
        "low": None,
        "high": None,
        "std_over_episodes": None,
        "num_episodes": 1,
    }
    assert [number_or_none(value) for value in (np.nan, np.inf, None)] == [None, None, None]
    assert type(number_or_none(np.float64(2))) is float
    assert mean_or_none(np.array([1.0, np.nan, 3.0])) == 2.0
    assert mean_or_none(np.array([np.nan])) is None


def test_sign_flips_are_counted_exactly():
    differences = np.array([0.4, -0.1, 0.9, 0.3, 0.2, 0.7])
    flips = np.array(list(itertools.product([1, -1], repeat=6)))
    means = flips @ differences / 6
    expected = np.mean(np.abs(means) >= differences.mean() - 1e-12)
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_the_smallest_p_value_is_that_of_one_sign():
    assert sign_flip_p_value(np.arange(1.0, 7.0)) == pytest.approx(2 / 2**6)
    assert sign_flip_p_value(np.append(np.arange(1.0, 7.0), np.nan)) == pytest.approx(2 / 2**6)


def test_no_difference_is_no_evidence():
    assert sign_flip_p_value(np.zeros(8)) == 1.0


def test_too_few_episodes_have_no_p_value():
    assert sign_flip_p_value(np.ones(MIN_TESTED - 1)) is None


def test_many_episodes_draw_the_same_signs_each_time():
    differences = np.random.default_rng(0).normal(0.1, 1, size=60)
    assert sign_flip_p_value(differences) == sign_flip_p_value(differences)
    assert sign_flip_p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.03)


def exact_power(num_episodes: int, effect: float) -> float:
    """Of a two-sided paired t test at 5%, from the noncentral t distribution."""
    critical = stats.t.ppf(0.975, num_episodes - 1)
    shifted = stats.nct(num_episodes - 1, effect * np.sqrt(num_episodes))
    return float(shifted.sf(critical) + shifted.cdf(-critical))


@pytest.mark.parametrize("effect", [0.2, 0.5, 1.0, 1.5])
def test_so_many_episodes_reach_the_power(effect):
    needed = episodes_needed(1.0, effect)
    assert exact_power(needed, effect) >= 0.795
    assert exact_power(needed - 2, effect) < 0.8


def test_the_textbook_number_of_episodes():
    """An effect of half a standard deviation at 80% power and 5%: 34 pairs, as in every table."""
    assert episodes_needed(2.0, 1.0) == 34
    assert episodes_needed(2.0, 1.0, power=0.9) == 44
    assert episodes_needed(0.0, 1.0) == 2
    assert episodes_needed(None, 1.0) is None
