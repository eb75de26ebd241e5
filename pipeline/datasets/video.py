"""Video files: headers, and exactly the frames asked for. The only module that decodes. Imports PyAV and NumPy.

PyAV rather than decord: LeRobot brings it along anyway, its wheel carries dav1d so AV1 opens on every machine, it gives
exact presentation times, and it seeks without indexing the whole file first (a LeRobot v3.0 file holds many episodes,
hundreds of megabytes).
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

from pipeline.errors import VideoError


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


def probe_video(path: str | Path) -> VideoInfo:
    """Read a file's header; where it has no frame count (Matroska, WebM), count packets. Nothing is decoded.

    Raises `VideoError` naming the file when it is missing, cannot be opened, or lacks frames, a frame rate or times.
    """
    path = _existing(path)
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(path, container)
            header = _header(path, container, stream)
            container.seek(0)
            _refuse_guessed_times(path, container, next(container.demux(stream)))
            return header
    except FFmpegError as error:
        raise VideoError(
            f"{path}: expected a video, found a file that cannot be opened ({error}); replace it"
        ) from error


def read_video_frames(path: str | Path, times_s: Sequence[float], *, tolerance_s: float) -> np.ndarray:
    """uint8 [N, H, W, 3], RGB: for each time the nearest frame, at most `tolerance_s` away from it.

    `times_s` are seconds from the start of the video stream, not decreasing. Decoding begins at the last keyframe
    before the first of them. Raises `VideoError` naming the file unless every single frame was decoded without fault.
    """
    path = _existing(path)
    if len(times_s) == 0:
        raise VideoError(f"{path}: expected at least one frame time, found none")
    reading = _read(path, times_s, tolerance_s, from_start=False)
    if reading.error is not None:
        # H.264 and HEVC have keyframes at which a strict decoder cannot begin (open GOPs): that is no damage.
        reading = _read(path, times_s, tolerance_s, from_start=True)
    if reading.num_found < len(times_s):
        raise _incomplete(path, times_s, tolerance_s, reading) from reading.error
    return reading.frames_NHWC


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: expected a video file, found nothing there; fetch it again or leave the episode out")
    return path


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise VideoError(f"{path}: expected a video stream, found none; replace the file")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise VideoError(f"{path}: no decoder for this video's codec; re-encode it as H.264 or AV1")
    return stream


def _header(path: Path, container: InputContainer, stream: VideoStream) -> VideoInfo:
    fps = stream.guessed_rate or stream.average_rate
    if not fps:
        raise VideoError(f"{path}: expected a frame rate in the header, found none; re-encode the file")
    num_frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if num_frames == 0:
        raise VideoError(f"{path}: expected frames, found an empty video stream; replace the file")
    duration_s = float(stream.duration * stream.time_base) if stream.duration else num_frames / float(fps)
    return VideoInfo(float(fps), num_frames, stream.height, stream.width, duration_s)


def _read(path: Path, times_s: Sequence[float], tolerance_s: float, *, from_start: bool) -> _Reading:
    frames_NHWC, num_found = np.empty((0, 0, 0, 3), np.uint8), 0
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(path, container)
            _be_strict(stream)
            frames = _decode(path, container, stream, None if from_start else times_s[0])
            for picture in _pictures(frames, times_s, tolerance_s, _start_s(stream)):
                if num_found == 0:
                    frames_NHWC = np.empty((len(times_s), *picture.shape), np.uint8)
                _require_size(path, picture, frames_NHWC)
                frames_NHWC[num_found] = picture
                num_found += 1
    except FFmpegError as error:
        return _Reading(frames_NHWC, num_found, error)
    return _Reading(frames_NHWC, num_found, None)


def _be_strict(stream: VideoStream) -> None:
    # By default FFmpeg paints over damaged H.264 with the frame before it and reports nothing.
    stream.codec_context.options = {"err_detect": "explode"}
    # The load stage has a process per core already; decoder threads on top would only compete with them.
    stream.codec_context.thread_count = 1


def _start_s(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * stream.time_base)


def _decode(
    path: Path, container: InputContainer, stream: VideoStream, first_s: float | None
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


def _decode_packets(path: Path, container: InputContainer, packets: Iterator[av.Packet]) -> Iterator[VideoFrame]:
    keyframe_pts = None
    for packet in packets:
        if packet.size and keyframe_pts is None:
            _refuse_guessed_times(path, container, packet)
            keyframe_pts = packet.pts
        # Shown before the keyframe but stored after it: nobody asked for these, and they need pictures from before, so
        # they would only send an open-GOP file back to its start.
        if packet.pts is None or keyframe_pts is None or packet.pts >= keyframe_pts:
            yield from packet.decode()


def _refuse_guessed_times(path: Path, container: InputContainer, packet: av.Packet) -> None:
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


def _incomplete(path: Path, times_s: Sequence[float], tolerance_s: float, reading: _Reading) -> VideoError:
    reason = f"decoding stopped with {reading.error}" if reading.error else "there is no frame at that time"
    return VideoError(
        f"{path}: expected {len(times_s)} frames from {times_s[0]:.3f} s to {times_s[-1]:.3f} s, found "
        f"{reading.num_found}: the frame at {times_s[reading.num_found]:.3f} s (± {tolerance_s:.4f} s) is missing, "
        f"{reason}. The file is damaged, shorter than its metadata says, or its frame rate is not constant; replace "
        "it or leave the episode out"
    )


def _require_size(path: Path, picture: np.ndarray, frames_NHWC: np.ndarray) -> None:
    if picture.shape != frames_NHWC.shape[1:]:
        raise VideoError(
            f"{path}: expected frames of one size, found {frames_NHWC.shape[1:]} and {picture.shape}; re-encode it"
        )
