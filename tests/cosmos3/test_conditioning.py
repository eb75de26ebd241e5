"""Which parts are clean in each mode, and noise that depends on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.cosmos3.conditioning import Conditioning, conditioning_for, draw_noise
from pipeline.errors import PipelineError

ROWS = (0, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("policy", Conditioning((0,), (1, 2), (), ROWS)),
        ("forward_dynamics", Conditioning((0,), (1, 2), ROWS, ())),
        ("inverse_dynamics", Conditioning((0, 1, 2), (), (), ROWS)),
    ],
)
def test_each_mode_has_the_trainers_clean_parts(mode, expected):
    assert conditioning_for(mode, num_latent_frames=3, action_chunk=8) == expected


@pytest.mark.parametrize(
    ("indexes", "clean", "noisy"),
    [((2, 0, 2), (0, 2), (1,)), ((), (), (0, 1, 2)), ([1], (1,), (0, 2))],
)
@pytest.mark.parametrize("mode", ["policy", "forward_dynamics", "inverse_dynamics"])
def test_cond_frame_indexes_replace_the_frames_and_not_the_rows(mode, indexes, clean, noisy):
    default = conditioning_for(mode, num_latent_frames=3, action_chunk=8)
    chosen = conditioning_for(mode, num_latent_frames=3, action_chunk=8, cond_frame_indexes=indexes)
    assert (chosen.clean_frames, chosen.noisy_frames) == (clean, noisy)
    assert (chosen.clean_rows, chosen.noisy_rows) == (default.clean_rows, default.noisy_rows)


@pytest.mark.parametrize("indexes", [(3,), (-1,), (0, 7)])
def test_a_frame_outside_the_clip_is_refused(indexes):
    with pytest.raises(PipelineError, match=r"must be latent frames 0\.\.2"):
        conditioning_for("policy", num_latent_frames=3, action_chunk=8, cond_frame_indexes=indexes)


def test_an_unknown_mode_is_refused_with_the_closest_one():
    with pytest.raises(PipelineError, match="Did you mean 'inverse_dynamics'"):
        conditioning_for("inverse_dynamic", num_latent_frames=3, action_chunk=8)


def test_noise_is_numpys_legacy_generator():
    """The first values of RandomState(42), which NumPy has promised never to change."""
    known = torch.tensor([0.49671415, -0.1382643, 0.64768854, 1.52302986, -0.23415337, -0.23413696])
    noise = draw_noise(42, (2, 3))
    assert noise.dtype == torch.float32
    assert torch.equal(noise.flatten(), known)
    expected = np.random.RandomState(7).standard_normal((48, 3, 2, 2)).astype(np.float32)
    assert np.array_equal(draw_noise(7, (48, 3, 2, 2)).numpy(), expected)


def test_streams_of_one_seed_start_equal_whatever_their_shape():
    video, action = draw_noise(5, (48, 3, 4, 5)), draw_noise(5, (16, 64))
    assert torch.equal(video.flatten()[: action.numel()], action.flatten())
    assert not torch.equal(draw_noise(6, (16, 64)), action)


def test_noise_leaves_numpys_global_generator_alone():
    before = np.random.get_state()[1].copy()
    draw_noise(1, (10,))
    assert np.array_equal(np.random.get_state()[1], before)
