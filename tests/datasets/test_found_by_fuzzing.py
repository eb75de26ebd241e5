"""Damage that fuzzing has found to slip through: kept here as files that anybody can read."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_factory import write_video

from pipeline.datasets import open_dataset
from pipeline.datasets.video import probe_video, read_video_frames
from pipeline.errors import DatasetError, EpisodeError, VideoError

EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile inner.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\ninner.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["ffconcat", "HLS", "SDP"],
)
def test_a_list_of_other_files_is_no_video_whatever_it_is_called(tmp_path, text, suffix):
    """FFmpeg goes by the content, and would open what a list names."""
    write_video(tmp_path / "inner.mp4", range(4))
    (tmp_path / f"list{suffix}").write_text(text)
    for read in (probe_video, lambda path: read_video_frames(path, [0.0], tolerance_s=0.01)):
        with pytest.raises(VideoError, match=rf"list\{suffix}"):
            read(tmp_path / f"list{suffix}")
        read(tmp_path / "inner.mp4")


def test_header_texts_in_another_encoding_are_no_damage(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(4))
    raw = path.read_bytes()
    assert raw.count(b"VideoHandler") == 1
    path.write_bytes(raw.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    assert probe_video(path).num_frames == 4
    assert len(read_video_frames(path, [0.0], tolerance_s=0.01)) == 1


def test_two_columns_of_one_name(v3, copy_of):
    made = copy_of(v3)
    table = pq.read_table(made.root / EPISODES)
    pq.write_table(table.append_column("tasks", table["tasks"]), made.root / EPISODES)
    with pytest.raises(DatasetError, match="two of one name"):
        open_dataset(made.root)


def test_a_task_that_is_no_text(v3, copy_of):
    made = copy_of(v3)
    table = pq.read_table(made.root / EPISODES)
    raw = pa.array([[b"\xff\xfe"]] * table.num_rows, pa.list_(pa.binary()))
    broken = pa.ListArray.from_arrays(raw.offsets, raw.values.view(pa.string()))
    pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", broken), made.root / EPISODES)
    with pytest.raises(DatasetError, match=r"'tasks'.*(UTF8|UTF-8|utf8)"):
        open_dataset(made.root)


@pytest.mark.parametrize("values", [[], [0.0, 1.0]])
def test_not_one_time_stamp_a_frame(v3, copy_of, values):
    made = copy_of(v3)
    table = pq.read_table(made.root / DATA)
    column = pa.array([values] * table.num_rows, pa.list_(pa.float64()))
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", column), made.root / DATA)
    with pytest.raises(EpisodeError, match="finite timestamps, one a frame"):
        open_dataset(made.root).timestamps(0, [0])
