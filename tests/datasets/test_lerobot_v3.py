"""LeRobot v3.0: many episodes a file. Right frames for any window, and an error for everything that does not fit."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_factory import cut, edit_table, overwrite, packet_spans, read_ids, state

from pipeline.datasets import Episode, open_dataset
from pipeline.errors import DatasetError, EpisodeError, VideoError

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"


def test_what_it_says_about_itself(v3):
    dataset = open_dataset(v3.root)
    assert (dataset.format, dataset.fps, dataset.cameras) == ("lerobot_v3", 15.0, (FRONT, WRIST))
    assert dataset.features == {"action": 2, "action.gripper": 1, "observation.state": 3}
    assert dataset.warnings == ()
    assert dataset.num_episodes == 5
    assert list(dataset.episode_indexes()) == [0, 1, 2, 3, 4]
    assert dataset.episode(0) == Episode(0, 23, "")
    assert dataset.episode(3) == Episode(3, 40, "task of 3")


@pytest.mark.parametrize("name", ["v3", "v3_av1"])
def test_random_windows_give_exactly_their_frames(name, request):
    made = request.getfixturevalue(name)
    dataset, rng = open_dataset(made.root), np.random.default_rng(0)
    for _ in range(60):
        episode, camera = int(rng.integers(len(made.lengths))), made.cameras[rng.integers(2)]
        start, stride = int(rng.integers(made.lengths[episode])), int(rng.integers(1, 4))
        window = range(start, min(start + 9 * stride, made.lengths[episode]), stride)
        assert read_ids(dataset.read_frames(episode, camera, window)) == made.ids(episode, camera, window)


@pytest.mark.parametrize("name", ["v3", "v3_av1"])
def test_whole_episodes(name, request):
    made = request.getfixturevalue(name)
    dataset = open_dataset(made.root)
    for episode, length in enumerate(made.lengths):
        frames = dataset.read_frames(episode, WRIST, range(length))
        assert read_ids(frames) == made.ids(episode, WRIST, range(length))


def test_recorded_columns_belong_to_their_episode(v3):
    dataset = open_dataset(v3.root)
    for episode, length in enumerate(v3.lengths):
        ids = v3.ids(episode, FRONT, range(length))
        columns = dataset.read_columns(episode, ["observation.state", "action", "not.there"])
        assert set(columns) == {"observation.state", "action"}
        np.testing.assert_array_equal(columns["observation.state"], state(ids, 3).astype(np.float64))
        np.testing.assert_array_equal(columns["action"], state(ids, 2).astype(np.float64))
        assert columns["action"].dtype == np.float64
        assert dataset.read_columns(episode, ["action.gripper"])["action.gripper"].shape == (length, 1)


def test_timestamps_are_the_recorded_ones(v3, copy_of):
    made = copy_of(v3)
    num_rows = pq.read_metadata(made.root / DATA).num_rows
    edit_table(made.root / DATA, timestamp=np.arange(num_rows) * 0.5)
    np.testing.assert_array_equal(open_dataset(made.root).timestamps(1, [0, 4]), [11.5, 13.5])
    np.testing.assert_allclose(open_dataset(v3.root).timestamps(1, [0, 3, 30]), [0, 0.2, 2.0], atol=1e-6)


def test_timestamps_without_a_column_are_index_over_fps(v3, copy_of):
    made = copy_of(v3)
    pq.write_table(pq.read_table(made.root / DATA).drop_columns("timestamp"), made.root / DATA)
    np.testing.assert_array_equal(open_dataset(made.root).timestamps(1, [0, 3]), [0, 0.2])


def test_it_can_be_pickled(v3):
    dataset = pickle.loads(pickle.dumps(open_dataset(v3.root)))
    assert read_ids(dataset.read_frames(2, FRONT, [5])) == v3.ids(2, FRONT, [5])


def test_identity_is_made_of_content(v3, copy_of):
    made = copy_of(v3)
    before = open_dataset(v3.root).episode_identity(1, [FRONT, WRIST])
    assert json.loads(json.dumps(before)) == before
    assert open_dataset(made.root).episode_identity(1, [WRIST, FRONT]) == before
    front = before["videos"][FRONT]
    assert (front["path"], front["size"]) == (VIDEO, (v3.root / VIDEO).stat().st_size)
    assert (front["from_s"], front["to_s"]) == (23 / 15, 54 / 15)
    assert (before["num_frames"], before["task"], before["fps"]) == (31, "task of 1", 15.0)

    overwrite(made.root / VIDEO, 3000, 4)
    after = open_dataset(made.root).episode_identity(1, [FRONT, WRIST])
    assert after["videos"][FRONT] != before["videos"][FRONT]
    assert after["videos"][WRIST] == before["videos"][WRIST]


def test_identity_notices_changed_recordings(v3, copy_of):
    made = copy_of(v3)
    edit_table(made.root / DATA, timestamp=np.arange(pq.read_metadata(made.root / DATA).num_rows) * 0.5)
    assert open_dataset(made.root).episode_identity(1, []) != open_dataset(v3.root).episode_identity(1, [])


def test_identity_of_missing_files_does_not_raise(v3, copy_of):
    made = copy_of(v3)
    dataset = open_dataset(made.root)
    (made.root / VIDEO).unlink()
    (made.root / DATA).unlink()
    identity = dataset.episode_identity(0, [FRONT, WRIST])
    assert identity["videos"][FRONT] == {"path": VIDEO, "missing": True, "from_s": 0.0, "to_s": 23 / 15}
    assert "digest" in identity["videos"][WRIST]
    assert identity["data"]["missing"] is True


def test_an_episode_longer_than_its_span_does_not_run_into_the_next(v3, copy_of):
    made = copy_of(v3)
    edit_table(made.root / EPISODES, length=[23 + 4, 31, 17])
    dataset = open_dataset(made.root)
    assert read_ids(dataset.read_frames(0, FRONT, range(23))) == made.ids(0, FRONT, range(23))
    with pytest.raises(
        VideoError, match=r"file-000\.mp4: episode 0, .*expected frame 23 at 1\.533 s.*ends at 1\.533 s"
    ):
        dataset.read_frames(0, FRONT, range(20, 24))


@pytest.mark.parametrize(
    ("indexes", "expected"), [([30, 31], "0..30"), ([-1, 0], "0..30"), ([3, 3], "increasing"), ([], "increasing")]
)
def test_frames_outside_the_episode_are_refused(v3, indexes, expected):
    with pytest.raises(VideoError, match=re.escape(expected)):
        open_dataset(v3.root).read_frames(1, FRONT, indexes)


def test_timestamps_outside_the_episode_are_refused(v3):
    with pytest.raises(EpisodeError, match=r"episode 1 has 31 frames.*0\.\.30, found 31\.\.31"):
        open_dataset(v3.root).timestamps(1, [31])


@pytest.mark.parametrize("index", [-1, 5, 1000])
@pytest.mark.parametrize(
    "call",
    [
        lambda dataset, index: dataset.episode(index),
        lambda dataset, index: dataset.read_frames(index, FRONT, [0]),
        lambda dataset, index: dataset.timestamps(index, [0]),
        lambda dataset, index: dataset.read_columns(index, ["action"]),
        lambda dataset, index: dataset.episode_identity(index, [FRONT]),
    ],
)
def test_an_unknown_episode_names_the_range(v3, call, index):
    with pytest.raises(DatasetError, match=rf"episode {index} is not there.*5 episodes 0\.\.4"):
        call(open_dataset(v3.root), index)


def test_an_unknown_camera_gets_a_suggestion(v3):
    with pytest.raises(DatasetError, match=r"'observation\.images\.wirst'.*Did you mean 'observation\.images\.wrist'"):
        open_dataset(v3.root).read_frames(0, "observation.images.wirst", [0])


class TestDamagedVideos:
    def test_missing(self, v3, copy_of):
        made = copy_of(v3)
        (made.root / VIDEO).unlink()
        dataset = open_dataset(made.root)  # file-001 is still there, so the camera is
        assert dataset.cameras == (FRONT, WRIST)
        with pytest.raises(VideoError, match=re.escape(str(made.root / VIDEO))):
            dataset.read_frames(0, FRONT, [0])
        assert read_ids(dataset.read_frames(4, FRONT, [7])) == made.ids(4, FRONT, [7])

    def test_cut_short(self, v3, copy_of):
        made = copy_of(v3)
        cut(made.root / VIDEO, 0.6)
        dataset = open_dataset(made.root)
        assert read_ids(dataset.read_frames(0, FRONT, range(20))) == made.ids(0, FRONT, range(20))
        with pytest.raises(VideoError, match=r"episode 2, .*frames 0\.\.16 of 17 .*file-000\.mp4: expected 17 frames"):
            dataset.read_frames(2, FRONT, range(17))

    def test_corrupted_packet(self, v3_av1, copy_of):
        made = copy_of(v3_av1)
        overwrite(made.root / VIDEO, *packet_spans(made.root / VIDEO)[30])
        with pytest.raises(VideoError, match=r"file-000\.mp4.*decoding stopped with"):
            open_dataset(made.root).read_frames(1, FRONT, range(31))

    def test_shorter_than_the_metadata(self, v3, copy_of):
        made = copy_of(v3)
        shutil.copy(made.root / f"videos/{FRONT}/chunk-000/file-001.mp4", made.root / VIDEO)  # 69 frames, not 71
        assert len(packet_spans(made.root / VIDEO)) == 69
        with pytest.raises(VideoError, match=r"expected 17 frames .* found 15"):
            open_dataset(made.root).read_frames(2, FRONT, range(17))

    def test_no_file_recorded_for_one_episode(self, v3, copy_of):
        made = copy_of(v3)
        edit_table(made.root / EPISODES, **{f"videos__{FRONT}__file_index": [0, None, 0]})
        dataset = open_dataset(made.root)
        with pytest.raises(
            VideoError, match=r"episode 1, camera 'observation\.images\.front', found chunk 0, file None"
        ):
            dataset.read_frames(1, FRONT, [0])
        assert dataset.episode_identity(1, [FRONT])["videos"][FRONT] == {"missing": True}


class TestDamagedRecordings:
    def test_missing(self, v3, copy_of):
        made = copy_of(v3)
        (made.root / DATA).unlink()
        with pytest.raises(EpisodeError, match=re.escape(str(made.root / DATA))):
            open_dataset(made.root).read_columns(0, ["action"])

    def test_not_parquet(self, v3, copy_of):
        made = copy_of(v3)
        (made.root / DATA).write_bytes(b"PAR1 no")
        with pytest.raises(EpisodeError, match=r"file-000\.parquet: expected a Parquet file"):
            open_dataset(made.root).timestamps(0, [0])

    def test_too_few_rows(self, v3, copy_of):
        made = copy_of(v3)
        pq.write_table(pq.read_table(made.root / DATA).slice(0, 50), made.root / DATA)
        with pytest.raises(EpisodeError, match=r"file-000\.parquet: expected 31 rows of episode 1, found 27"):
            open_dataset(made.root).read_columns(1, ["action"])

    def test_rows_out_of_order(self, v3, copy_of):
        made = copy_of(v3)
        table = pq.read_table(made.root / DATA)
        pq.write_table(table.take(list(reversed(range(table.num_rows)))), made.root / DATA)
        with pytest.raises(EpisodeError, match=r"expected frame_index 0\.\.30 in order for episode 1"):
            open_dataset(made.root).read_columns(1, ["action"])

    def test_another_width_than_declared(self, v3, copy_of):
        made = copy_of(v3)
        num_rows = pq.read_metadata(made.root / DATA).num_rows
        edit_table(made.root / DATA, action=[[1.0, 2.0, 3.0]] * num_rows)
        with pytest.raises(EpisodeError, match=r"expected 'action' to be 2 wide.*found 3"):
            open_dataset(made.root).read_columns(1, ["action"])

    def test_ragged_rows(self, v3, copy_of):
        made = copy_of(v3)
        num_rows = pq.read_metadata(made.root / DATA).num_rows
        edit_table(made.root / DATA, action=[[1.0, 2.0], [1.0]] * (num_rows // 2) + [[1.0, 2.0]] * (num_rows % 2))
        with pytest.raises(EpisodeError, match=r"expected rows of one width in 'action'"):
            open_dataset(made.root).read_columns(1, ["action"])

    def test_not_numbers(self, v3, copy_of):
        made = copy_of(v3)
        edit_table(made.root / DATA, action=["x"] * pq.read_metadata(made.root / DATA).num_rows)
        with pytest.raises(EpisodeError, match=r"expected numbers in 'action', found string"):
            open_dataset(made.root).read_columns(1, ["action"])

    def test_timestamps_that_are_not_finite(self, v3, copy_of):
        made = copy_of(v3)
        edit_table(made.root / DATA, timestamp=[None] * pq.read_metadata(made.root / DATA).num_rows)
        edit_table(made.root / DATA, timestamp=[float("nan")] * pq.read_metadata(made.root / DATA).num_rows)
        with pytest.raises(EpisodeError, match="finite timestamps"):
            open_dataset(made.root).timestamps(1, [0])
