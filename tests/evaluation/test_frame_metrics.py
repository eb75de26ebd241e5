"""Frame metrics: closed forms, what counts as moving, independence of frames, and when LPIPS is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity
from torchvision.models import AlexNet_Weights, alexnet

from pipeline.errors import ConfigError
from pipeline.evaluation import frames as frames_module
from pipeline.evaluation.frames import (
    MAX_PSNR_DB,
    MIN_LPIPS_PX,
    MIN_SSIM_PX,
    MOVING_THRESHOLD,
    FrameMetrics,
    alexnet_path,
    load_lpips,
)


def noise(num_frames: int = 3, height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (num_frames, height, width, 3), dtype=np.uint8)


def gray(level: int, num_frames: int = 1, height: int = 16, width: int = 20) -> np.ndarray:
    return np.full((num_frames, height, width, 3), level, dtype=np.uint8)


def measure(frames: np.ndarray, truth: np.ndarray, reference: np.ndarray | None = None, lpips=None):
    return FrameMetrics(lpips=lpips)(frames, truth, truth[0] if reference is None else reference)


@pytest.fixture
def torch_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def saved_alexnet(tmp_path_factory) -> Iterator[Path]:
    """An AlexNet that was never trained, written once: it has 240 MB."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alexnet") / "weights.pth"
    torch.save(alexnet(weights=None).state_dict(), path)
    yield path
    path.unlink()


@pytest.fixture
def expected_path(torch_home) -> Path:
    """Where torchvision would have put the trained one."""
    path = torch_home / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def random_alexnet(saved_alexnet, expected_path) -> Path:
    expected_path.symlink_to(saved_alexnet)
    return expected_path


@pytest.mark.parametrize("offset", [1, 5, 50])
def test_psnr_of_a_constant_offset(offset):
    truth = noise()
    scores = measure(truth + np.uint8(offset), truth)
    np.testing.assert_allclose(scores["psnr"], 20 * np.log10(255 / offset), atol=1e-5)


def test_psnr_does_not_wrap_around_where_the_drawn_frame_is_darker():
    np.testing.assert_allclose(measure(gray(10), gray(60))["psnr"], 20 * np.log10(255 / 50), atol=1e-5)


def test_identical_frames_score_the_cap_and_a_perfect_ssim():
    truth = noise()
    scores = measure(truth.copy(), truth)
    assert (scores["psnr"] == MAX_PSNR_DB).all()
    np.testing.assert_allclose(scores["ssim"], 1, atol=1e-6)
    assert 10 * np.log10(12 * 255**2) < MAX_PSNR_DB, "rounding to 8 bits must stay below the cap"


def test_ssim_of_two_constant_images():
    """Without any structure only the luminance term is left: (2ab + c1) / (a² + b² + c1)."""
    a, b, c1 = 100 / 255, 120 / 255, 0.01**2
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    np.testing.assert_allclose(measure(gray(100), gray(120))["ssim"], expected, atol=1e-4)


def test_every_frame_is_scored_on_its_own(monkeypatch):
    truth, drawn = noise(5), noise(5, seed=1)
    together = measure(drawn, truth)
    alone = [measure(drawn[t : t + 1], truth[t : t + 1], truth[0]) for t in range(5)]
    monkeypatch.setattr(frames_module, "_CHUNK_PX", 2 * 24 * 32)
    in_chunks = measure(drawn, truth)
    for name, values in together.items():
        assert values.shape == (5,)
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, [scores[name][0] for scores in alone], atol=1e-6)
        np.testing.assert_allclose(values, in_chunks[name], atol=1e-6)


def test_moving_psnr_looks_at_moving_pixels_only():
    reference = gray(100)[0]
    truth = gray(100)
    truth[:, :4, :5] = 180
    drawn = truth.copy()
    drawn[:, :4, :5] -= 20
    drawn[:, 10:, 10:] += 90  # where nothing moved
    scores = measure(drawn, truth, reference)
    np.testing.assert_allclose(scores["moving_psnr"], 20 * np.log10(255 / 20), atol=1e-5)
    np.testing.assert_allclose(scores["moving_share"], 4 * 5 / (16 * 20))


@pytest.mark.parametrize("direction", [1, -1])
def test_a_pixel_moves_beyond_the_threshold_in_any_channel(direction):
    reference = gray(100)[0]
    truth = gray(100, num_frames=2)
    truth[0, 0, 0, 1] = 100 + direction * MOVING_THRESHOLD
    truth[1, 0, 0, 1] = 100 + direction * (MOVING_THRESHOLD + 1)
    scores = measure(truth.copy(), truth, reference)
    np.testing.assert_array_equal(scores["moving_share"], [0, 1 / (16 * 20)])
    np.testing.assert_array_equal(scores["moving_psnr"], [np.nan, MAX_PSNR_DB])


def test_what_moves_is_the_true_frames_business():
    """A model that invents motion in a scene at rest has no moving pixels to be scored on."""
    assert np.isnan(measure(gray(250), gray(100))["moving_psnr"]).all()


def test_no_frames_are_no_scores():
    assert {len(values) for values in measure(noise()[:0], noise()[:0], noise()[0]).values()} == {0}


def test_frames_smaller_than_ssims_window_are_refused():
    small = gray(3, height=MIN_SSIM_PX - 1)
    with pytest.raises(ConfigError, match=r"at least 11 x 11 px, found 10 x 20"):
        measure(small, small)
    just_enough = gray(3, height=MIN_SSIM_PX, width=MIN_SSIM_PX)
    np.testing.assert_allclose(measure(just_enough, just_enough)["ssim"], 1, atol=1e-6)


def test_without_weights_auto_says_where_it_looked_and_downloads_nothing(torch_home):
    net, status = load_lpips("auto")
    assert net is None
    assert str(torch_home / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth") in status
    assert AlexNet_Weights.DEFAULT.url in status
    assert not list(torch_home.rglob("*"))
    assert np.isnan(measure(noise(), noise(), lpips=net)["lpips"]).all()


def test_the_file_is_the_one_torchvision_looks_for(torch_home):
    assert alexnet_path().name == AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[1]
    assert alexnet_path().parent == Path(torch.hub.get_dir()) / "checkpoints"


@pytest.mark.parametrize("choice", ["auto", "download"])
def test_lpips_equals_torchmetrics_function(random_alexnet, choice):
    net, status = load_lpips(choice)
    assert random_alexnet.name in status
    truth, drawn = noise(3, 64, 80), noise(3, 64, 80, seed=1)
    drawn[2] = truth[2]
    scores = FrameMetrics(lpips=net)(drawn, truth, truth[0])["lpips"]
    images = [torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 for frames in (drawn, truth)]
    expected = learned_perceptual_image_patch_similarity(*images, net_type="alex", reduction="none", normalize=True)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5)
    assert scores[2] == 0
    assert (scores[:2] > 0.01).all()
    np.testing.assert_allclose(FrameMetrics(lpips=net)(drawn[:1], truth[:1], truth[0])["lpips"], scores[:1], rtol=1e-5)


def test_frames_too_small_for_lpips_have_none(random_alexnet):
    net, _ = load_lpips("auto")
    small = noise(height=MIN_LPIPS_PX - 1, width=100)
    assert np.isnan(measure(small, small, lpips=net)["lpips"]).all()
    without, status = load_lpips("auto", shorter_side_px=MIN_LPIPS_PX - 1)
    assert without is None
    assert status == "LPIPS needs frames of at least 64 px, these have a side of 63 px."
    assert load_lpips("auto", shorter_side_px=MIN_LPIPS_PX)[0] is not None


def test_lpips_off_and_unknown():
    assert load_lpips("none") == (None, "LPIPS was switched off.")
    with pytest.raises(ConfigError, match="Did you mean 'auto'"):
        load_lpips("Auto ")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"weight": torch.zeros(1)}, [1, 2]])
def test_a_file_that_is_no_alexnet_is_named(expected_path, content):
    if isinstance(content, bytes):
        expected_path.write_bytes(content)
    else:
        torch.save(content, expected_path)
    with pytest.raises(ConfigError, match="expected torchvision's AlexNet weights") as caught:
        load_lpips("auto")
    assert str(expected_path) in str(caught.value)


def test_a_download_that_fails_says_what_to_do(torch_home, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConfigError, match="Cannot download AlexNet's weights") as caught:
        load_lpips("download")
    assert str(alexnet_path()) in str(caught.value)
