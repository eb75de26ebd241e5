"""Canvases against the reference's table; resizing, padding and composing against closed forms and torchvision."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from pipeline.errors import ConfigError, DatasetError
from pipeline.views import RESOLUTION_TIERS, Canvas, choose_canvas, compose, compose_concat, fit, pad


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# (H, W), tier, number of frames, canvas, content, latent grid, tokens: the reference's section 4.3
RESOLUTIONS = [
    ((540, 640), 480, 17, (544, 736), (540, 640), (5, 33, 40), 1700),
    ((540, 640), 480, 33, (544, 736), (540, 640), (9, 33, 40), 3060),
    ((270, 320), 480, 17, (544, 736), (270, 320), (5, 16, 20), 400),
    ((270, 320), 480, 33, (544, 736), (270, 320), (9, 16, 20), 720),
    ((540, 640), "256", 17, (256, 320), (256, 303), (5, 16, 18), 360),
    ((360, 640), 480, 17, (480, 832), (360, 640), (5, 22, 40), 1100),
    ((480, 640), 480, 17, (544, 736), (480, 640), (5, 30, 40), 1500),
    ((256, 512), 256, 17, (192, 320), (160, 320), (5, 10, 20), 250),
    ((480, 832), 480, 61, (480, 832), (480, 832), (16, 30, 52), 6240),
]


@pytest.mark.parametrize(("size", "tier", "num_frames", "canvas", "content", "latent", "num_tokens"), RESOLUTIONS)
def test_resolution_table(size, tier, num_frames, canvas, content, latent, num_tokens):
    chosen = choose_canvas(*size, tier)
    assert chosen == Canvas(*canvas, *content)
    assert chosen.latent_shape(num_frames) == latent
    frames, height, width = latent
    assert frames * math.ceil(height / 2) * math.ceil(width / 2) == num_tokens


@pytest.mark.parametrize(
    ("size", "tier", "canvas"),
    [
        ((1080, 720), 480, (768, 512)),
        ((720, 1280), 720, (720, 1280)),
        ((720, 1280), "704", (704, 1280)),
        ((100, 100), 480, (640, 640)),
        ((832, 480), 480, (832, 480)),
    ],
)
def test_other_canvases(size, tier, canvas):
    chosen = choose_canvas(*size, tier)
    assert (chosen.height_px, chosen.width_px) == canvas


def test_first_canvas_wins_a_tie():
    # 0.9 is as far from 1:1 as from 320x256's 0.8
    assert choose_canvas(90, 100, 256).width_px == 256


@pytest.mark.parametrize("tier", RESOLUTION_TIERS)
def test_canvases_hold_whole_latent_pixels(tier):
    assert all(side % 16 == 0 for size in RESOLUTION_TIERS[tier] for side in size)


def test_a_picture_smaller_than_a_latent_pixel_keeps_one():
    assert choose_canvas(8, 9, 256).latent_shape(1) == (1, 1, 1)


@pytest.mark.parametrize(
    ("content", "cropped"),
    [((540, 640), (528, 640)), ((256, 303), (256, 288)), ((272, 320), (272, 320)), ((8, 40), (16, 32))],
)
def test_a_decoded_frame_goes_back_onto_its_canvas_untouched(content, cropped):
    canvas = Canvas(544, 736, *content)
    again = canvas.cropped()
    assert again == Canvas(544, 736, *cropped)
    assert again.cropped() == again
    t, h, w = canvas.latent_shape(17)
    assert again.latent_shape(17) == (t, h, w)
    decoded = noise(1, 16 * h, 16 * w, 3)
    assert fit(decoded, again) is decoded
    assert pad(decoded, again).shape == (1, 544, 736, 3)


def test_unknown_tier_lists_the_tiers():
    with pytest.raises(ConfigError, match=r"Unknown image_size 481\. Did you mean '480'\? Tiers: 256, 480, 704, 720"):
        choose_canvas(540, 640, 481)


@pytest.mark.parametrize(
    ("size", "message"), [((0, 640), "at least 1x1 pixels, found 0x640"), ((1, 4000), "shrink to 0x320 on tier 256")]
)
def test_pictures_that_cannot_be_shown(size, message):
    with pytest.raises(ConfigError, match=message):
        choose_canvas(*size, 256)


def test_fit_never_touches_frames_that_fit():
    frames = noise(2, 180, 320, 3)
    assert fit(frames, choose_canvas(180, 320, 480)) is frames


def test_fit_is_the_frameworks_resize():
    """The framework resizes [C, T, H, W]; the frames here are [T, H, W, C]."""
    frames = noise(5, 540, 640, 3)
    canvas = choose_canvas(540, 640, 256)
    expected = transforms.resize(
        torch.from_numpy(frames).permute(3, 0, 1, 2), [256, 303], InterpolationMode.BICUBIC, antialias=True
    )
    fitted = fit(frames, canvas)
    assert fitted.dtype == np.uint8
    np.testing.assert_array_equal(fitted, expected.permute(1, 2, 3, 0).numpy())


def test_read_only_frames_are_taken_without_a_warning():
    frames = noise(2, 540, 640, 3)
    frames.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(frames, choose_canvas(540, 640, 256))
        compose_concat(frames, frames, frames)


def test_pad_mirrors_to_the_right_and_below():
    frames = noise(2, 540, 640, 3)
    padded = pad(frames, choose_canvas(540, 640, 480))
    assert padded.shape == (2, 544, 736, 3)
    np.testing.assert_array_equal(padded[:, :540, :640], frames)
    np.testing.assert_array_equal(padded[:, :540, 640:], frames[:, :, -2:-98:-1])
    np.testing.assert_array_equal(padded[:, 540:, :640], frames[:, -2:-6:-1])


@pytest.mark.parametrize(("size", "mode"), [((271, 640), "reflect"), ((180, 320), "edge"), ((540, 360), "edge")])
def test_pad_is_torchvisions(size, mode):
    frames = noise(1, *size, 3)
    canvas = Canvas(540, 736, *size)
    expected = transforms.pad(
        torch.from_numpy(frames).permute(0, 3, 1, 2), [0, 0, 736 - size[1], 540 - size[0]], padding_mode=mode
    )
    np.testing.assert_array_equal(pad(frames, canvas), expected.permute(0, 2, 3, 1).numpy())


def test_pad_repeats_the_edge_on_both_axes_when_one_margin_is_too_wide():
    frames = noise(1, 100, 100, 3)
    padded = pad(frames, Canvas(120, 200, 100, 100))  # right margin = content, lower margin is not
    np.testing.assert_array_equal(padded[:, 100:, :100], np.repeat(frames[:, -1:], 20, axis=1))
    mirrored = pad(frames, Canvas(120, 199, 100, 100))
    np.testing.assert_array_equal(mirrored[:, 100, :100], frames[:, 98])


def test_pad_expects_fitted_frames():
    with pytest.raises(AssertionError, match="before pad"):
        pad(noise(1, 10, 10, 3), Canvas(16, 16, 8, 8))


def test_concat_layout():
    wrist, left, right = (np.full((2, 360, 640, 3), value, dtype=np.uint8) for value in (10, 20, 30))
    frames = compose_concat(wrist, left, right)
    assert frames.shape == (2, 540, 640, 3)
    assert frames.dtype == np.uint8
    assert (frames[:, :360] == 10).all()
    assert (frames[:, 360:, :320] == 20).all()
    assert (frames[:, 360:, 320:] == 30).all()


def test_concat_halves_are_truncated_means_of_four_pixels():
    wrist, left, right = (noise(3, 36, 64, 3, seed=seed) for seed in range(3))
    frames = compose_concat(wrist, left, right)
    np.testing.assert_array_equal(frames[:, :36], wrist)
    for view, half in ((left, frames[:, 36:, :32]), (right, frames[:, 36:, 32:])):
        mean = view.reshape(3, 18, 2, 32, 2, 3).astype(np.float64).mean(axis=(2, 4))
        # A mean that is a whole number may come out one lower: the truncation is the framework's.
        fractional = mean % 1 != 0
        np.testing.assert_array_equal(half[fractional], np.floor(mean[fractional]))
        assert (mean - half)[~fractional].max() <= 1


def test_concat_of_an_odd_height():
    view = noise(1, 181, 320, 3)
    assert compose_concat(view, view, view).shape == (1, 271, 320, 3)


def test_concat_of_an_odd_width():
    view = noise(1, 180, 321, 3)
    with pytest.raises(DatasetError, match="even width: two halves of 160 px do not fill a row of 321 px"):
        compose_concat(view, view, view)


@pytest.mark.parametrize("shape", [(2, 180, 322, 3), (3, 180, 320, 3)])
def test_concat_of_different_views_names_their_sizes(shape):
    wrist = noise(2, 180, 320, 3)
    expected = f"upper 2 frames of 180x320, lower left {shape[0]} frames of {shape[1]}x{shape[2]}, lower right 2"
    with pytest.raises(DatasetError, match=expected):
        compose_concat(wrist, noise(*shape), wrist)


def test_compose_one_view_passes_through():
    frames = noise(1, 8, 8, 3)
    assert compose([frames], "ego_view") is frames
    assert compose([frames], "concat_view") is frames  # composed beforehand


def test_compose_keeps_the_order_of_the_views():
    views = [noise(1, 8, 8, 3, seed=seed) for seed in range(3)]
    np.testing.assert_array_equal(compose(views, "concat_view"), compose_concat(*views))


@pytest.mark.parametrize(("num_views", "view_point"), [(0, "ego_view"), (2, "concat_view"), (3, "wrist_view")])
def test_compose_refuses_other_combinations(num_views, view_point):
    with pytest.raises(ConfigError, match=f"Cannot compose {num_views} views as '{view_point}': concat_view takes 3"):
        compose([noise(1, 8, 8, 3)] * num_views, view_point)
