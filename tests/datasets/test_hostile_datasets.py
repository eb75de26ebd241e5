"""Datasets that lie: paths and links that lead out, pictures and numbers that nobody could hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_factory import draw, edit_json, edit_table, read_ids, write_video

from pipeline.datasets import open_dataset, video
from pipeline.datasets.video import probe_video, read_video_frames
from pipeline.errors import DatasetError, VideoError

FRONT = "observation.images.front"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"


def move_out(root: Path, name: str) -> None:
    """Moves a file or folder of a dataset beside it, and leaves a link."""
    target = root.parent / "outside" / name
    target.parent.mkdir(parents=True)
    shutil.move(root / name, target)
    (root / name).symlink_to(target)


class TestConfinement:
    @pytest.mark.parametrize("name", ["meta/info.json", EPISODES, "meta/episodes", "videos"])
    def test_links_that_lead_out_are_refused_on_opening(self, v3, copy_of, name):
        made = copy_of(v3)
        move_out(made.root, name)
        with pytest.raises(DatasetError, match=r"which leads to .*/outside/.*copy the files .*point dataset\.root"):
            open_dataset(made.root)

    @pytest.mark.parametrize(
        ("name", "call"),
        [
            (VIDEO, lambda dataset: dataset.read_frames(0, FRONT, [0])),
            (VIDEO, lambda dataset: dataset.episode_identity(0, [FRONT])),
            (VIDEO, lambda dataset: dataset.prepare_identities([0], [FRONT])),
            (DATA, lambda dataset: dataset.read_columns(0, ["action"])),
            ("data", lambda dataset: dataset.episode_identity(0, [])),
        ],
    )
    def test_one_file_that_leads_out_is_refused_when_it_is_its_turn(self, v3, copy_of, name, call):
        made = copy_of(v3)
        move_out(made.root, name)
        dataset = open_dataset(made.root)
        assert read_ids(dataset.read_frames(4, FRONT, [7])) == made.ids(4, FRONT, [7])
        with pytest.raises(DatasetError, match=rf"info\.json: expected a path inside .*{re.escape(name)}.*which leads"):
            call(dataset)

    @pytest.mark.parametrize("name", ["a.mp4", "captions.jsonl"])
    def test_plain_videos_that_lead_out(self, tmp_path, name):
        root = tmp_path / "videos"
        for video_name in "a.mp4", "b.mp4":
            write_video(root / video_name, range(3))
        (root / "captions.jsonl").write_text(json.dumps({"file_name": "a.mp4", "text": "x"}))
        move_out(root, name)
        with pytest.raises(DatasetError, match=rf"found '{name}', which leads to .*/outside/{name}"):
            open_dataset(root)

    def test_a_hub_snapshot_is_read_through_its_links(self, v3, tmp_path):
        repository = tmp_path / "datasets--org--name"
        snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
        blobs.mkdir(parents=True)
        for number, path in enumerate(sorted(path for path in v3.root.rglob("*") if path.is_file())):
            shutil.copy(path, blobs / f"{number:040x}")
            link = snapshot / path.relative_to(v3.root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
        dataset, original = open_dataset(snapshot), open_dataset(v3.root)
        assert dataset.fingerprint() == original.fingerprint()
        assert dataset.episode_identity(3, dataset.cameras) == original.episode_identity(3, dataset.cameras)
        assert read_ids(dataset.read_frames(3, FRONT, [7])) == v3.ids(3, FRONT, [7])

    @pytest.mark.parametrize(
        "template",
        ["{video_key.__class__}", "{video_key!r}", "{video_key:99}", "{video_key:9d}", "{chunk_index:999999999}",
         "{file_index:{file_index}}", "x" * 300 + "{video_key}", "{video_key}\0"],
    )  # fmt: skip
    def test_templates_that_would_do_more_than_name_a_file(self, v3, copy_of, template):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", video_path=template)
        with pytest.raises(DatasetError, match=r"'video_path' to be a|expected a camera with video files"):
            open_dataset(made.root)


class TestBudget:
    @pytest.fixture
    def forged(self, tmp_path) -> Path:
        """A file of a few kilobytes whose header promises a picture of 60,000 x 60,000."""
        path = tmp_path / "forged.avi"
        write_video(path, range(3), codec="ffvhuff")
        raw = path.read_bytes()
        size, huge = struct.pack("<ii", 128, 96), struct.pack("<ii", 60_000, 60_000)
        assert raw.count(size) >= 2
        path.write_bytes(raw.replace(size, huge))
        return path

    def test_a_gigantic_picture_is_refused_before_it_is_decoded(self, forged):
        expected = r"forged\.avi: expected frames of at most 67108864 pixels, found no size within"
        with pytest.raises(VideoError, match=expected):
            probe_video(forged)
        with pytest.raises(VideoError, match=expected):
            read_video_frames(forged, [0.0], tolerance_s=0.01)

    def test_a_picture_within_the_limit_is_read(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "a.mp4", range(3))
        monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 128 * 96)
        assert read_ids(read_video_frames(path, [0.0], tolerance_s=0.01)) == [0]
        monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 128 * 96 - 1)
        with pytest.raises(VideoError, match=r"a\.mp4: .*at most 12287 pixels, found 128 x 96"):
            read_video_frames(path, [0.0], tolerance_s=0.01)

    def test_one_call_has_a_limit_too(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "a.mp4", range(5))
        monkeypatch.setattr(video, "MAX_CALL_BYTES", 4 * 3 * 128 * 96)
        assert len(read_video_frames(path, np.arange(4) / 15, tolerance_s=0.01)) == 4
        with pytest.raises(VideoError, match=r"a\.mp4: .*at most .* GiB at once, found that 5 frames of 128 x 96"):
            read_video_frames(path, np.arange(5) / 15, tolerance_s=0.01)

    def test_a_picture_larger_than_the_header_said(self, tmp_path):
        path = tmp_path / "grows.mkv"
        _write_growing(path)
        assert read_ids(read_video_frames(path, [0.0, 1 / 15], tolerance_s=0.01)) == [0, 1]
        with pytest.raises(VideoError, match=r"grows\.mkv: expected frames of 128 x 96, .*found one of 256 x 192 at"):
            read_video_frames(path, np.arange(4) / 15, tolerance_s=0.01)

    @pytest.mark.parametrize("times_s", [[float("nan")], [1e300], [0.0, float("inf")], [-1e12]])
    def test_times_that_are_none(self, tmp_path, times_s):
        with pytest.raises(VideoError, match=r"a\.mp4: expected frame times of at most"):
            read_video_frames(write_video(tmp_path / "a.mp4", range(3)), times_s, tolerance_s=0.01)


class TestNumbers:
    @pytest.mark.parametrize("length", [10**15, -3, 2**63 - 1])
    def test_an_episode_length_that_cannot_be(self, v3, v2, copy_of, tmp_path, length):
        made = copy_of(v3)
        edit_table(made.root / EPISODES, length=[23, length, 17])
        second = shutil.copytree(v2.root, tmp_path / "v2")
        lines = [{"episode_index": 0, "length": 33}, {"episode_index": 1, "length": abs(length)}]
        (second / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for root in (made.root, second) if abs(length) > 3 else (made.root,):
            dataset = open_dataset(root)
            assert f"length is {length}; expected at least one frame, and at most" in dataset.episode(1).problem
            assert dataset.episode(1).num_frames == 0
            with pytest.raises(VideoError, match="length is"):
                dataset.read_frames(1, FRONT, [0])
            assert len(dataset.read_frames(0, FRONT, [0])) == 1

    @pytest.mark.parametrize("span", [(float("nan"), 1.0), (-5.0, 1.0), (0.0, float("inf")), (9.0, 3.0), (0.0, 1e300)])
    def test_a_span_that_cannot_be(self, v3, copy_of, span):
        made = copy_of(v3)
        names = f"videos__{FRONT}__from_timestamp", f"videos__{FRONT}__to_timestamp"
        edit_table(made.root / EPISODES, **{name: [value] * 3 for name, value in zip(names, span, strict=True)})
        dataset = open_dataset(made.root)
        with pytest.raises(VideoError, match=r"expected meta/episodes to name a video file and span for episode 1"):
            dataset.read_frames(1, FRONT, [0])
        assert dataset.episode_identity(1, [FRONT])["videos"][FRONT] == {"missing": True}

    @pytest.mark.parametrize(
        ("column", "values"),
        [("episode_index", [-1, 0, 1]), ("episode_index", [0.5, 1.0, 2.0]), ("data__file_index", ["a", "b", "c"]),
         ("tasks", [1, 2, 3]), ("length", [True, False, True])],
    )  # fmt: skip
    def test_columns_of_another_type(self, v3, copy_of, column, values):
        made = copy_of(v3)
        for file in sorted((made.root / "meta/episodes").rglob("*.parquet")):
            edit_table(file, **{column: values[: pq.read_metadata(file).num_rows]})
        with pytest.raises(DatasetError, match="meta/episodes: expected"):
            open_dataset(made.root)

    def test_whole_numbers_that_pandas_made_floats_of(self, v3, copy_of):
        made = copy_of(v3)
        edit_table(made.root / EPISODES, length=[23.0, float("nan"), 17.0])
        dataset = open_dataset(made.root)
        assert [dataset.episode(index).num_frames for index in range(3)] == [23, 0, 17]

    @pytest.mark.parametrize("fps", [1e-300, 1e300, 10**400, -1, float("nan")])
    def test_a_frame_rate_that_cannot_be(self, v3, copy_of, fps):
        made = copy_of(v3)
        edit_json(made.root / "meta/info.json", fps=fps)
        with pytest.raises(DatasetError, match=r"info\.json: expected 'fps' to be a number of frames per second"):
            open_dataset(made.root)

    def test_a_feature_wider_than_memory(self, v3, copy_of):
        made = copy_of(v3)
        features = json.loads((made.root / "meta/info.json").read_text())["features"]
        features["action"]["shape"] = [10**6, 10**6]
        edit_json(made.root / "meta/info.json", features=features)
        with pytest.raises(DatasetError, match=r"'features\.action\.shape' to be of at most 16777216 numbers"):
            open_dataset(made.root)

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"fps": ' + "9" * 5000 + "}", '{"fps": "\\ud800"}', "\ufeff{}"])
    def test_json_that_python_chokes_on(self, v3, v2, copy_of, tmp_path, text):
        made = copy_of(v3)
        (made.root / "meta/info.json").write_text(text)
        with pytest.raises(DatasetError, match=r"info\.json: expected a JSON file"):
            open_dataset(made.root)
        second = shutil.copytree(v2.root, tmp_path / "v2")
        (second / "meta/episodes.jsonl").write_text(text)
        with pytest.raises(DatasetError, match=r"episodes\.jsonl:1: expected one JSON object"):
            open_dataset(second)


class TestFingerprint:
    def test_it_notices_what_equal_lengths_hide(self, v3, copy_of):
        made = copy_of(v3)
        assert open_dataset(made.root).fingerprint() == open_dataset(v3.root).fingerprint()
        (made.root / "meta/modality.json").write_text("{}")
        assert open_dataset(made.root).fingerprint() == open_dataset(v3.root).fingerprint(), "not the format's own"
        edit_table(made.root / EPISODES, tasks=[["another"], ["task"], ["list"]])
        assert open_dataset(made.root).fingerprint() != open_dataset(v3.root).fingerprint()

    def test_of_plain_videos_it_is_paths_and_sizes(self, tmp_path):
        write_video(tmp_path / "a" / "x.mp4", range(3))
        fingerprints = [open_dataset(tmp_path / "a").fingerprint()]
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert open_dataset(tmp_path / "b").fingerprint() == fingerprints[0]
        (tmp_path / "b/x.mp4").rename(tmp_path / "b/y.mp4")
        fingerprints.append(open_dataset(tmp_path / "b").fingerprint())
        write_video(tmp_path / "b/y.mp4", range(3, 6))
        fingerprints.append(open_dataset(tmp_path / "b").fingerprint())
        assert len(set(fingerprints)) == 3


def _write_growing(path: Path) -> None:
    """Motion JPEG, where each picture has a size of its own: two of the header's, then two of twice that."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=15)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuvj420p"
        larger = av.CodecContext.create("mjpeg", "w")
        larger.width, larger.height, larger.pix_fmt = 256, 192, "yuvj420p"
        larger.framerate, larger.time_base = Fraction(15), Fraction(1, 15)
        for position in range(4):
            picture = draw(position) if position < 2 else draw(position).repeat(2, 0).repeat(2, 1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = position, Fraction(1, 15)
            for packet in (stream if position < 2 else larger).encode(frame):
                packet.stream = stream
                container.mux(packet)
