"""Video files: headers, and exactly the frames asked for. The only module that decodes. Imports PyAV and NumPy.

PyAV rather than decord: LeRobot brings it along anyway, its wheel carries dav1d so AV1 opens on every machine, it gives
exact presentation times, and it seeks without indexing the whole file first (a LeRobot v3.0 file holds many episodes,
hundreds of megabytes). A file is read where it lies, on a disk or in an object store.

A header is a stranger's promise: what it takes to believe it is counted before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from upath import UPath

from pipeline.datasets.remote_file import RemoteFile, opened
from pipeline.errors import VideoError
from pipeline.storage import open_path

# Nearly twice the 8192 x 4352 of the highest levels of H.264, HEVC and AV1; 200 MB as RGB. FFmpeg's own limit is 2^31.
MAX_FRAME_PIXELS = 8192 * 8192
# Of the pictures that one call returns: five minutes of VGA at 30 Hz, most of a minute of Full HD. A segment is less.
MAX_CALL_BYTES = 8 * 1024**3
# 92 hours at 30 Hz, and still a small array of indexes.
MAX_EPISODE_FRAMES = 10_000_000
# FFmpeg's names for MP4 and QuickTime, Matroska and WebM, AVI: what holds its pictures itself.
_CONTAINERS = "avi,matroska,mov,webm"
MAX_TIME_S = 1e9  # the largest time stamps that survive FFmpeg's 64-bit ones in any time base


@dataclass(frozen=True)
class VideoInfo:
    """What a file's header says. `num_frames` is a promise: a file that was cut short still makes it."""

    fps: float
    num_frames: int
    height: int
    width: int
    duration_s: float


@dataclass(frozen=True)
class _Reading:
    """One attempt: room for all frames asked for, how many were found, and the error that ended it, if any."""

    frames_NHWC: np.ndarray
    num_found: int
    error: FFmpegError | None


@dataclass(frozen=True)
class _Wanted:
    """What to read, and the name of the file in messages."""

    path: Path | UPath
    times_s: Sequence[float]
    tolerance_s: float


def probe_video(path: str | Path | UPath, *, size: int | None = None) -> VideoInfo:
    """Read a file's header; where it has no frame count (Matroska, WebM), count packets. Nothing is decoded.

    `size` in bytes, where it is known, saves an object store a request. Raises `VideoError` naming the file when it is
    missing, cannot be opened, lacks frames, a frame rate or times, or promises what no video has; `StorageError` where
    an object store does not hand it out.
    """
    path = open_path(path)
    try:
        with opened(_existing(path), size) as source, _open(source) as container:
            stream = _video_stream(path, container)
            header = _header(path, container, stream)
            container.seek(0)
            _refuse_guessed_times(path, container, next(container.demux(stream)))
            return header
    except FFmpegError as error:
        raise VideoError(
            f"{path}: expected a video, found a file that cannot be opened ({error}); replace it"
        ) from error
    except FileNotFoundError as error:
        raise _missing(path) from error


def read_video_frames(path: str | Path | UPath, times_s: Sequence[float], *, tolerance_s: float) -> np.ndarray:
    """uint8 [N, H, W, 3], RGB: for each time the nearest frame, at most `tolerance_s` away from it.

    `times_s` are seconds from the start of the video stream, not decreasing. Decoding begins at the last keyframe
    before the first of them. Raises `VideoError` naming the file unless every single frame was decoded without fault,
    and before anything is decoded where the frames would be larger than `MAX_FRAME_PIXELS` or, together, than
    `MAX_CALL_BYTES`; `StorageError` where an object store does not hand the file out.
    """
    wanted = _Wanted(open_path(path), times_s, tolerance_s)
    _check_times(wanted)
    try:
        with opened(_existing(wanted.path)) as source:
            reading = _read(wanted, source, from_start=False)
            if reading.error is not None:
                # H.264 and HEVC have keyframes at which a strict decoder cannot begin (open GOPs): that is no damage.
                reading = _read(wanted, source, from_start=True)
    except FileNotFoundError as error:
        raise _missing(wanted.path) from error
    if reading.num_found < len(times_s):
        raise _incomplete(wanted, reading) from reading.error
    return reading.frames_NHWC


def _existing(path: Path | UPath) -> Path | UPath:
    if isinstance(path, Path) and not path.is_file():
        raise _missing(path)
    return path


def _missing(path: Path | UPath) -> VideoError:
    return VideoError(f"{path}: expected a video file, found nothing there; fetch it again or leave the episode out")


def _check_times(wanted: _Wanted) -> None:
    if len(wanted.times_s) == 0:
        raise VideoError(f"{wanted.path}: expected at least one frame time, found none")
    if not np.all(np.abs(np.asarray(wanted.times_s)) <= MAX_TIME_S):
        raise VideoError(
            f"{wanted.path}: expected frame times of at most {MAX_TIME_S:g} s, found {wanted.times_s[0]} s to "
            f"{wanted.times_s[-1]} s; mend the metadata that gives them"
        )


def _open(source: Path | RemoteFile) -> InputContainer:
    # FFmpeg decodes a little already to find out what it has; the first option keeps it from frames that we would
    # refuse, the second from playlists, whatever they are named: those make it open other files and addresses.
    options = {"max_pixels": str(MAX_FRAME_PIXELS), "format_whitelist": _CONTAINERS}
    if isinstance(source, Path):
        return av.open(str(source), options=options, metadata_errors="replace")
    source.seek(0)
    return av.open(source, options=options, metadata_errors="replace")


def _video_stream(path: Path | UPath, container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise VideoError(f"{path}: expected a video stream, found none; replace the file")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise VideoError(f"{path}: no decoder for this video's codec; re-encode it as H.264 or AV1")
    return stream


def _header(path: Path | UPath, container: InputContainer, stream: VideoStream) -> VideoInfo:
    fps = stream.guessed_rate or stream.average_rate
    if not fps:
        raise VideoError(f"{path}: expected a frame rate in the header, found none; re-encode the file")
    num_frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if not 0 < num_frames <= MAX_EPISODE_FRAMES:
        found = f"{num_frames} in its header" if num_frames else "an empty video stream"
        raise VideoError(f"{path}: expected 1 to {MAX_EPISODE_FRAMES} frames, found {found}; replace the file")
    _check_budget(path, stream.width, stream.height, num_frames=1)
    duration_s = float(stream.duration * stream.time_base) if stream.duration else num_frames / float(fps)
    return VideoInfo(float(fps), num_frames, stream.height, stream.width, duration_s)


def _check_budget(path: Path | UPath, width: int, height: int, *, num_frames: int) -> None:
    """Raises `VideoError` where so many pictures of that size are more than any video is, or than one call may hold."""
    if not 0 < width * height <= MAX_FRAME_PIXELS:
        # FFmpeg, which knows the limit too, answers 0 x 0 for most of what is beyond it.
        found = f"{width} x {height}" if width and height else "no size within that limit"
        raise VideoError(
            f"{path}: expected frames of at most {MAX_FRAME_PIXELS} pixels, found {found} in its header; the file is "
            "damaged or no recording of a robot: replace it or leave the episode out"
        )
    num_bytes = 3 * width * height * num_frames
    if num_bytes > MAX_CALL_BYTES:
        raise VideoError(
            f"{path}: expected to read at most {MAX_CALL_BYTES / 1024**3:.3g} GiB at once, found that {num_frames} "
            f"frames of {width} x {height} take {num_bytes / 1024**3:.3g} GiB; read fewer, or scale the video down"
        )


def _read(wanted: _Wanted, source: Path | RemoteFile, *, from_start: bool) -> _Reading:
    path, times_s = wanted.path, wanted.times_s
    frames_NHWC, num_found = np.empty((0, 0, 0, 3), np.uint8), 0
    try:
        with _open(source) as container:
            stream = _video_stream(path, container)
            width, height = stream.width, stream.height  # as promised: decoding sets them to what it finds
            _check_budget(path, width, height, num_frames=len(times_s))
            _be_strict(stream)
            frames = _decode(path, container, stream, None if from_start else times_s[0])
            promised = _promised(path, frames, width, height)
            for picture in _pictures(promised, times_s, wanted.tolerance_s, _start_s(stream)):
                if num_found == 0:
                    frames_NHWC = np.empty((len(times_s), *picture.shape), np.uint8)
                _require_size(path, picture, frames_NHWC)
                frames_NHWC[num_found] = picture
                num_found += 1
    except FFmpegError as error:
        return _Reading(frames_NHWC, num_found, error)
    return _Reading(frames_NHWC, num_found, None)


def _promised(
    path: Path | UPath, frames: Iterator[tuple[float, VideoFrame]], width: int, height: int
) -> Iterator[tuple[float, VideoFrame]]:
    """The same (time, frame), none of them larger than the header said."""
    for time_s, frame in frames:
        if frame.width > width or frame.height > height:
            raise VideoError(
                f"{path}: expected frames of {width} x {height}, as its header says, found one of {frame.width} x "
                f"{frame.height} at {time_s:.3f} s; re-encode it or leave the episode out"
            )
        yield time_s, frame


def _be_strict(stream: VideoStream) -> None:
    # By default FFmpeg paints over damaged H.264 with the frame before it and reports nothing.
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_FRAME_PIXELS)}
    # The load stage has a process per core already; decoder threads on top would only compete with them.
    stream.codec_context.thread_count = 1


def _start_s(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * stream.time_base)


def _decode(
    path: Path | UPath, container: InputContainer, stream: VideoStream, first_s: float | None
) -> Iterator[tuple[float, VideoFrame]]:
    """(time in seconds, frame) from the last keyframe at or before `first_s` on; from the first one if it is None."""
    start_pts = stream.start_time or 0
    first_pts = start_pts if first_s is None else start_pts + round(first_s / stream.time_base)
    last_s = float("-inf")
    for frame in _decode_packets(path, container, _packets_from(container, stream, first_pts)):
        if frame.time is None or frame.time <= last_s:
            raise VideoError(
                f"{path}: expected increasing frame times, found {frame.time} s after {last_s} s; re-encode"
            )
        last_s = frame.time
        yield frame.time, frame


def _packets_from(container: InputContainer, stream: VideoStream, pts: int) -> Iterator[av.Packet]:
    start_pts = stream.start_time or 0
    target = max(pts, start_pts)
    while True:
        container.seek(target, stream=stream)
        packets = iter(container.demux(stream))
        first = next(packets)
        if first.pts is None or first.pts <= pts or target == start_pts:
            return chain([first], packets)
        # MP4 seeks by decoding time, which runs ahead of presentation: this keyframe is shown too late.
        found = first.pts if first.dts is None else first.dts
        target = start_pts if found >= target else max(start_pts, found - 1)


def _decode_packets(
    path: Path | UPath, container: InputContainer, packets: Iterator[av.Packet]
) -> Iterator[VideoFrame]:
    keyframe_pts = None
    for packet in packets:
        if packet.size and keyframe_pts is None:
            _refuse_guessed_times(path, container, packet)
            keyframe_pts = packet.pts
        # Shown before the keyframe but stored after it: nobody asked for these, and they need pictures from before, so
        # they would only send an open-GOP file back to its start.
        if packet.pts is None or keyframe_pts is None or packet.pts >= keyframe_pts:
            yield from packet.decode()


def _refuse_guessed_times(path: Path | UPath, container: InputContainer, packet: av.Packet) -> None:
    if container.format.name == "avi" and packet.pts != packet.dts:
        raise VideoError(
            f"{path}: expected presentation times, found an AVI, which stores none, with H.264 or reordered "
            "frames, for which FFmpeg guesses them wrongly; re-encode it as MP4"
        )


def _pictures(
    frames: Iterator[tuple[float, VideoFrame]], times_s: Sequence[float], tolerance_s: float, start_s: float
) -> Iterator[np.ndarray]:
    """The nearest frame for each time, and no more after the first time that has none."""
    before, after = None, next(frames, None)
    for time_s in times_s:
        wanted_s = time_s + start_s
        # A frame that is a rounding error early is the frame: going on could meet damage that is not our concern.
        while after is not None and after[0] < wanted_s - 0.1 * tolerance_s:
            before, after = after, next(frames, None)
        nearest = min((frame for frame in (before, after) if frame), key=partial(_distance_s, wanted_s), default=None)
        if nearest is None or _distance_s(wanted_s, nearest) > tolerance_s:
            return
        yield nearest[1].to_ndarray(format="rgb24")


def _distance_s(wanted_s: float, frame: tuple[float, VideoFrame]) -> float:
    return abs(frame[0] - wanted_s)


def _incomplete(wanted: _Wanted, reading: _Reading) -> VideoError:
    times_s = wanted.times_s
    reason = f"decoding stopped with {reading.error}" if reading.error else "there is no frame at that time"
    return VideoError(
        f"{wanted.path}: expected {len(times_s)} frames from {times_s[0]:.3f} s to {times_s[-1]:.3f} s, found "
        f"{reading.num_found}: the frame at {times_s[reading.num_found]:.3f} s (± {wanted.tolerance_s:.4f} s) is "
        f"missing, {reason}. The file is damaged, shorter than its metadata says, or its frame rate is not constant; "
        "replace it or leave the episode out"
    )


def _require_size(path: Path | UPath, picture: np.ndarray, frames_NHWC: np.ndarray) -> None:
    if picture.shape != frames_NHWC.shape[1:]:
        raise VideoError(
            f"{path}: expected frames of one size, found {frames_NHWC.shape[1:]} and {picture.shape}; re-encode it"
        )
