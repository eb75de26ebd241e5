"""Videos hold every frame, once, in order and in the right colours; and are complete or not there."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.outputs.videos import read_clips, write_video
from pipeline.storage import open_path, read_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import cut, draw, overwrite, packet_spans, read_ids

NUM_FRAMES = 75
CLIP_LENGTHS = (1, 17, 40, 17)


def drawn(ids: Iterable[int]) -> np.ndarray:
    return np.stack([draw(frame_id) for frame_id in ids])


def clips(lengths: Iterable[int] = CLIP_LENGTHS) -> Iterator[np.ndarray]:
    first = 0
    for length in lengths:
        yield drawn(range(first, first + length))
        first += length


def blank(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "sub" / "video.mp4"
    assert write_video(path, clips(), fps=15) == NUM_FRAMES
    return path


def test_another_decoder_sees_every_frame_in_its_place(video):
    reader = decord.VideoReader(str(video))
    frames = reader[:].asnumpy()
    assert read_ids(frames) == list(range(NUM_FRAMES))
    assert reader.get_avg_fps() == 15
    assert psnr_db(frames, drawn(range(NUM_FRAMES))) > 38


def test_what_was_written_is_read_back_in_clips(video):
    found = list(read_clips(video, clip_frames=32))
    assert [clip.shape for clip in found] == [(32, 96, 128, 3), (32, 96, 128, 3), (11, 96, 128, 3)]
    assert read_ids(np.concatenate(found)) == list(range(NUM_FRAMES))
    assert psnr_db(np.concatenate(found), drawn(range(NUM_FRAMES))) > 38


def test_decoders_that_believe_the_tag_and_those_that_do_not_see_the_same_colours(tmp_path):
    """decord believes it, PyAV does not; with BT.709 red would come back 20 levels apart."""
    colours = [(200, 40, 30), (30, 180, 60), (20, 40, 210), (230, 220, 40), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    clip = np.array(colours, np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    write_video(tmp_path / "colours.mp4", [clip], fps=10, crf=4)
    believing = decord.VideoReader(str(tmp_path / "colours.mp4"))[:].asnumpy()
    [ignoring] = read_clips(tmp_path / "colours.mp4")
    for frames in (believing, ignoring):
        np.testing.assert_allclose(frames[:, 8:-8, 8:-8].astype(int), clip[:, 8:-8, 8:-8], atol=3)


def test_browsers_can_play_it(video):
    """What they ask for: H.264 in 4:2:0, no profile beyond High, named colours, the index before the pictures."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        encoded = stream.codec_context
        assert (encoded.name, encoded.pix_fmt, encoded.profile) == ("h264", "yuv420p", "High")
        assert (encoded.colorspace, encoded.color_primaries, encoded.color_trc, encoded.color_range) == (6, 1, 13, 1)
    raw = video.read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (7.5, Fraction(15, 2)),
        (29.97, Fraction(2997, 100)),
        (30_000 / 1001, Fraction(30_000, 1001)),
        (10, Fraction(10)),
        (0.5, Fraction(1, 2)),
    ],
)
def test_the_frame_rate_is_exact(tmp_path, fps, rate):
    path = tmp_path / "video.mp4"
    write_video(path, [drawn(range(9))], fps=fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == stream.guessed_rate == rate
        assert [frame.pts * frame.time_base * rate for frame in container.decode(stream)] == list(range(9))
    assert read_ids(np.concatenate(list(read_clips(path, clip_frames=4)))) == list(range(9))


def key_frames(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [i for i, frame in enumerate(container.decode(container.streams.video[0])) if frame.key_frame]


def test_key_frames_are_as_close_as_asked(tmp_path, video):
    for interval in (1, 10):
        write_video(tmp_path / "video.mp4", clips(), fps=15, keyframe_interval=interval)
        found = key_frames(tmp_path / "video.mp4")
        assert max(later - earlier for earlier, later in pairwise([*found, NUM_FRAMES])) <= interval
    assert len(key_frames(video)) < NUM_FRAMES / 10


def test_a_single_frame_is_a_video(tmp_path):
    assert write_video(tmp_path / "video.mp4", [drawn([7])], fps=15) == 1
    assert [read_ids(clip) for clip in read_clips(tmp_path / "video.mp4")] == [[7]]


def test_the_same_frames_give_the_same_bytes_however_they_are_cut_into_clips(tmp_path, video):
    write_video(tmp_path / "video.mp4", clips([30, 45]), fps=15)
    assert (tmp_path / "video.mp4").read_bytes() == video.read_bytes()


def test_a_higher_crf_takes_less_room(tmp_path, video):
    write_video(tmp_path / "video.mp4", clips(), fps=15, crf=30)
    assert (tmp_path / "video.mp4").stat().st_size < 0.7 * video.stat().st_size


def test_views_of_larger_arrays_are_taken_as_they_look(tmp_path):
    mirrored = drawn(range(5))[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    write_video(tmp_path / "video.mp4", [mirrored], fps=15)
    assert [read_ids(clip) for clip in read_clips(tmp_path / "video.mp4")] == [list(range(5))]


def test_no_more_than_two_clips_are_alive(tmp_path):
    """The one in work, and the one that is made while its last frame is held."""
    alive: set[int] = set()
    most = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal most
        for number in range(12):
            clip = drawn(range(4 * number, 4 * number + 4))
            alive.add(number)
            weakref.finalize(clip, alive.discard, number)
            most = max(most, len(alive))
            yield clip
            del clip

    assert write_video(tmp_path / "video.mp4", counted(), fps=15) == 48
    assert most <= 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("num_before", [0, 1, 3])
def test_clips_that_fail_leave_nothing_and_keep_the_older_file(tmp_path, error, num_before):
    def failing() -> Iterator[np.ndarray]:
        yield from clips([20] * num_before)
        raise error("the model stopped")

    path = tmp_path / "video.mp4"
    with pytest.raises(error, match="the model stopped"):
        write_video(path, failing(), fps=15)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"older")
    with pytest.raises(error, match="the model stopped"):
        write_video(path, failing(), fps=15)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]


def test_the_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "video.mp4"

    def watched() -> Iterator[np.ndarray]:
        for clip in clips():
            assert not path.exists()
            yield clip
        assert not path.exists()

    write_video(path, watched(), fps=15)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "found no clips"),
        ([blank(2, 95, 128, 3)], "even height and width.*95 × 128"),
        ([blank(2, 96, 127, 3)], "even height and width.*96 × 127"),
        ([blank(96, 128, 3)], r"\[T, H, W, 3\].*uint8 \[96, 128, 3\]"),
        ([blank(2, 3, 96, 128)], r"uint8 \[2, 3, 96, 128\]"),
        ([blank(2, 96, 128, 3).astype(np.float32)], "float32"),
        ([[[0]]], "builtins.list"),
        ([blank(0, 96, 128, 3)], "one frame or more"),
        ([blank(2, 96, 128, 3), blank(2, 128, 96, 3)], "clip 1: expected the 96 × 128.*128 × 96"),
    ],
)
def test_frames_that_cannot_be_encoded_are_refused(tmp_path, given, message):
    with pytest.raises(VideoError, match=message):
        write_video(tmp_path / "video.mp4", given, fps=15)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": 0},
        {"fps": -5},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"fps": 15, "keyframe_interval": 0},
        {"fps": 15, "crf": 0},
        {"fps": 15, "crf": 52},
    ],
)
def test_impossible_settings_are_refused_before_anything_is_drawn(tmp_path, settings):
    def never() -> Iterator[np.ndarray]:
        raise AssertionError("no clip was needed")
        yield

    with pytest.raises(VideoError, match="expected a"):
        write_video(tmp_path / "video.mp4", never(), **settings)


def test_damage_is_an_error_and_not_a_shorter_video(tmp_path, video):
    with pytest.raises(VideoError, match="nothing there"):
        next(read_clips(tmp_path / "missing.mp4"))
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes())
    cut(path, 0.8)
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        list(read_clips(path))
    path.write_bytes(video.read_bytes())
    start, size = packet_spans(path)[40]
    overwrite(path, start + 8, size - 8)
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        list(read_clips(path))


# --- on an object store ---


def test_an_object_store_has_the_same_video(s3, video):
    url = s3.url("videos/out/sub/video.mp4")
    assert write_video(url, clips(), fps=15) == NUM_FRAMES
    assert s3.keys("videos/out") == ["out/sub/video.mp4"]
    assert read_bytes(open_path(url)) == video.read_bytes()
    assert [len(clip) for clip in read_clips(url, clip_frames=32)] == [32, 32, 11]
    np.testing.assert_array_equal(np.concatenate(list(read_clips(url))), np.concatenate(list(read_clips(video))))


def test_errors_name_the_place_on_the_object_store(s3, video):
    url = s3.url("videos/damaged/video.mp4")
    with pytest.raises(VideoError, match=f"^{url}: expected a video file, found nothing there"):
        next(read_clips(url))
    s3.put("videos/damaged/video.mp4", video.read_bytes()[:5000])
    with pytest.raises(VideoError, match=f"^{url}: "):
        list(read_clips(url))
    with pytest.raises(VideoError, match=f"^{url}: clip 0"):
        write_video(url, [blank(1, 15, 16, 3)], fps=10)
