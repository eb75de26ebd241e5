"""Every setting of every job, as frozen dataclasses: the same schema on the command line and in YAML.

Imports nothing heavy, so that a typo is answered at once. Each field says whether it changes a result: those that do
are part of a record's key, those that do not can be changed between two runs of the same command.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.actions import NORMALIZATIONS
from pipeline.embodiments import MAX_ACTION_DIM, PROMPT_FORMATS, VIEW_POINT_SENTENCES, get_embodiment
from pipeline.errors import ConfigError, did_you_mean

DATASET_FORMATS = ("auto", "lerobot", "videos")
TIMEBASES = ("model", "native")
IMAGE_SIZES = (256, 480, 704, 720)
DEVICES = ("auto", "cuda", "cpu")
DTYPES = ("auto", "bfloat16", "float32")
CHAININGS = ("autoregressive", "teacher_forced")
LOG_FORMATS = ("text", "json")
LPIPS_CHOICES = ("auto", "download", "none")


def _label(default: Any) -> Any:
    """A setting that changes what a label or a rollout is."""
    return field(default=default, metadata={"changes_labels": True})


def _road(default: Any) -> Any:
    """A setting of how the work is done, or of what is worked on: never of what a result is."""
    return field(default=default, metadata={"changes_labels": False})


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What is labelled."""

    # The dataset's folder; without it and without a checkpoint, the embedded demo is run.
    root: str | None = _road(None)
    # auto, lerobot (v2.0, v2.1, v3.0) or videos (a folder of video files, captions.jsonl optional).
    format: str = _road("auto")
    # Episode indexes, all if empty: --dataset.episodes "[0, 3]".
    episodes: tuple[int, ...] = _road(())
    # Feature keys of the cameras, in the composite's order; empty: those that the embodiment's datasets have.
    cameras: tuple[str, ...] = _label(())
    # model: frames are taken at the model's rate; native: the dataset's own rate is the conditioning rate.
    timebase: str = _label("model")

    def __post_init__(self) -> None:
        _one_of("dataset.format", self.format, DATASET_FORMATS)
        _one_of("dataset.timebase", self.timebase, TIMEBASES)
        if any(index < 0 for index in self.episodes):
            raise ConfigError(f"dataset.episodes must be 0 or more, found {list(self.episodes)}.")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The model and how it is sampled."""

    # A checkpoint folder or hub id, such as nvidia/Cosmos3-Nano.
    checkpoint: str | None = _label(None)
    num_inference_steps: int = _label(30)
    guidance_scale: float = _label(1.0)
    flow_shift: float = _label(10.0)
    # false: the trainer's flow grid; true: Karras; null: what the checkpoint's scheduler says.
    use_karras_sigmas: bool | None = _label(False)
    # A window's noise derives from this, its episode and its first frame.
    seed: int = _label(0)
    # auto: bfloat16 on a GPU, float32 on the CPU.
    dtype: str = _label("auto")
    # auto: a GPU if Ray has one.
    device: str = _road("auto")
    # Windows in one forward; null: enough to fill the device.
    batch_size: int | None = _road(None)
    # Bound on the text keys and values that an engine keeps.
    text_cache_mib: int = _road(2048)

    def __post_init__(self) -> None:
        _one_of("engine.dtype", self.dtype, DTYPES)
        _one_of("engine.device", self.device, DEVICES)
        _at_least("engine.num_inference_steps", self.num_inference_steps, 1)
        _at_least("engine.batch_size", self.batch_size, 1)
        _at_least("engine.text_cache_mib", self.text_cache_mib, 0)
        _above_zero("engine.flow_shift", self.flow_shift)
        if not math.isfinite(self.guidance_scale):
            raise ConfigError(f"engine.guidance_scale must be a number, found {self.guidance_scale}.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"engine.seed must be 0 or more, found {self.seed}.")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where the work runs. What is left empty fits itself to the machine."""

    # An existing cluster (auto, or its address); null: RAY_ADDRESS if set, else a Ray of this run's own.
    address: str | None = _road(None)
    # Engine actors; null: one per GPU, or one on the CPU.
    num_engines: int | None = _road(None)
    # A custom resource of the cluster's nodes, of which each engine takes one unit: where engines may land.
    engine_resource: str | None = _road(None)
    # Loader actors, which decode video; null: what the engines leave of the cores.
    num_loaders: int | None = _road(None)
    # Frames and results in flight between the stages, in all.
    memory_budget_mib: int = _road(4096)

    def __post_init__(self) -> None:
        _at_least("ray.num_engines", self.num_engines, 1)
        _at_least("ray.num_loaders", self.num_loaders, 1)
        _at_least("ray.memory_budget_mib", self.memory_budget_mib, 64)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every job over a dataset has."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    # A domain of the model: what the actions mean.
    embodiment: str = _label("droid_lerobot")
    # Needed where the embodiment has no width of its own.
    raw_action_dim: int | None = _label(None)
    # meanstd, minmax, quantile, quantile_rot or none: what the checkpoint was trained with. It is not recorded in it.
    action_normalization: str = _label("quantile")
    # Statistics (JSON) for it.
    action_stats_path: str | None = _label(None)
    # Actions per window; null: the embodiment's.
    action_chunk_size: int | None = _label(None)
    # The model's frame rate; null: the embodiment's.
    fps: float | None = _label(None)
    # Resolution tier: 256, 480, 704 or 720.
    image_size: int = _label(480)
    prompt_format: str = _label("json")
    # How the video was filmed; empty: what the embodiment and the number of cameras say.
    view_point: str = _label("")
    # Where records, results, manifest and summary go.
    output_dir: str = _road("outputs/run")
    # Run those segments again that failed or were quarantined, and no others.
    retry_failed: bool = _road(False)
    # The share of segments that may fail without the exit code saying so.
    max_failed_fraction: float = _road(0.0)
    # Seconds that a SIGTERM or Ctrl-C leaves for finishing what is in hand.
    grace_s: float = _road(30.0)
    # text, or json: one object a line.
    log_format: str = _road("text")
    # Print what would be done, and stop.
    dry_run: bool = _road(False)

    def __post_init__(self) -> None:
        get_embodiment(self.embodiment)
        _one_of("action_normalization", self.action_normalization, NORMALIZATIONS)
        _one_of("image_size", self.image_size, IMAGE_SIZES)
        _one_of("prompt_format", self.prompt_format, PROMPT_FORMATS)
        _one_of("view_point", self.view_point, ("", *VIEW_POINT_SENTENCES))
        if self.raw_action_dim is not None and not 1 <= self.raw_action_dim <= MAX_ACTION_DIM:
            raise ConfigError(f"raw_action_dim must be 1..{MAX_ACTION_DIM}, found {self.raw_action_dim}.")
        _one_of("log_format", self.log_format, LOG_FORMATS)
        _above_zero("fps", self.fps)
        if not 0 <= self.max_failed_fraction <= 1:
            raise ConfigError(f"max_failed_fraction must be within 0..1, found {self.max_failed_fraction}.")
        if not 0 <= self.grace_s < math.inf:
            raise ConfigError(f"grace_s must be 0 or more, found {self.grace_s}.")
        if self.action_chunk_size is not None and (self.action_chunk_size < 4 or self.action_chunk_size % 4):
            raise ConfigError(
                "action_chunk_size must be a positive multiple of 4 (the VAE's stride), found "
                f"{self.action_chunk_size}."
            )
        self._check_pairs()

    @property
    def is_demo(self) -> bool:
        return self.dataset.root is None and self.engine.checkpoint is None

    def _check_pairs(self) -> None:
        if self.is_demo:
            return
        for name, value, example in (
            ("dataset.root", self.dataset.root, "/path/to/dataset"),
            ("engine.checkpoint", self.engine.checkpoint, "nvidia/Cosmos3-Nano"),
        ):
            if value is None:
                raise ConfigError(f"{name} is not set. Add --{name} {example}, or set neither to run the demo.")
        if self.action_normalization != "none" and self.action_stats_path is None:
            raise ConfigError(
                f"action_normalization {self.action_normalization!r} needs statistics: add --action_stats_path FILE. "
                "Actions in the model's own scale, without units, are --action_normalization none."
            )


@dataclass(frozen=True, kw_only=True)
class LabelConfig(RunConfig):
    """Pseudo-actions for robot video: `jobs/label_inverse.py`."""

    output_dir: str = _road("outputs/label_inverse")
    # Frames of one segment, the unit of work, in memory. It decides which windows share a record, so it is in its key.
    max_segment_mib: int = _label(64)

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("max_segment_mib", self.max_segment_mib, 1)


@dataclass(frozen=True, kw_only=True)
class LabelEvaluationConfig(LabelConfig):
    """How right labels are where actions were recorded: `jobs/evaluate_labels.py`."""

    output_dir: str = _road("outputs/evaluate_labels")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(RunConfig):
    """Rollout videos from a first frame and actions: `jobs/rollout_forward.py`."""

    output_dir: str = _road("outputs/rollout_forward")
    # recorded: the dataset's own; labels:DIR: the pseudo-labels of a run; anything else: an action file (JSON).
    actions: str = _label("recorded")
    # autoregressive: a chunk starts from the last frame drawn; teacher_forced: from a recorded frame.
    chaining: str = _label("autoregressive")
    # Futures drawn per episode, each with its own noise.
    num_samples: int = _road(1)
    # Also write the rollouts as a LeRobot dataset.
    lerobot_dataset: bool = _road(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("chaining", self.chaining, CHAININGS)
        _at_least("num_samples", self.num_samples, 1)
        if not self.actions.removeprefix("labels:").strip():
            raise ConfigError(
                f"actions must be recorded, labels:OUTPUT_DIR or the path of an action file; found {self.actions!r}."
            )


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(RunConfig):
    """What the model would do, and what would follow: `jobs/rollout_policy.py`."""

    output_dir: str = _road("outputs/rollout_policy")
    # An instruction that replaces the recorded ones.
    task: str = _road("")
    # A text file of instructions, one a line: each is imagined from every first frame.
    tasks_path: str | None = _road(None)
    # Action chunks in a row, each from the last frame drawn.
    num_chunks: int = _label(1)
    # Futures drawn per episode and instruction, each with its own noise.
    num_samples: int = _road(1)
    # Also write the rollouts as a LeRobot dataset.
    lerobot_dataset: bool = _road(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("num_chunks", self.num_chunks, 1)
        _at_least("num_samples", self.num_samples, 1)
        if self.task and self.tasks_path is not None:
            raise ConfigError("Give either --task or --tasks_path: an instruction, or a file of them.")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(RunConfig):
    """How far a checkpoint's rollouts can be trusted: `jobs/evaluate_world_model.py`."""

    output_dir: str = _road("outputs/evaluate_world_model")
    # The share of episodes that was held out of training, drawn with the seed as cosmos-framework draws its validation
    # split (0.03 and 42 there). dataset.episodes names them one by one instead.
    held_out_fraction: float = _road(1.0)
    held_out_seed: int = _road(42)
    # teacher_forced: every window starts from a recorded frame; autoregressive: as long as a segment is.
    chaining: str = _label("teacher_forced")
    # Futures drawn per episode: their spread is the sampling noise.
    num_samples: int = _label(2)
    # auto: if its weights are on this machine; download: fetch them; none.
    lpips: str = _label("auto")
    # Episodes shown as videos in the report; 0: none.
    gallery_episodes: int = _label(24)
    # Frames of one segment, the unit of work, in memory. It decides which windows share a record, so it is in its key.
    max_segment_mib: int = _label(64)
    # A JSON file of where objects are and which the instruction names: the policy is measured, too.
    scenes_path: str | None = _road(None)
    # metrics.json of another checkpoint on the same episodes, to compare with.
    baseline: str | None = _road(None)
    # Scores that must be reached, such as "[psnr=20, obedience=1]"; the exit code says whether they were.
    fail_below: tuple[str, ...] = _road(())

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("chaining", self.chaining, CHAININGS)
        _one_of("lpips", self.lpips, LPIPS_CHOICES)
        _at_least("num_samples", self.num_samples, 1)
        _at_least("gallery_episodes", self.gallery_episodes, 0)
        _at_least("max_segment_mib", self.max_segment_mib, 1)
        if not 0 <= self.held_out_fraction <= 1:
            raise ConfigError(f"held_out_fraction must be within 0..1, found {self.held_out_fraction}.")
        if not 0 <= self.held_out_seed < 2**63:
            raise ConfigError(f"held_out_seed must be 0 or more, found {self.held_out_seed}.")


def label_settings(config: Any) -> dict[str, Any]:
    """The settings that change a label, as `{"engine.seed": 0, ...}`."""
    return {
        name: _value(config, name)
        for name, setting in settings_of(type(config))
        if setting.metadata.get("changes_labels")
    }


def all_settings(config: Any) -> dict[str, Any]:
    """Every setting as `{"engine.seed": 0, ...}`, JSON-able."""
    return {name: _value(config, name) for name, _ in settings_of(type(config))}


def settings_of(config_class: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every setting's full name, such as `engine.seed`, and its field."""
    for setting in dataclasses.fields(config_class):
        nested = setting.default_factory
        if dataclasses.is_dataclass(nested):
            yield from settings_of(nested, f"{prefix}{setting.name}.")
        else:
            yield prefix + setting.name, setting


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return list(config) if isinstance(config, tuple) else config


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        choices = ", ".join(str(choice) or "''" for choice in allowed)
        hint = did_you_mean(str(value), [str(choice) for choice in allowed if choice != ""])
        raise ConfigError(f"{name} must be one of {choices}; found {value!r}.{hint}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name} must be at least {least}, found {value}.")


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a number above zero, found {value}.")
