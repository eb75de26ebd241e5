"""Frames on their way to the model: composing cameras, resizing to the canvas, padding it.

Frames are uint8 [T, H, W, 3] in and out. Sizes and arithmetic are cosmos-framework's (data/generator/utils.py,
data/generator/action/utils/transforms.py, data/generator/action/datasets/droid_lerobot_dataset.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from pipeline.errors import ConfigError, DatasetError, did_you_mean

LATENT_STRIDE_PX = 16
LATENT_STRIDE_FRAMES = 4

# Width x height, in the framework's order: on a tie the first wins.
RESOLUTION_TIERS: Mapping[str, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        "256": ((256, 256), (320, 256), (256, 320), (320, 192), (192, 320)),
        "480": ((640, 640), (736, 544), (544, 736), (832, 480), (480, 832), (512, 768)),
        "704": ((960, 960), (1088, 832), (832, 1088), (1280, 704), (704, 1280)),
        "720": ((960, 960), (1104, 832), (832, 1104), (1280, 720), (720, 1280)),
    }
)


@dataclass(frozen=True)
class Canvas:
    """The size the model is told of, and the part of it, from the top left, that holds the picture."""

    height_px: int
    width_px: int
    content_height_px: int
    content_width_px: int

    def latent_shape(self, num_frames: int) -> tuple[int, int, int]:
        """(frames, height, width) of the VAE's latent. Padding takes no part in it: it is cropped after encoding."""
        return pixel_to_latent_shape(num_frames, self.content_height_px, self.content_width_px)

    def cropped(self) -> Canvas:
        """The same canvas with the content cut to whole latent pixels: all of the picture that the VAE draws.

        A decoded frame has this size (cosmos-framework crops its output to content // 16 * 16 likewise). Fitted to
        this canvas it keeps every pixel and gives the latent grid that it was decoded from.
        """
        _, rows, columns = self.latent_shape(1)
        return replace(self, content_height_px=rows * LATENT_STRIDE_PX, content_width_px=columns * LATENT_STRIDE_PX)


def pixel_to_latent_shape(num_frames: int, height_px: int, width_px: int) -> tuple[int, int, int]:
    """(t, h, w) of a clip: a latent frame for the first pixel frame, then one per four; 16 pixels each, cut off."""
    return (
        1 + (num_frames - 1) // LATENT_STRIDE_FRAMES,
        max(height_px // LATENT_STRIDE_PX, 1),
        max(width_px // LATENT_STRIDE_PX, 1),
    )


def choose_canvas(height_px: int, width_px: int, image_size: int | str) -> Canvas:
    """The tier's canvas whose H/W is nearest to the picture's, and the picture's size on it; never enlarged.

    Follows find_closest_target_size and reflection_pad_to_target of cosmos-framework, action/utils/transforms.py.
    Raises ConfigError for an unknown tier or a picture that is too thin to be shown.
    """
    sizes = RESOLUTION_TIERS.get(str(image_size))
    if sizes is None:
        raise ConfigError(
            f"Unknown image_size {image_size!r}.{did_you_mean(str(image_size), RESOLUTION_TIERS)} "
            f"Tiers: {', '.join(RESOLUTION_TIERS)}."
        )
    if min(height_px, width_px) < 1:
        raise ConfigError(f"Expected frames of at least 1x1 pixels, found {height_px}x{width_px} (HxW).")
    ratio = height_px / width_px
    canvas_width, canvas_height = min(sizes, key=lambda size: abs(ratio - size[1] / size[0]))
    scale = min(canvas_width / width_px, canvas_height / height_px, 1.0)
    content_height, content_width = int(scale * height_px + 0.5), int(scale * width_px + 0.5)
    if min(content_height, content_width) < 1:
        raise ConfigError(
            f"Frames of {height_px}x{width_px} (HxW) shrink to {content_height}x{content_width} on tier {image_size}: "
            "nothing is left to see. Crop them, or choose a larger image_size."
        )
    return Canvas(canvas_height, canvas_width, content_height, content_width)


def fit(frames: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Frames at the canvas's content size: bicubic with antialiasing, value for value torchvision's resize of uint8.

    Its arithmetic is used directly, because importing torchvision takes longer than loading an episode.

    Returned as they are when they have that size already.
    """
    size = (canvas.content_height_px, canvas.content_width_px)
    if frames.shape[1:3] == size:
        return frames
    resized = torch.nn.functional.interpolate(
        _to_tensor_tchw(frames).float(), size=size, mode="bicubic", antialias=True, align_corners=False
    )
    return _to_frames(resized.clamp(0, 255).round().to(torch.uint8))


def pad(frames: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Content-sized frames on the whole canvas, mirrored to the right and below.

    Where either margin is as wide as the content, a mirror image does not reach and the last pixel is repeated, on both
    axes (reflection_pad_to_target of cosmos-framework, action/utils/transforms.py).
    """
    content = (canvas.content_height_px, canvas.content_width_px)
    assert frames.shape[1:3] == content, f"fit() comes before pad(): frames are {frames.shape}, content is {content}"
    below = canvas.height_px - canvas.content_height_px
    right = canvas.width_px - canvas.content_width_px
    mode = "edge" if below >= canvas.content_height_px or right >= canvas.content_width_px else "reflect"
    return np.pad(frames, ((0, 0), (0, below), (0, right), (0, 0)), mode=mode)


def compose(views: Sequence[np.ndarray], view_point: str) -> np.ndarray:
    """One view as it is, or the three views of a `concat_view` as one picture.

    Raises ConfigError for any other combination, DatasetError when the views cannot be put together.
    """
    if len(views) == 1:
        return views[0]
    if len(views) == 3 and view_point == "concat_view":
        return compose_concat(*views)
    raise ConfigError(
        f"Cannot compose {len(views)} views as {view_point!r}: concat_view takes 3 (the upper one, lower left, lower "
        "right), everything else takes 1. Choose them with --dataset.cameras."
    )


def compose_concat(wrist: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The wrist view over the two others at half size: [T, H, W, 3] each, gives [T, H + H//2, W, 3].

    Bilinear without antialiasing, on values in [0, 1], truncated to uint8 (_compose_multi_view of cosmos-framework,
    action/datasets/droid_lerobot_dataset.py). Raises DatasetError when the views differ in shape, or when their width
    is odd, so that two halves do not fill a row.
    """
    _check_same_shape(wrist, left, right)
    _, height, width, _ = wrist.shape
    if width % 2:
        raise DatasetError(
            f"concat_view needs an even width: two halves of {width // 2} px do not fill a row of {width} px. "
            "Crop or resize the videos, or choose a single camera with --dataset.cameras."
        )
    half = (height // 2, width // 2)
    bottom = np.concatenate([_shrink(left, half), _shrink(right, half)], axis=2)
    return np.concatenate([wrist, bottom], axis=1)


def _check_same_shape(wrist: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    if wrist.shape == left.shape == right.shape:
        return
    found = ", ".join(
        f"{name} {len(view)} frames of {view.shape[1]}x{view.shape[2]}"
        for name, view in (("upper", wrist), ("lower left", left), ("lower right", right))
    )
    raise DatasetError(
        f"concat_view needs three views of one length and size (HxW), found {found}. "
        "Resize the videos to one size, or choose a single camera with --dataset.cameras."
    )


def _shrink(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    unit_range = _to_tensor_tchw(frames).float() / 255
    small = torch.nn.functional.interpolate(unit_range, size=size, mode="bilinear", align_corners=False)
    return _to_frames((small * 255).to(torch.uint8))  # truncates, as the framework does


def _to_tensor_tchw(frames: np.ndarray) -> torch.Tensor:
    # Arrays out of Ray's object store are read-only, which torch warns about: those are copied.
    return torch.from_numpy(np.require(frames, requirements=("C", "W"))).permute(0, 3, 1, 2)


def _to_frames(tensor_tchw: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor_tchw.permute(0, 2, 3, 1).numpy())
