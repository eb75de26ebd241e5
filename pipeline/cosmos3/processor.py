"""Observations to requests, model output to physical actions: the two ends that users of this model know.

The names are those of PhyAI's public `Cosmos3PolicyProcessor`; the conventions are cosmos-framework's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pipeline.actions import Normalizer, load_normalizer
from pipeline.cosmos3.conditioning import MODES
from pipeline.cosmos3.config import resolve_checkpoint
from pipeline.cosmos3.prompt import Caption, PromptTokenizer
from pipeline.cosmos3.request import Cosmos3ActionRequest, Cosmos3ActionResult
from pipeline.embodiments import MAX_ACTION_DIM, Embodiment, get_embodiment
from pipeline.errors import ConfigError, PipelineError, ResultError, did_you_mean
from pipeline.views import Canvas, choose_canvas, fit, pad, pixel_to_latent_shape

_PROMPTS_KEPT = 4096


class Cosmos3PolicyProcessor:
    """Turns observations of one embodiment into requests, and results back into physical units.

    `tokenizer` is a checkpoint's folder or hub id, or a loaded PromptTokenizer. An integer `domain_id` needs
    `raw_action_dim`, because the layout behind it is not known; the other settings of `domain_name` still apply. A
    `normalizer` that is loaded already takes the place of `action_normalization` and `action_stats_path`.
    """

    def __init__(
        self,
        tokenizer: str | Path | PromptTokenizer,
        *,
        mode: str = "policy",
        domain_name: str = "droid_lerobot",
        domain_id: int | None = None,
        raw_action_dim: int | None = None,
        action_chunk_size: int | None = None,
        fps: float | None = None,
        image_size: int | str = 480,
        prompt_format: str = "json",
        view_point: str | None = None,
        view_description: str | None = None,
        cond_frame_indexes: Sequence[int] | None = None,
        action_normalization: str = "none",
        action_stats_path: str | Path | None = None,
        normalizer: Normalizer | None = None,
    ) -> None:
        embodiment = get_embodiment(domain_name)
        self.tokenizer = (
            tokenizer
            if isinstance(tokenizer, PromptTokenizer)
            else PromptTokenizer.from_pretrained(resolve_checkpoint(tokenizer))
        )
        self.mode = _checked_mode(mode)
        self.domain_id, self.raw_action_dim = _resolve_domain(embodiment, domain_id, raw_action_dim)
        self.action_chunk_size = embodiment.chunk_size if action_chunk_size is None else action_chunk_size
        self.fps = (embodiment.fps or 24.0) if fps is None else fps
        if self.action_chunk_size < 4 or self.action_chunk_size % 4 or not 0 < self.fps < math.inf:
            raise ConfigError(
                "action_chunk_size must be a positive multiple of 4 and fps above zero, found "
                f"{self.action_chunk_size} and {self.fps}."
            )
        self.image_size, self.prompt_format = image_size, prompt_format
        self.view_point = view_point or embodiment.view_point or "ego_view"
        composed = self.view_point == "concat_view"
        self.view_description = view_description or (embodiment.view_description if composed else "")
        self.cond_frame_indexes = cond_frame_indexes
        self.normalizer = normalizer or load_normalizer(action_normalization, action_stats_path, self.raw_action_dim)
        # A labelling run asks for the same few captions again and again.
        self._encode = lru_cache(maxsize=_PROMPTS_KEPT)(self.tokenizer.encode)

    def preprocess(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Model inputs for one observation.

        `images`: a path, PIL image, array or tensor, or a list of them; a single image is a clip of one frame, and a
        clip that is too short repeats its last frame. Arrays are uint8, or float in [0, 1]. `task` or `prompt`: a
        string, or a list whose first entry counts. `cond_action` or `action`: [T, raw_action_dim] in the units of the
        statistics; trimmed, or its last row repeated, to the chunk. `mode`, `domain_name`, `domain_id`,
        `raw_action_dim` override the constructor's.

        Returns `text_ids`, `neg_text_ids`, `pixel_values` [1, 3, T, H, W] in [-1, 1], `video_shape` (T, H, W) of the
        content in pixels, `mode`, `domain_id`, `action_chunk`, `raw_action_dim`, `cond_action` ([chunk, 64] or None),
        `cond_frame_indexes`.
        """
        if observation.get("images") is None:
            raise PipelineError(
                f"An observation needs 'images'; found {', '.join(map(repr, observation)) or 'nothing'}."
            )
        frames = _to_frames(observation["images"])
        canvas = choose_canvas(*frames.shape[1:3], self.image_size)
        inputs = self.window_inputs(fit(frames, canvas), canvas, _first_text(observation), mode=observation.get("mode"))
        inputs.update(self._overridden_domain(observation))
        action = next((observation[key] for key in ("cond_action", "action") if observation.get(key) is not None), None)
        inputs["cond_action"] = None if action is None else self.cond_action(action, inputs["raw_action_dim"])
        inputs["pixel_values"] = inputs["pixel_values"].float()[None] / 127.5 - 1.0
        return inputs

    def window_inputs(
        self, frames: np.ndarray, canvas: Canvas, task: str, *, mode: str | None = None, fps: float | None = None
    ) -> dict[str, Any]:
        """The same inputs for frames that are already fitted to `canvas`: uint8 [T, H, W, 3] at content size.

        `pixel_values` stays uint8 [3, T, H, W] here; the engine scales it on its device.
        """
        num_frames = self.action_chunk_size + 1
        frames = frames[:num_frames]
        if len(frames) < num_frames:
            frames = np.concatenate((frames, np.repeat(frames[-1:], num_frames - len(frames), axis=0)))
        caption = Caption(
            task=task,
            view_point=self.view_point,
            view_description=self.view_description,
            num_frames=num_frames,
            fps=fps or self.fps,
            height_px=canvas.height_px,
            width_px=canvas.width_px,
        )
        return {
            "text_ids": self._encode(caption.render(self.prompt_format)),
            "neg_text_ids": self._encode(""),
            "pixel_values": torch.from_numpy(np.ascontiguousarray(pad(frames, canvas).transpose(3, 0, 1, 2))),
            "video_shape": (num_frames, canvas.content_height_px, canvas.content_width_px),
            "mode": _checked_mode(mode or self.mode),
            "domain_id": self.domain_id,
            "action_chunk": self.action_chunk_size,
            "raw_action_dim": self.raw_action_dim,
            "cond_action": None,
            "cond_frame_indexes": self.cond_frame_indexes,
            "fps": fps or self.fps,
        }

    def to_request(self, inputs: Mapping[str, Any], **sampling: Any) -> Cosmos3ActionRequest:
        """A request from `preprocess`'s inputs; `sampling` is seed, num_inference_steps, guidance_scale and so on."""
        pixels = inputs["pixel_values"]
        return Cosmos3ActionRequest(
            cond_video_pixels=pixels[0] if pixels.ndim == 5 else pixels,
            video_shape=pixel_to_latent_shape(*inputs["video_shape"]),
            **{key: value for key, value in inputs.items() if key not in {"pixel_values", "video_shape"}},
            **sampling,
        )

    def cond_action(self, action: Any, raw_action_dim: int | None = None) -> torch.Tensor:
        """Actions [T, raw_action_dim] in the units of the statistics, as a request carries them: fp32 [chunk, 64].

        Normalised, cut or its last row repeated to the chunk, zeros to the right. `raw_action_dim` is the constructor's
        by default. Raises PipelineError unless these are T >= 1 rows of that many finite numbers.
        """
        width = self.raw_action_dim if raw_action_dim is None else raw_action_dim
        try:
            values = np.asarray(action.detach().cpu().double() if torch.is_tensor(action) else action, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PipelineError(f"cond_action must be [T, {width}] numbers ({error}).") from error
        if values.ndim != 2 or not len(values) or values.shape[1] != width:
            raise PipelineError(f"cond_action must be [T >= 1, {width}], found {list(values.shape)}.")
        if not np.isfinite(values).all():
            raise PipelineError("cond_action has NaN or infinity. Remove those rows or repair them.")
        values = values[: self.action_chunk_size]
        missing = self.action_chunk_size - len(values)
        values = np.concatenate((values, np.repeat(values[-1:], missing, axis=0)))
        padded = torch.zeros(self.action_chunk_size, MAX_ACTION_DIM)
        padded[:, :width] = torch.from_numpy(self._normalizer_for(width).normalize(values))
        return padded

    def postprocess(
        self, result: Cosmos3ActionResult | Mapping[str, Any] | torch.Tensor, *, raw_action_dim: int | None = None
    ) -> dict[str, np.ndarray]:
        """`action` in physical units and `action_normalized`, the model's own values: float32 [..., raw_action_dim].

        An engine's result has its own width already; a tensor or a dict is cut to `raw_action_dim`, by default the
        constructor's. Raises ResultError when a value is not finite: that is never a label.
        """
        width = raw_action_dim or self.raw_action_dim
        match result:
            case Cosmos3ActionResult():
                action, width = result.action, result.action.shape[-1]
            case Mapping():
                action = result["action"]
            case _:
                action = result
        normalized = torch.as_tensor(action).float().cpu().numpy()[..., :width]
        if not np.isfinite(normalized).all():
            raise ResultError(
                f"The model returned {int((~np.isfinite(normalized)).sum())} values that are not finite, of "
                f"{normalized.size}. Check the checkpoint and the dtype; such a result is not a label."
            )
        return {"action": self._normalizer_for(width).denormalize(normalized), "action_normalized": normalized}

    def _normalizer_for(self, width: int) -> Normalizer:
        """The constructor's; where an observation chose another width, that works only without statistics."""
        if width == self.raw_action_dim:
            return self.normalizer
        if self.normalizer.method != "none":
            raise ConfigError(
                f"The statistics are for actions of width {self.raw_action_dim}, the observation's domain has {width}. "
                "Make a processor with that domain's statistics."
            )
        return load_normalizer("none", None, width)

    def _overridden_domain(self, observation: Mapping[str, Any]) -> dict[str, int]:
        names = ("domain_name", "domain_id", "raw_action_dim")
        name, domain_id, width = (observation.get(key) for key in names)
        if name is None and domain_id is None:
            return {} if width is None else {"raw_action_dim": _checked_width(width)}
        embodiment = get_embodiment(name) if name else None
        if embodiment is None and width is None:
            raise ConfigError(f"domain_id={domain_id} alone does not say how wide its actions are: add raw_action_dim.")
        domain_id, width = _resolve_domain(embodiment, domain_id, width)
        return {"domain_id": domain_id, "raw_action_dim": width}


def _resolve_domain(
    embodiment: Embodiment | None, domain_id: int | None, raw_action_dim: int | None
) -> tuple[int, int]:
    if domain_id is not None and raw_action_dim is None:
        raise ConfigError(f"domain_id={domain_id} alone does not say how wide its actions are: add raw_action_dim.")
    width = raw_action_dim or embodiment.raw_action_dim
    if width is None:
        raise ConfigError(
            f"{embodiment.domain_name} has no fixed action width: it depends on the dataset. Set raw_action_dim."
        )
    return (embodiment.domain_id if domain_id is None else domain_id), _checked_width(width)


def _checked_width(raw_action_dim: int) -> int:
    if not 1 <= raw_action_dim <= MAX_ACTION_DIM:
        raise ConfigError(f"raw_action_dim must be 1..{MAX_ACTION_DIM}, found {raw_action_dim}.")
    return raw_action_dim


def _checked_mode(mode: str) -> str:
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, found {mode!r}.{did_you_mean(mode, MODES)}")
    return mode


def _first_text(observation: Mapping[str, Any]) -> str:
    text = next((observation[key] for key in ("task", "prompt") if observation.get(key) is not None), "")
    if isinstance(text, list | tuple):
        text = text[0] if text else ""
    if not isinstance(text, str):
        raise PipelineError(f"task must be a string or a list of strings, found {type(text).__name__}.")
    return text


def _to_frames(images: Any) -> np.ndarray:
    """Whatever users pass, as uint8 [T, H, W, 3]."""
    if isinstance(images, list | tuple):
        if not images:
            raise PipelineError("images is an empty list; expected at least one image.")
        clips = [_to_frames(image) for image in images]
        sizes = {clip.shape[1:] for clip in clips}
        if len(sizes) > 1:
            raise PipelineError(f"The images of a clip must have one size, found {sorted(sizes)}.")
        return np.concatenate(clips)
    if isinstance(images, str | Path):
        try:
            with Image.open(images) as image:
                return np.asarray(image.convert("RGB"))[None]
        except (OSError, UnidentifiedImageError) as error:
            raise PipelineError(
                f"{images} cannot be read as an image ({error}). Frames of a video are passed as an array."
            ) from error
    if isinstance(images, Image.Image):
        return np.asarray(images.convert("RGB"))[None]
    if torch.is_tensor(images):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
    return _array_to_frames(np.asarray(images))


def _array_to_frames(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[None]
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise PipelineError(f"An image array must be [(T,) H, W, 3] or [(T,) 3, H, W], found {list(array.shape)}.")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
        raise PipelineError(
            f"An image array must be uint8, or float in [0, 1]; found {array.dtype} in [{array.min()}, {array.max()}]."
        )
    return (array * 255).round().astype(np.uint8)
