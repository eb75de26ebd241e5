"""Everything a result depends on besides its frames: the settings, resolved against dataset, embodiment and checkpoint.

Made once on the driver, before any model is loaded; stages and records only ever see this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.actions import Normalizer, load_normalizer
from pipeline.config import RunConfig
from pipeline.datasets import RobotVideoDataset, Timebase, resolve_timebase
from pipeline.embodiments import Embodiment, get_embodiment, resolve_cameras, resolve_view_point
from pipeline.errors import ConfigError
from pipeline.fingerprint import digest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one run turns frames into actions, or actions into frames. Two equal recipes give equal results."""

    mode: str
    embodiment: Embodiment
    raw_action_dim: int
    action_chunk: int
    cameras: tuple[str, ...]  # feature keys, in the composite's order
    view_point: str
    view_description: str
    image_size: int
    prompt_format: str
    timebase: Timebase
    normalizer: Normalizer
    checkpoint_fingerprint: str
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    use_karras_sigmas: bool | None
    dtype: str
    seed: int

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.embodiment.names_for(self.raw_action_dim)

    @property
    def rot6d_starts(self) -> tuple[int, ...]:
        """First columns of the action's rotations. Of a width of the user's own no layout is known, so it has none."""
        return self.embodiment.rot6d_starts if self.raw_action_dim == self.embodiment.raw_action_dim else ()

    def to_json(self) -> dict[str, Any]:
        """JSON-able and complete: its digest stands for the recipe."""
        return {
            **{
                name: value
                for name, value in vars(self).items()
                if name not in {"embodiment", "timebase", "normalizer"}
            },
            "cameras": list(self.cameras),
            "embodiment": self.embodiment.domain_name,
            "domain_id": self.embodiment.domain_id,
            "dataset_fps": self.timebase.dataset_fps,
            "model_fps": self.timebase.model_fps,
            "frame_stride": self.timebase.stride,
            "action_normalization": self.normalizer.to_json(),
        }

    @property
    def run_id(self) -> str:
        """Short name of this recipe: records, labels and manifests of other recipes have another one."""
        return digest(self.to_json())[:12]


@dataclass(frozen=True, kw_only=True)
class RolloutRecipe(Recipe):
    """A recipe whose results are frames."""

    chaining: str  # "autoregressive" or "teacher_forced"
    actions: Mapping[str, Any]  # identity of the actions that are followed; empty where the model chooses them


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe(RolloutRecipe):
    """A rollout recipe whose results are compared with what was recorded."""

    num_samples: int
    lpips: str  # as the run found it: "alexnet", or "" where it is not measured
    metrics_version: int


def make_recipe(
    config: RunConfig, dataset: RobotVideoDataset, checkpoint_fingerprint: str = "", *, mode: str = "inverse_dynamics"
) -> Recipe:
    """Resolves what the config leaves open. Raises a typed error, with the fix, for whatever does not fit."""
    embodiment = get_embodiment(config.embodiment)
    raw_action_dim = config.raw_action_dim or embodiment.raw_action_dim
    if raw_action_dim is None:
        raise ConfigError(
            f"{embodiment.domain_name} has no fixed action width: it depends on the dataset. Add --raw_action_dim."
        )
    cameras = resolve_cameras(embodiment, dataset.cameras, config.dataset.cameras)
    view_point = resolve_view_point(embodiment, len(cameras), config.view_point)
    return Recipe(
        mode=mode,
        embodiment=embodiment,
        raw_action_dim=raw_action_dim,
        action_chunk=config.action_chunk_size or embodiment.chunk_size,
        cameras=cameras,
        view_point=view_point,
        view_description=embodiment.view_description if view_point == "concat_view" else "",
        image_size=config.image_size,
        prompt_format=config.prompt_format,
        timebase=resolve_timebase(dataset.fps, config.fps or embodiment.fps, config.dataset.timebase),
        normalizer=load_normalizer(config.action_normalization, config.action_stats_path, raw_action_dim),
        checkpoint_fingerprint=checkpoint_fingerprint,
        num_inference_steps=config.engine.num_inference_steps,
        guidance_scale=config.engine.guidance_scale,
        flow_shift=config.engine.flow_shift,
        use_karras_sigmas=config.engine.use_karras_sigmas,
        dtype=_resolve_dtype(config),
        seed=config.engine.seed,
    )


def _resolve_dtype(config: RunConfig) -> str:
    """`auto` is bfloat16 wherever the run may land on a GPU: here, or on a cluster that it joins."""
    if config.engine.dtype != "auto":
        return config.engine.dtype
    # Records are written with a recipe too, by processes that have no other use for torch.
    import torch

    joins_cluster = bool(config.ray.address or os.environ.get("RAY_ADDRESS"))
    may_use_gpu = config.engine.device == "auto" and (joins_cluster or torch.cuda.is_available())
    return "bfloat16" if may_use_gpu or config.engine.device == "cuda" else "float32"
