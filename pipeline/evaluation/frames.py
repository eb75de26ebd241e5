"""Frame metrics: PSNR, SSIM and LPIPS of drawn frames against recorded ones. Owns what a frame's numbers mean.

The maths is torchmetrics'; this is the only module that imports it or torchvision. Every frame stands on its own: a
result depends neither on its neighbours nor on how many frames came together.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as LpipsNet
from torchvision.models import AlexNet_Weights

from pipeline.errors import ConfigError, did_you_mean

# Identical frames would be infinitely good, and one such frame would swallow every average. The cap lies just above
# what rounding to 8 bits alone leaves: its mean squared error is 1/12, which is 58.9 dB.
MAX_PSNR_DB = 60.0
# Of 255, in any channel. Video codecs leave errors of a few levels in a scene that stands still (at 40 dB they are 2.6
# in the root mean square), so 16 is six times that noise, while an object that moves changes its pixels by more.
MOVING_THRESHOLD = 16
# SSIM's Gaussian window has σ = 1.5 px, which torchmetrics cuts off at 11 px.
MIN_SSIM_PX = 11
# LPIPS was fitted to what people say about patches of 64 px (Zhang et al. 2018); AlexNet sees nothing below 31 px.
MIN_LPIPS_PX = 64

LPIPS_CHOICES = ("auto", "download", "none")
LpipsChoice = Literal["auto", "download", "none"]

_WEIGHTS = AlexNet_Weights.IMAGENET1K_V1
_PEAK = 255.0
_CHUNK_PX = 2**21  # SSIM holds some twenty float32 images per frame: about half a GB for this many pixels


class FrameMetrics:
    """Compares frames with the recorded ones, on one device."""

    def __init__(self, *, device: str | torch.device = "cpu", lpips: LpipsNet | None) -> None:
        """`lpips` is what `load_lpips` returned for the same device."""
        self._device = torch.device(device)
        self._lpips = lpips

    def __call__(self, frames: np.ndarray, truth: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of `frames` against `truth`, uint8 [T, H, W, 3] both; `reference` uint8 [H, W, 3] is what they left.

        Returns float64 [T] each: `psnr` in dB, at most MAX_PSNR_DB; `ssim`; `moving_psnr`, the PSNR in dB of those
        pixels that `truth` shows more than MOVING_THRESHOLD away from `reference` in any channel, NaN where there are
        none; `moving_share`, the share of these pixels; `lpips`, NaN without a network or where a side is shorter than
        MIN_LPIPS_PX. Raises ConfigError when a side is shorter than SSIM's window.
        """
        assert frames.shape == truth.shape == (len(frames), *reference.shape), "frames of one size, in pairs"
        assert reference.shape[2:] == (3,), "frames are [T, H, W, 3]"
        assert frames.dtype == truth.dtype == reference.dtype == np.uint8, "PSNR counts 8-bit levels"
        _check_size(*frames.shape[1:3])
        moving = moving_pixels(truth, reference)
        psnr, ssim, moving_psnr, lpips = (np.full(len(frames), np.nan) for _ in range(4))
        chunk = max(1, _CHUNK_PX // (frames.shape[1] * frames.shape[2]))
        for start in range(0, len(frames), chunk):
            part = slice(start, start + chunk)
            drawn_THWC, true_THWC = self._levels(frames[part]), self._levels(truth[part])
            psnr[part] = _psnr(drawn_THWC, true_THWC)
            moving_psnr[part] = _masked_psnr(drawn_THWC, true_THWC, moving[part])
            drawn_TCHW, true_TCHW = _unit_images(drawn_THWC), _unit_images(true_THWC)
            ssim[part] = _ssim(drawn_TCHW, true_TCHW)
            lpips[part] = self._lpips_scores(drawn_TCHW, true_TCHW)
        share = moving.mean(axis=(1, 2), dtype=np.float64)
        return {"psnr": psnr, "ssim": ssim, "moving_psnr": moving_psnr, "lpips": lpips, "moving_share": share}

    def _levels(self, frames_THWC: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames_THWC)).to(self._device)

    @torch.inference_mode()
    def _lpips_scores(self, drawn_TCHW: Tensor, true_TCHW: Tensor) -> np.ndarray:
        if self._lpips is None or min(drawn_TCHW.shape[-2:]) < MIN_LPIPS_PX:
            return np.full(len(drawn_TCHW), np.nan)
        scores = self._lpips(drawn_TCHW.float(), true_TCHW.float())
        self._lpips.reset()  # else it would keep every score it ever gave
        return np.atleast_1d(scores.double().cpu().numpy())


def moving_pixels(truth: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Which pixels of uint8 [T, H, W, 3] differ from [H, W, 3] by more than MOVING_THRESHOLD: bool [T, H, W]."""
    # Larger minus smaller stays within uint8, where a plain difference would wrap around.
    distance = np.maximum(truth, reference) - np.minimum(truth, reference)
    return (distance > MOVING_THRESHOLD).any(axis=-1)


def load_lpips(
    choice: LpipsChoice, device: str | torch.device = "cpu", *, shorter_side_px: int | None = None
) -> tuple[LpipsNet | None, str]:
    """LPIPS on AlexNet, or None, and one sentence for the report that says which and why.

    `auto` takes torchvision's weights where torch hub's cache has them and downloads nothing; `download` may fetch
    them; `none` does without. `shorter_side_px`, where it is known, of the frames to come: below MIN_LPIPS_PX there is
    no LPIPS. The linear heads on top come with torchmetrics. Raises ConfigError for an unknown choice, for a file that
    holds no AlexNet, and when the download fails.
    """
    if choice not in LPIPS_CHOICES:
        raise ConfigError(
            f"Unknown LPIPS setting {choice!r}.{did_you_mean(str(choice), LPIPS_CHOICES)} "
            f"Known: {', '.join(LPIPS_CHOICES)}."
        )
    if choice == "none":
        return None, "LPIPS was switched off."
    if shorter_side_px is not None and shorter_side_px < MIN_LPIPS_PX:
        return None, f"LPIPS needs frames of at least {MIN_LPIPS_PX} px, these have a side of {shorter_side_px} px."
    path = alexnet_path()
    if choice == "auto" and not path.is_file():
        return None, (
            f"LPIPS needs AlexNet's weights, which are not at {path}: put {_WEIGHTS.url} there, or choose --lpips "
            "download."
        )
    return _build_lpips(path).to(device), f"LPIPS on AlexNet ({path.name}), with the linear heads of torchmetrics."


def alexnet_path() -> Path:
    """Where torchvision looks for AlexNet's weights before it downloads them; TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_WEIGHTS.url).name


def _build_lpips(path: Path) -> LpipsNet:
    found = path.is_file()
    try:
        if not found:
            _download(path)
        # torchvision would unpickle whatever lies there, which can run any code. This reads tensors and nothing else.
        torch.load(path, map_location="cpu", weights_only=True)
        return LpipsNet(net_type="alex", reduction="none", normalize=True)
    except (OSError, RuntimeError, TypeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
        if not found:
            raise ConfigError(
                f"Cannot download AlexNet's weights for LPIPS from {_WEIGHTS.url} ({error}). Put the file at {path}, "
                "or do without LPIPS."
            ) from error
        raise ConfigError(
            f"{path}: expected torchvision's AlexNet weights, but: {error}. Remove the file and fetch "
            f"{_WEIGHTS.url} again, or do without LPIPS."
        ) from error


def _download(path: Path) -> None:
    """As torchvision does it: the file's name ends in the beginning of its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(_WEIGHTS.url, str(path), hash_prefix=path.stem.rpartition("-")[2])


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SSIM_PX:
        raise ConfigError(
            f"SSIM's window needs frames of at least {MIN_SSIM_PX} x {MIN_SSIM_PX} px, found {height} x {width} "
            "(height x width). Evaluate on a larger canvas."
        )


def _psnr(drawn_THWC: Tensor, true_THWC: Tensor) -> np.ndarray:
    """In float64, where sums of squared 8-bit levels are exact."""
    decibels = peak_signal_noise_ratio(
        drawn_THWC.double(), true_THWC.double(), data_range=_PEAK, dim=(1, 2, 3), reduction="none"
    )
    return decibels.clamp(max=MAX_PSNR_DB).cpu().numpy()


def _masked_psnr(drawn_THWC: Tensor, true_THWC: Tensor, moving: np.ndarray) -> np.ndarray:
    decibels = np.full(len(moving), np.nan)
    for frame, mask in enumerate(torch.from_numpy(moving).to(drawn_THWC.device)):
        if mask.any():
            drawn, true = drawn_THWC[frame][mask].double(), true_THWC[frame][mask].double()
            decibels[frame] = min(float(peak_signal_noise_ratio(drawn, true, data_range=_PEAK)), MAX_PSNR_DB)
    return decibels


def _unit_images(levels_THWC: Tensor) -> Tensor:
    """[T, H, W, 3] levels as [T, 3, H, W] in [0, 1]."""
    # GPUs shorten float32 convolutions to TF32, whose rounding is as large as SSIM's constants; float64 they leave
    # alone. On a CPU float32 is not shortened, and twenty times faster.
    exact = torch.float32 if levels_THWC.device.type == "cpu" else torch.float64
    return levels_THWC.permute(0, 3, 1, 2).to(exact) / _PEAK


def _ssim(drawn_TCHW: Tensor, true_TCHW: Tensor) -> np.ndarray:
    scores = structural_similarity_index_measure(drawn_TCHW, true_TCHW, data_range=1.0, reduction="none")
    return np.atleast_1d(scores.double().cpu().numpy())
