"""Generated clips as H.264 files that every browser and every decoder shows alike. Owns how such a file is encoded.

May import PyAV, NumPy, the dataset reader, storage and this room's writing; neither torch nor Ray.

Colours: BT.601, limited range, and the file says so. PyAV, and with it LeRobot's reader and ours, converts with BT.601
whatever the tag says; browsers and decord believe the tag. With BT.709 the two would differ by more than 20 levels.
The tagged primaries and transfer function are those of sRGB, which is what the model's pixels are.

Shapes: T frames of a clip, THW3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream
from upath import UPath

from pipeline.datasets.video import probe_video, read_video_frames
from pipeline.errors import VideoError
from pipeline.outputs.writing import write_file
from pipeline.storage import is_local, local_copy, open_path

# Constant rate factor of x264, less is better. On DROID's frames 4:2:0 chroma alone leaves 46 dB; what the encoder
# loses at 12 is a little less than that (46 to 48 dB), at the customary 18 it is twice as much (42 to 45 dB). A lower
# factor would mostly store more bits of the same picture.
DEFAULT_CRF = 12

# Whoever reads a part of the file decodes at most this many frames too many. x264's own 250 would save a tenth of the
# size.
_KEYFRAME_INTERVAL = 32

# Codes of ITU-T H.273.
_MATRIX_BT601 = 6
_PRIMARIES_BT709 = 1
_TRANSFER_SRGB = 13

# The denominators of all rates in use: 1001 for NTSC's, 100 and less for those that are typed.
_MAX_RATE_DENOMINATOR = 1001

_TOLERANCE_FRAMES = 0.25


def write_video(
    path: str | Path | UPath,
    clips: Iterable[np.ndarray],
    *,
    fps: float,
    keyframe_interval: int | None = None,
    crf: int = DEFAULT_CRF,
) -> int:
    """Encode clips, in order, into one MP4 and return its number of frames; the file appears at once and whole.

    Each clip is uint8 [T, H, W, 3], RGB, T ≥ 1, all of one even H × W; each is asked for only when the one before is
    encoded. `keyframe_interval=1` makes every frame a key frame, so that a browser can jump to any. `crf` is x264's,
    1 to 51. Frame k is at exactly k / fps seconds, with fps the nearest fraction with a denominator of up to 1001
    (29.97002997 is 30000/1001). Equal frames give equal bytes with the same versions of PyAV and the same kind of CPU,
    whatever its number of cores. Raises `VideoError` for frames or settings that cannot be encoded; what `clips`
    raises passes through; StorageError when the disk is full. In each case no file is left, and one that was there
    before stays.
    """
    path = open_path(path)
    rate, options = _rate(path, fps), _encoder_options(path, keyframe_interval, crf)
    return write_file(path, lambda partial: _encode(partial, _frames(path, clips), rate, options))


def read_clips(path: str | Path | UPath, *, clip_frames: int = 64) -> Iterator[np.ndarray]:
    """All frames of a file of `write_video`, in order: uint8 [T, H, W, 3], RGB, T = `clip_frames`, the last with fewer.

    One clip is in memory at a time; what an object store has is copied to a temporary folder meanwhile. Raises
    `VideoError` naming the file when it is missing, or when any frame that its header promises cannot be decoded
    without fault.
    """
    assert clip_frames >= 1, "a clip has frames"
    with local_video(path) as file:
        info = probe_video(file)
        for start in range(0, info.num_frames, clip_frames):
            indexes = range(start, min(start + clip_frames, info.num_frames))
            times_s = [index / info.fps for index in indexes]
            yield read_video_frames(file, times_s, tolerance_s=_TOLERANCE_FRAMES / info.fps)


@contextmanager
def local_video(path: str | Path | UPath) -> Iterator[Path]:
    """A video as a file that FFmpeg can open: itself, or a copy of what an object store has, for as long as it lasts.

    Raises `VideoError` naming the video's own place when it is missing, also on behalf of whoever reads the copy.
    """
    path = open_path(path)
    if is_local(path):
        yield path
        return
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(local_copy(path))
        except FileNotFoundError as error:
            raise VideoError(f"{path}: expected a video file, found nothing there; generate it again") from error
        try:
            yield copy
        except VideoError as error:
            raise VideoError(str(error).replace(str(copy), str(path))) from error


def _rate(path: Path | UPath, fps: float) -> Fraction:
    if not math.isfinite(fps) or not 1 / _MAX_RATE_DENOMINATOR <= fps <= 1000:
        raise VideoError(f"{path}: expected a frame rate between 0.001 and 1000 per second, found {fps}; mend fps")
    return Fraction(float(fps)).limit_denominator(_MAX_RATE_DENOMINATOR)


def _encoder_options(path: Path | UPath, keyframe_interval: int | None, crf: int) -> dict[str, str]:
    if keyframe_interval is not None and keyframe_interval < 1:
        raise VideoError(
            f"{path}: expected a key frame every 1 or more frames, found keyframe_interval {keyframe_interval}; "
            "give 1 for key frames only"
        )
    if not 1 <= crf <= 51:
        # 0 would be lossless, in a profile that no browser plays.
        raise VideoError(f"{path}: expected a crf from 1 (best) to 51, found {crf}; {DEFAULT_CRF} is a good one")
    return {
        "crf": str(crf),
        "preset": "medium",
        "g": str(keyframe_interval or _KEYFRAME_INTERVAL),
        # x264's result depends on its number of threads, which would otherwise be the machine's.
        "threads": "1",
    }


def _encode(partial: Path, frames: Iterator[np.ndarray], rate: Fraction, options: dict[str, str]) -> int:
    stream, reformatter, num_frames = None, VideoReformatter(), 0
    # The partial file's name does not tell the format. "faststart" puts the index before the pictures, so a browser
    # can begin before it has everything.
    with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        for frame in frames:
            stream = stream or _add_stream(container, frame, rate, options)
            container.mux(stream.encode(_picture(reformatter, frame, num_frames, rate)))
            num_frames += 1
        assert stream is not None, "frames are checked to be one or more"
        container.mux(stream.encode())
    return num_frames


def _add_stream(container: OutputContainer, frame: np.ndarray, rate: Fraction, options: dict[str, str]) -> VideoStream:
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
    encoder = stream.codec_context
    encoder.colorspace, encoder.color_range = _MATRIX_BT601, ColorRange.MPEG
    encoder.color_primaries, encoder.color_trc = _PRIMARIES_BT709, _TRANSFER_SRGB
    return stream


def _picture(reformatter: VideoReformatter, frame: np.ndarray, index: int, rate: Fraction) -> av.VideoFrame:
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    # swscale's matrix is BT.601 unless told otherwise, and PyAV cannot tell it BT.601 by name. "AREA" takes the mean of
    # the four pixels that share a chroma sample; DROID's frames come back 0.5 to 1 dB closer than with PyAV's default.
    picture = reformatter.reformat(rgb, format="yuv420p", interpolation="AREA")
    picture.pts, picture.time_base = index, 1 / rate
    return picture


def _frames(path: Path | UPath, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] each, checked; at least one."""
    size_px = None
    for number, clip in enumerate(clips):
        _check_clip(f"{path}: clip {number}", clip)
        size_px = size_px or clip.shape[1:3]
        if clip.shape[1:3] != size_px:
            raise VideoError(
                f"{path}: clip {number}: expected the {_size(size_px)} frames of the clips before, found "
                f"{_size(clip.shape[1:3])}; write one file per size, or resize first"
            )
        yield from clip
    if size_px is None:
        raise VideoError(f"{path}: expected at least one frame, found no clips; leave this video out")


def _check_clip(where: str, clip: np.ndarray) -> None:
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3:
        raise VideoError(
            f"{where}: expected a uint8 array [T, H, W, 3], RGB, found {_kind(clip)}; convert it, "
            "for instance from floats in 0..1 with (255 * clip).round().astype(numpy.uint8)"
        )
    if 0 in clip.shape:
        raise VideoError(f"{where}: expected one frame or more, found shape {clip.shape}; leave out empty clips")
    height, width = clip.shape[1:3]
    if height % 2 or width % 2:
        raise VideoError(
            f"{where}: expected an even height and width, because two by two pixels share one colour, found "
            f"{_size((height, width))}; crop or pad by one pixel"
        )


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _size(size_px: tuple[int, ...]) -> str:
    return f"{size_px[0]} × {size_px[1]}"
