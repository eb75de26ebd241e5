"""One request from files to files, without Ray: what `jobs/infer_once.py` does, for use from Python too.

    prepared = prepare(SingleRequest(checkpoint=…, image=…, prompt=…))   # everything is checked, no weight is loaded
    files = run(prepared)                                                # or answer(prepared, engine), then write(…)

Owns what has to be true of the files before a model is loaded, and what is written. torch and the model's code are
imported only when the files are known to be good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.action_files import read_action_file, write_action_file
from pipeline.actions import load_normalizer
from pipeline.datasets.video import VideoInfo, probe_video, read_video_frames
from pipeline.embodiments import Embodiment, get_embodiment, resolve_view_point
from pipeline.errors import ConfigError, VideoError
from pipeline.single_request import SingleRequest
from pipeline.storage import write_atomically

if TYPE_CHECKING:
    from pipeline.actions import Normalizer
    from pipeline.cosmos3.config import TransformerConfig
    from pipeline.cosmos3.engine import Engine
    from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
    from pipeline.cosmos3.request import Cosmos3ActionRequest
    from pipeline.views import Canvas

_FALLBACK_FPS = 24.0  # the processor's, for a domain without a rate
_RATE_TOLERANCE = 0.01
_FRAME_TOLERANCE = 0.25  # of a frame's duration, as for datasets: at most one frame is that near


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedRequest:
    """A request that is known to be possible. Nothing is written yet and no weight is loaded."""

    settings: SingleRequest
    processor: Cosmos3PolicyProcessor
    request: Cosmos3ActionRequest
    num_actions: int  # rows to be written: fewer than the chunk where the rest would be of frames that are not there
    given_actions: np.ndarray | None  # forward_dynamics: float32 [chunk, D] as given, cut or repeated to the chunk
    notes: tuple[str, ...]  # what a user would want to know before reading the answer

    def describe(self) -> str:
        """The request in a line, then its notes."""
        request, processor = self.request, self.processor
        t, h, w = request.video_shape
        line = (
            f"{request.mode} of {self.settings.domain_name} (domain {request.domain_id}, {request.raw_action_dim} "
            f"columns): {request.action_chunk} actions at {request.fps:g} fps, {processor.view_point}, latent grid "
            f"{t}x{h}x{w}, clean latent frames {_listed(request.conditioning.clean_frames)}, seed {request.seed}"
        )
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, eq=False)
class SingleAnswer:
    """What the model said, as it is written."""

    action: np.ndarray  # float32 [rows, D], physical units where there are statistics, else the model's own scale
    frames: np.ndarray | None  # uint8 [chunk + 1, H, W, 3], whole latent pixels; None for inverse_dynamics


def prepare(settings: SingleRequest) -> PreparedRequest:
    """Opens and checks everything that a run reads, short of the weights.

    Raises ConfigError, ActionFileError, ActionStatsError, VideoError or CheckpointError, and PipelineError itself for
    an image that cannot be read or a request that this checkpoint cannot answer.
    """
    assert not settings.is_demo, "the demo's checkpoint and video come first"
    embodiment = get_embodiment(settings.domain_name)
    width, chunk = _action_width(settings, embodiment), settings.action_chunk_size or embodiment.chunk_size
    view_point = resolve_view_point(embodiment, 1, settings.view_point or "")
    _check_files(settings)
    normalizer = load_normalizer(settings.action_normalization, settings.action_stats_path, width)
    given = None if settings.action_file is None else read_action_file(settings.action_file, raw_action_dim=width)
    observation = _observe(settings, embodiment, chunk)

    from pipeline.cosmos3.config import read_checkpoint_config, resolve_checkpoint
    from pipeline.cosmos3.processor import Cosmos3PolicyProcessor

    checkpoint = read_checkpoint_config(resolve_checkpoint(settings.checkpoint, with_weights=False))
    processor = Cosmos3PolicyProcessor(
        checkpoint.folder,
        mode=settings.mode,
        domain_name=settings.domain_name,
        raw_action_dim=width,
        action_chunk_size=chunk,
        fps=observation.fps,
        image_size=settings.image_size,
        prompt_format=settings.prompt_format,
        view_point=view_point,
        cond_frame_indexes=settings.condition_frames,
        normalizer=normalizer,
    )
    request, canvas = _make_request(settings, checkpoint.transformer, processor, observation, given)
    return PreparedRequest(
        settings=settings,
        processor=processor,
        request=request,
        num_actions=observation.num_actions,
        given_actions=None if given is None else _cut_or_repeat(given, chunk),
        notes=(
            *observation.notes,
            *_action_notes(settings, normalizer, given, chunk),
            *_canvas_notes(settings, canvas),
        ),
    )


def fill_in_demo(settings: SingleRequest, folder: Path) -> SingleRequest:
    """The same settings with the demo's checkpoint and a video of its first task, which is written to `folder`."""
    from pipeline.demo import IMAGE_SIZE, STATISTICS, TRAINED
    from pipeline.demo.dataset import DEMO_FPS, render_composed
    from pipeline.demo.scripted import play_demo
    from pipeline.outputs.videos import write_video

    recording = play_demo(seed=0)[0]
    video = folder / "composed.mp4"
    video.parent.mkdir(parents=True, exist_ok=True)
    write_video(video, [render_composed(recording, range(recording.num_frames))], fps=DEMO_FPS)
    if settings.action_normalization == "none":
        settings = replace(settings, action_normalization="quantile", action_stats_path=str(STATISTICS))
    return replace(
        settings,
        checkpoint=str(TRAINED),
        video=str(video),
        prompt=settings.prompt or recording.task,
        view_point=settings.view_point or "concat_view",
        image_size=IMAGE_SIZE,
        out=settings.out or "demo",
    )


def run(prepared: PreparedRequest) -> dict[str, Path]:
    """Loads the checkpoint, answers and writes: the files by kind, as in `SingleRequest.outputs`."""
    _make_folder(prepared.settings)
    return write(prepared, answer(prepared, load_engine(prepared)))


def load_engine(prepared: PreparedRequest) -> Engine:
    """The checkpoint in memory, with the VAE's decoder where the mode makes video."""
    import torch

    from pipeline.cosmos3.engine import Engine

    settings = prepared.settings
    return Engine.from_pretrained(
        settings.checkpoint,
        device=None if settings.device == "auto" else settings.device,
        dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
        decode_video=settings.makes_video,
        flow_shift=settings.flow_shift,
        use_karras_sigmas=settings.use_karras_sigmas,
    )


def answer(prepared: PreparedRequest, engine: Engine) -> SingleAnswer:
    """What `engine` says. Raises ResultError when a value of it is not finite."""
    from pipeline.cosmos3.chaining import to_frames

    result = engine.step([prepared.request])[0]
    action = prepared.given_actions
    if action is None:
        action = prepared.processor.postprocess(result)["action"][: prepared.num_actions]
    return SingleAnswer(action, None if result.pixels is None else to_frames(result.pixels))


def write(prepared: PreparedRequest, result: SingleAnswer) -> dict[str, Path]:
    """Writes the answer's files, each at once or not at all, and returns them by kind."""
    from PIL import Image

    from pipeline.outputs.videos import write_video

    settings, request = prepared.settings, prepared.request
    _make_folder(settings)
    outputs = settings.outputs
    about = {
        "names": list(get_embodiment(settings.domain_name).names_for(request.raw_action_dim)),
        "units": "model scale" if settings.action_normalization == "none" else "physical",
        "mode": request.mode,
        "domain_name": settings.domain_name,
        "fps": request.fps,
        "seed": request.seed,
    }
    write_action_file(outputs["action"], result.action, about=about)
    if result.frames is not None:
        write_video(outputs["video"], [result.frames], fps=request.fps)
        picture = Image.fromarray(result.frames[-1])
        write_atomically(outputs["last_frame"], lambda partial: picture.save(partial, format="PNG"))
    return outputs


@dataclass(frozen=True, eq=False, kw_only=True)
class _Observation:
    images: str | np.ndarray  # an image's path, or uint8 [T, H, W, 3]
    fps: float
    num_actions: int
    notes: tuple[str, ...] = ()


def _observe(settings: SingleRequest, embodiment: Embodiment, chunk: int) -> _Observation:
    """The frames that are conditioned on, and no more."""
    num_seen = _num_frames_seen(settings, chunk)
    if settings.image is not None:
        if num_seen > 1:
            raise ConfigError(
                f"condition_frames {_listed(settings.condition_frames)} are of {num_seen} pixel frames, and an image "
                "is one (latent frame 0). Give video, or leave condition_frames out."
            )
        fps = settings.fps or embodiment.fps or _FALLBACK_FPS
        return _Observation(images=settings.image, fps=fps, num_actions=chunk)
    header = probe_video(settings.video)
    num_found = min(num_seen, header.num_frames)
    _check_length(settings, header, num_seen)
    fps = _frame_rate(settings, embodiment, header if num_seen > 1 else None)
    images = read_video_frames(
        settings.video, np.arange(num_found) / header.fps, tolerance_s=_FRAME_TOLERANCE / header.fps
    )
    num_actions = chunk if num_found == num_seen else num_found - 1
    notes = []
    if not (settings.fps or embodiment.fps) and num_seen > 1:
        notes.append(f"{embodiment.domain_name} states no frame rate: the video's own {fps:g} is used")
    shown = "its first one" if num_found == 1 else f"its first {num_found}"
    notes.append(f"{settings.video} has {header.num_frames} frames, the model is shown {shown}")
    if num_found < num_seen:
        notes.append(
            f"for the model the last frame is repeated up to {num_seen}; only the {num_actions} actions between real "
            "frames are written"
        )
    return _Observation(images=images, fps=fps, num_actions=num_actions, notes=tuple(notes))


def _num_frames_seen(settings: SingleRequest, chunk: int) -> int:
    """Pixel frames that the clean latent frames depend on: the first, then four for each (the VAE is causal)."""
    if settings.condition_frames is not None:
        return min(1 + 4 * max(settings.condition_frames, default=0), chunk + 1)
    return chunk + 1 if settings.mode == "inverse_dynamics" else 1


def _check_length(settings: SingleRequest, header: VideoInfo, num_seen: int) -> None:
    if header.num_frames < 2:
        raise VideoError(
            f"{settings.video}: expected at least two frames, found {header.num_frames}: an action is what was done "
            "between two. Give a longer video, or a single picture with --image."
        )
    if settings.mode != "inverse_dynamics" and header.num_frames < num_seen:
        raise VideoError(
            f"{settings.video}: condition_frames {_listed(settings.condition_frames)} are of {num_seen} frames, found "
            f"{header.num_frames}. Give a longer video, or condition on fewer."
        )


def _frame_rate(settings: SingleRequest, embodiment: Embodiment, header: VideoInfo | None) -> float:
    """The rate that the model is told: the one asked for, else the domain's; frames that it is shown must have it.

    `header` is None where a single frame is shown, which has no rate. A domain without a rate takes the video's.
    """
    wanted = settings.fps or embodiment.fps
    if header is None:
        return wanted or _FALLBACK_FPS
    if wanted is None:
        return header.fps
    if abs(header.fps - wanted) > _RATE_TOLERANCE * wanted:
        whose = "fps asks for" if settings.fps else f"{embodiment.domain_name} was trained at"
        raise ConfigError(
            f"{settings.video} has {header.fps:g} frames per second, {whose} {wanted:g}. An action is the motion from "
            f"one frame to the next, so at another rate it is another action. Either tell the model the video's own "
            f"rate (fps {header.fps:g}), or re-encode: ffmpeg -i VIDEO -vf fps={wanted:g} NEW.mp4"
        )
    return wanted


def _make_request(
    settings: SingleRequest,
    transformer: TransformerConfig,
    processor: Cosmos3PolicyProcessor,
    observation: _Observation,
    given: np.ndarray | None,
) -> tuple[Cosmos3ActionRequest, Canvas]:
    """The checked request, and the canvas that its picture is on."""
    import torch

    from pipeline.cosmos3.request import check_request
    from pipeline.views import Canvas

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU here. Use auto or cpu.")
    inputs = processor.preprocess({"images": observation.images, "task": settings.prompt, "cond_action": given})
    request = processor.to_request(
        inputs,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        decode_video=settings.makes_video,
    )
    check_request(request, transformer)
    return request, Canvas(*inputs["pixel_values"].shape[-2:], *inputs["video_shape"][1:])


def _action_notes(
    settings: SingleRequest, normalizer: Normalizer, given: np.ndarray | None, chunk: int
) -> Iterator[str]:
    if settings.action_normalization == "none":
        yield "no statistics are given, so actions are in the model's own scale, without units"
    if given is None:
        return
    if len(given) > chunk:
        yield f"{settings.action_file} has {len(given)} actions: the first {chunk} are used, the rest is left"
    if len(given) < chunk:
        yield f"{settings.action_file} has {len(given)} actions: the last one is repeated up to {chunk}"
    if share := normalizer.share_clamped(given[:chunk]):
        yield f"{share:.1%} of the given values lie outside the statistics' range; for the model they are clamped to it"


def _canvas_notes(settings: SingleRequest, canvas: Canvas) -> Iterator[str]:
    """Whether the last frame, given as the next image, would be shown as this chunk was."""
    from pipeline.views import choose_canvas

    cropped = canvas.cropped()
    size = (cropped.content_height_px, cropped.content_width_px)
    if settings.makes_video and choose_canvas(*size, settings.image_size) != cropped:
        yield (
            f"the last frame ({size[0]}x{size[1]}, HxW) falls on another canvas than this picture, so a chunk that "
            f"begins with it is another prompt to the model. To chain chunks, make the picture that size beforehand."
        )


def _action_width(settings: SingleRequest, embodiment: Embodiment) -> int:
    width = settings.raw_action_dim or embodiment.raw_action_dim
    if width is None:
        raise ConfigError(
            f"{embodiment.domain_name} has no fixed action width: it depends on the dataset. Set raw_action_dim."
        )
    return width


def _check_files(settings: SingleRequest) -> None:
    if settings.image is not None and not Path(settings.image).is_file():
        raise ConfigError(f"{settings.image}: expected an image, found no file there. Check the path.")
    inputs = (settings.image, settings.video, settings.action_file, settings.action_stats_path)
    read = {Path(path).resolve() for path in inputs if path is not None}
    for path in settings.outputs.values():
        if path.resolve() in read:
            raise ConfigError(f"{path} is read and would be written over. Choose another out.")


def _make_folder(settings: SingleRequest) -> None:
    folder = settings.outputs["action"].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made a folder ({error}). Choose another output_dir.") from error


def _cut_or_repeat(actions: np.ndarray, chunk: int) -> np.ndarray:
    """Actions [T, D] as [chunk, D]: the first ones, or the last one repeated."""
    return actions[np.minimum(np.arange(chunk), len(actions) - 1)]


def _listed(indexes: Sequence[int] | None) -> str:
    return " ".join(map(str, indexes or ()))
