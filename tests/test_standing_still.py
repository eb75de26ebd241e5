"""Standing still, by layout: nothing moves, and what does not say a motion is held."""

from __future__ import annotations

import numpy as np
import pytest
from recorded_columns import droid_actions

from pipeline.actions import integrate_actions, standing_still
from pipeline.embodiments import EMBODIMENTS

STILL_POSE = [0, 0, 0, 1, 0, 0, 0, 1, 0]


def test_an_arm_that_stands_still_holds_its_gripper():
    actions = droid_actions(3)
    actions[:, 9] = [0.75, 0.1, 0.2]
    before = actions.copy()
    still = standing_still(actions, EMBODIMENTS["droid_lerobot"].rot6d_starts)
    np.testing.assert_array_equal(still, [[*STILL_POSE, 0.75]] * 3)
    np.testing.assert_array_equal(actions, before)


@pytest.mark.parametrize("domain_name", ["xdof_yam", "maniparena", "robomind-franka-dual"])
def test_two_arms_stand_still_and_hold_a_gripper_each(domain_name):
    embodiment = EMBODIMENTS[domain_name]
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 20))
    still = standing_still(actions, embodiment.rot6d_starts)
    expected = [*STILL_POSE, actions[0, 9], *STILL_POSE, actions[0, 19]]
    np.testing.assert_array_equal(still, [expected] * 4)


def test_a_head_stands_still_without_a_gripper():
    """Three blocks of nine columns, of which two are followed by a gripper."""
    embodiment = EMBODIMENTS["agibotworld"]
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 29))
    expected = [*STILL_POSE, *STILL_POSE, actions[0, 18], *STILL_POSE, actions[0, 28]]
    np.testing.assert_array_equal(standing_still(actions, embodiment.rot6d_starts), [expected] * 2)


def test_joints_that_stand_still_keep_their_first_positions():
    embodiment = EMBODIMENTS["robotwin"]
    assert embodiment.rot6d_starts == ()
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 14))
    np.testing.assert_array_equal(standing_still(actions, embodiment.rot6d_starts), [actions[0]] * 5)


def test_standing_still_goes_nowhere():
    """Whatever the recorded motion was, the pose after it is the first one."""
    moving = droid_actions(20)
    start = integrate_actions(np.eye(4), moving)[-1]
    actions = standing_still(moving, (3,))
    np.testing.assert_allclose(integrate_actions(start, actions), [start] * 21, atol=1e-12)
    assert standing_still(actions[:0], (3,)).shape == (0, 10)
