"""Decoding gives exactly the frames asked for, or a `VideoError` that names the file; never a plausible frame."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from dataset_factory import HEIGHT, WIDTH, cut, overwrite, packet_spans, read_ids, write_video

from pipeline.datasets.video import probe_video, read_video_frames
from pipeline.errors import VideoError

NUM_FRAMES, FPS = 60, 15
OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}
VARIANTS = {
    "h264.mp4": {"codec": "libx264"},
    "h264_open_gop.mp4": {"codec": "libx264", "options": OPEN_GOP},
    "h264.mkv": {"codec": "libx264"},
    "h264_open_gop.mkv": {"codec": "libx264", "options": OPEN_GOP},
    "h264.mov": {"codec": "libx264"},
    "av1.mp4": {"codec": "libsvtav1"},
    "av1.webm": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
}


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, settings in VARIANTS.items():
        write_video(folder / name, range(NUM_FRAMES), fps=FPS, **settings)
    return folder


@pytest.fixture
def broken(videos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(videos / "h264.mp4", tmp_path / "broken.mp4"))


def read(path: Path, indexes, fps: float = FPS) -> list[int]:
    frames = read_video_frames(path, [i / fps for i in indexes], tolerance_s=0.25 / fps)
    assert frames.shape == (len(indexes), HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    return read_ids(frames)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_start_gives_exactly_the_frames_asked_for(videos, name):
    for start in range(NUM_FRAMES):
        window = list(range(start, min(start + 5, NUM_FRAMES)))
        assert read(videos / name, window) == window


@pytest.mark.parametrize("name", VARIANTS)
def test_strides_and_random_subsets(videos, name):
    rng = np.random.default_rng(1)
    subsets = [sorted(rng.choice(NUM_FRAMES, size, replace=False).tolist()) for size in (1, 3, 10, 30)]
    for indexes in [list(range(NUM_FRAMES)), list(range(0, NUM_FRAMES, 7)), *subsets]:
        assert read(videos / name, indexes) == indexes


@pytest.mark.parametrize("name", VARIANTS)
def test_headers_are_read_without_decoding(videos, name):
    info = probe_video(videos / name)
    assert (info.num_frames, info.height, info.width) == (NUM_FRAMES, HEIGHT, WIDTH)
    assert info.fps == pytest.approx(FPS, rel=1e-3)
    assert info.duration_s == pytest.approx(NUM_FRAMES / FPS, rel=0.02)


def test_colours_survive(tmp_path):
    path = write_video(tmp_path / "a.mp4", [0b101], options={"crf": "1"})
    frame = read_video_frames(path, [0.0], tolerance_s=0.01)[0]
    assert frame[8, 8].min() > 245  # bit 0 is white
    assert frame[8, 24].max() < 10  # bit 1 is black


def test_the_nearest_frame_within_tolerance_wins(videos):
    times_s = [(i + shift) / FPS for i, shift in ((3, 0.1), (10, -0.1), (20, 0.3))]
    assert read_ids(read_video_frames(videos / "h264.mp4", times_s, tolerance_s=0.4 / FPS)) == [3, 10, 20]


def test_past_the_end_names_file_expected_and_found(videos):
    path = videos / "h264.mp4"
    with pytest.raises(
        VideoError, match=r"expected 7 frames from 3\.800 s to 4\.200 s, found 3: the frame at 4\.000 s"
    ):
        read(path, range(57, 64))
    with pytest.raises(VideoError, match=re.escape(str(path))):
        read(path, range(200, 203))


def test_a_gap_in_time_is_not_bridged(tmp_path):
    path = write_video(tmp_path / "gap.mp4", range(20), skip=[9])
    assert read(path, [7, 8, 10, 11]) == [7, 8, 10, 11]
    with pytest.raises(VideoError, match=r"expected 4 frames .* found 2"):
        read(path, [7, 8, 9, 10])


def test_another_rate_is_not_taken_for_the_right_one(videos):
    with pytest.raises(VideoError, match="frame rate is not constant"):
        read(videos / "h264.mp4", range(10), fps=20)


def test_a_cut_file_still_promises_all_frames_and_then_fails(broken):
    cut(broken, 0.6)
    assert probe_video(broken).num_frames == NUM_FRAMES
    assert read(broken, range(5)) == list(range(5))
    with pytest.raises(VideoError, match=r"broken\.mp4: expected 10 frames .* found \d"):
        read(broken, range(NUM_FRAMES - 10, NUM_FRAMES))


@pytest.mark.parametrize("name", ["av1.mp4", "mpeg4.mp4", "h264.mkv", "av1.webm"])
def test_other_cut_files_fail_too(videos, tmp_path, name):
    path = Path(shutil.copy(videos / name, tmp_path / name))
    cut(path, 0.6)
    with pytest.raises(VideoError, match=re.escape(str(path))):
        read(path, range(NUM_FRAMES - 10, NUM_FRAMES))
    with pytest.raises(VideoError, match=re.escape(str(path))):
        read(path, range(NUM_FRAMES))


def test_damage_that_ffmpeg_would_paint_over_is_an_error(broken):
    position, size = packet_spans(broken)[25]
    overwrite(broken, position + size // 2, 8)
    assert read(broken, range(12)) == list(range(12))  # another group of pictures
    with pytest.raises(VideoError, match=r"broken\.mp4: .* decoding stopped with"):
        read(broken, range(20, 36))


@pytest.mark.parametrize("name", ["h264.mp4", "av1.mp4", "mpeg4.mp4"])
def test_an_overwritten_packet_is_an_error(videos, tmp_path, name):
    path = Path(shutil.copy(videos / name, tmp_path / name))
    overwrite(path, *packet_spans(path)[25])
    with pytest.raises(VideoError, match=re.escape(str(path))):
        read(path, range(20, 36))


def test_damage_in_an_open_gop_file_is_an_error_too(videos, tmp_path):
    path = Path(shutil.copy(videos / "h264_open_gop.mp4", tmp_path / "open.mp4"))
    overwrite(path, *packet_spans(path)[40])
    with pytest.raises(VideoError, match=r"open\.mp4: .* decoding stopped with"):
        read(path, range(36, 47))


@pytest.mark.parametrize(("codec", "options"), [("mpeg4", {"bf": "2"}), ("libx264", {}), ("libx264", {"bf": "0"})])
def test_avi_is_refused_where_its_times_are_guesses(tmp_path, codec, options):
    path = write_video(tmp_path / "b.avi", range(NUM_FRAMES), codec=codec, options=options)
    with pytest.raises(VideoError, match=r"b\.avi: .*presentation times.*MP4"):
        read(path, range(1, 5))
    with pytest.raises(VideoError, match=r"b\.avi: .*presentation times.*MP4"):
        probe_video(path)


@pytest.mark.parametrize("function", [probe_video, lambda path: read_video_frames(path, [0.0], tolerance_s=0.01)])
class TestFilesThatAreNoVideos:
    def test_missing(self, tmp_path, function):
        with pytest.raises(VideoError, match=r"gone\.mp4: expected a video file, found nothing"):
            function(tmp_path / "gone.mp4")

    @pytest.mark.parametrize("content", [b"", b"this is not a video" * 100])
    def test_not_a_video(self, tmp_path, function, content):
        (tmp_path / "text.mp4").write_bytes(content)
        with pytest.raises(VideoError, match=r"text\.mp4"):
            function(tmp_path / "text.mp4")

    def test_without_its_index(self, tmp_path, function):
        path = write_video(tmp_path / "late.mov", range(10))  # the index is at the end
        cut(path, 0.6)
        with pytest.raises(VideoError, match=r"late\.mov"):
            function(path)

    def test_sound_only(self, tmp_path, function):
        with pytest.raises(VideoError, match=r"sound\.mp4: expected a video stream"):
            function(_write_sound(tmp_path / "sound.mp4"))


def _write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_no_times_is_refused(videos):
    with pytest.raises(VideoError, match="at least one frame time"):
        read_video_frames(videos / "h264.mp4", [], tolerance_s=0.01)
