"""The settings of a single request, and what contradicts itself in them. Imports nothing heavy, opens nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.actions import NORMALIZATIONS
from pipeline.config import DEVICES, DTYPES, IMAGE_SIZES
from pipeline.embodiments import MAX_ACTION_DIM, PROMPT_FORMATS, get_embodiment
from pipeline.errors import ConfigError, did_you_mean

MODES = ("policy", "forward_dynamics", "inverse_dynamics")  # cosmos3.conditioning's, without its torch


@dataclass(frozen=True, kw_only=True)
class SingleRequest:
    """The settings of one request; names and defaults are those of PhyAI's example where it has them.

    None means: what the domain says, or the mode for `condition_frames`. Raises ConfigError for what is impossible or
    contradicts itself. Files are opened by `prepare`.
    """

    checkpoint: str | None = None
    image: str | None = None
    video: str | None = None
    prompt: str = ""
    domain_name: str = "droid_lerobot"
    mode: str = "policy"
    action_file: str | None = None
    condition_frames: tuple[int, ...] | None = None
    raw_action_dim: int | None = None
    view_point: str | None = None
    fps: float | None = None
    image_size: int = 480
    action_chunk_size: int | None = None
    prompt_format: str = "json"
    action_normalization: str = "none"
    action_stats_path: str | None = None
    num_inference_steps: int = 30
    guidance_scale: float = 1.0
    flow_shift: float = 10.0
    use_karras_sigmas: bool | None = False
    seed: int = 42
    device: str = "auto"
    dtype: str = "auto"
    output_dir: str = "outputs/infer_once"
    out: str | None = None

    def __post_init__(self) -> None:
        get_embodiment(self.domain_name)
        for name, known in (
            ("mode", MODES),
            ("image_size", IMAGE_SIZES),
            ("prompt_format", PROMPT_FORMATS),
            ("action_normalization", NORMALIZATIONS),
            ("device", DEVICES),
            ("dtype", DTYPES),
        ):
            _one_of(name, getattr(self, name), known)
        if not self.is_demo:
            self._check_inputs()
        self._check_actions()
        self._check_statistics()
        self._check_numbers()
        if self.out is not None and (not self.name or Path(self.name).suffix in {".json", ".mp4", ".png"}):
            raise ConfigError(
                f"out is what the files' names begin with: 'roll' gives roll_action.json, roll.mp4 and "
                f"roll_last_frame.png. Found {self.out!r}."
            )

    @property
    def is_demo(self) -> bool:
        return self.checkpoint is None and self.image is None and self.video is None

    @property
    def makes_video(self) -> bool:
        return self.mode != "inverse_dynamics"

    @property
    def name(self) -> str:
        """What the names of the files begin with: `out`, else the input's own name."""
        if self.out is not None:
            return self.out if not self.out.endswith(("/", "\\")) else ""
        return Path(self.image or self.video or "demo").stem

    @property
    def outputs(self) -> dict[str, Path]:
        """The files that a run writes, by kind: `action`, and `video` and `last_frame` where there is video."""
        prefix = Path(self.output_dir).expanduser() / Path(self.name).expanduser()
        endings = {"action": "_action.json"}
        if self.makes_video:
            endings |= {"video": ".mp4", "last_frame": "_last_frame.png"}
        return {kind: prefix.with_name(prefix.name + ending) for kind, ending in endings.items()}

    def _check_inputs(self) -> None:
        if self.checkpoint is None:
            raise ConfigError("checkpoint is not set. Give a folder or a hub id, such as nvidia/Cosmos3-Nano.")
        if (self.image is None) == (self.video is None):
            found = "neither" if self.image is None else "both"
            raise ConfigError(f"Expected one of image and video, found {found}. Give one, or nothing for the demo.")
        if self.mode == "inverse_dynamics" and self.video is None:
            raise ConfigError(
                "inverse_dynamics says what was done between frames, so it needs a video; found one image. Give video, "
                "or use mode policy to have actions proposed for an image."
            )

    def _check_actions(self) -> None:
        if self.mode == "forward_dynamics" and self.action_file is None:
            raise ConfigError("forward_dynamics needs action_file: the actions whose outcome is to be generated.")
        if self.mode != "forward_dynamics" and self.action_file is not None:
            raise ConfigError(
                f"{self.mode} generates actions and takes none, found action_file {self.action_file}. Leave it out, or "
                "use mode forward_dynamics to see their outcome."
            )

    def _check_numbers(self) -> None:
        for name in ("flow_shift", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above zero, found {value}.")
        if self.raw_action_dim is not None and not 1 <= self.raw_action_dim <= MAX_ACTION_DIM:
            raise ConfigError(f"raw_action_dim must be 1..{MAX_ACTION_DIM}, found {self.raw_action_dim}.")
        if min(self.condition_frames or (0,)) < 0:
            raise ConfigError(f"condition_frames are latent frames 0, 1, …; found {list(self.condition_frames)}.")
        chunk = self.action_chunk_size
        if chunk is not None and (chunk < 4 or chunk % 4):
            raise ConfigError(f"action_chunk_size must be a positive multiple of 4 (the VAE's stride), found {chunk}.")

    def _check_statistics(self) -> None:
        if self.action_normalization == "none" and self.action_stats_path is not None:
            raise ConfigError(
                f"action_stats_path {self.action_stats_path} is given, but action_normalization is none, which reads "
                f"no statistics. Say how they are meant ({', '.join(NORMALIZATIONS[:-1])}): what the checkpoint was "
                "trained with, 'quantile' for nvidia/Cosmos3-Nano."
            )
        if self.action_normalization != "none" and self.action_stats_path is None:
            raise ConfigError(
                f"action_normalization {self.action_normalization!r} needs action_stats_path, a JSON of statistics. "
                "'none' keeps the model's own scale, without units."
            )


def _one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        names = [str(entry) for entry in known]
        raise ConfigError(
            f"{name} must be one of {', '.join(names)}, found {str(value)!r}.{did_you_mean(str(value), names)}"
        )
