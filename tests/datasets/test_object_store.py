"""A dataset in an object store is the dataset on the disk: same frames, rows and identities, also through faults."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_factory import cut, read_ids, write_video

from pipeline import storage
from pipeline.datasets import RobotVideoDataset, open_dataset
from pipeline.errors import DatasetError, EpisodeError, StorageError, VideoError

FRONT = "observation.images.front"
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    write_video(root / "b.mp4", range(100, 130))
    write_video(root / "a" / "z.mkv", range(200, 220))
    write_video(root / "late.mov", range(300, 310))  # its index is at the end
    (root / "captions.jsonl").write_text('{"file_name": "a/z.mkv", "text": "open it"}\n')
    return root


@pytest.fixture(params=["v3", "v2", "plain"])
def local(request) -> Path:
    made = request.getfixturevalue(request.param)
    return made if isinstance(made, Path) else made.root


@pytest.fixture
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_S", 0.5)
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 0.01)


def assert_equal(dataset: RobotVideoDataset, expected: RobotVideoDataset) -> None:
    """All that can be asked of a dataset, asked of both."""
    for name in ("format", "fps", "cameras", "features", "num_episodes"):
        assert getattr(dataset, name) == getattr(expected, name)
    assert len(dataset.warnings) == len(expected.warnings)
    assert dataset.fingerprint() == expected.fingerprint()
    for index in expected.episode_indexes():
        assert dataset.episode(index) == expected.episode(index)
        identity = dataset.episode_identity(index, dataset.cameras)
        assert identity == expected.episode_identity(index, dataset.cameras)
        assert all("digest" in video for video in identity["videos"].values())
        frames = range(0, expected.episode(index).num_frames, 4)
        for camera in expected.cameras:
            ids = read_ids(expected.read_frames(index, camera, frames))
            assert read_ids(dataset.read_frames(index, camera, frames)) == ids
        columns = expected.read_columns(index, ["action", "observation.state", "nothing"])
        found = dataset.read_columns(index, ["action", "observation.state", "nothing"])
        assert found.keys() == columns.keys()
        for key, values in columns.items():
            np.testing.assert_array_equal(found[key], values)
        np.testing.assert_array_equal(dataset.timestamps(index, frames), expected.timestamps(index, frames))


def test_it_is_the_dataset_on_the_disk(s3, local):
    dataset = open_dataset(s3.upload(local, f"data/{local.parent.name}/{local.name}"))
    assert_equal(dataset, open_dataset(local))


def test_also_with_one_request_in_five_failing(s3, local):
    url = s3.upload(local, f"faulty/{local.parent.name}/{local.name}")
    before = s3.failures
    with s3.fail(every=5, kinds=["error_500", "truncated"]):
        assert_equal(open_dataset(url), open_dataset(local))
    assert s3.failures - before > 3


def test_also_when_answers_do_not_come(s3, v3):
    url = s3.upload(v3.root, "data/silent")
    with s3.fail(every=7, kinds=["timeout"]):
        dataset = open_dataset(url)
        assert read_ids(dataset.read_frames(3, FRONT, range(40))) == v3.ids(3, FRONT, range(40))


def test_it_can_be_sent_to_another_process(s3, v3):
    dataset = open_dataset(s3.upload(v3.root, "data/sent"))
    dataset.prepare_identities(range(5), dataset.cameras)
    copy = pickle.loads(pickle.dumps(dataset))
    assert read_ids(copy.read_frames(2, FRONT, [5])) == v3.ids(2, FRONT, [5])
    assert copy.episode_identity(4, [FRONT]) == dataset.episode_identity(4, [FRONT])
    with pytest.raises(DatasetError, match=r"^s3://data/sent: episode 9 is not there"):
        copy.episode(9)


def test_opening_and_planning_cost_few_requests(s3, v2, plain):
    url = s3.upload(v2.root, "data/few")
    before = s3.requests
    dataset = open_dataset(url)
    assert s3.requests - before <= 8, "two files of metadata, a look for each camera; no video, no row"
    dataset.prepare_identities(range(3), [FRONT])
    before = s3.requests
    for index in range(3):
        dataset.episode_identity(index, [FRONT])
    assert s3.requests == before, "all of it was read ahead"

    url = s3.upload(plain, "data/few_plain")
    before = s3.requests
    assert open_dataset(url).num_episodes == 3
    assert s3.requests - before <= 10 + 2 * 3


def test_a_frame_costs_no_whole_file(s3, tmp_path):
    path = write_video(tmp_path / "long.avi", range(1200), codec="ffvhuff")
    size = path.stat().st_size
    assert size > 7_000_000
    dataset = open_dataset(s3.upload(tmp_path, "data/long"))
    before = s3.sent_bytes
    assert read_ids(dataset.read_frames(0, "video", [300, 301])) == [300, 301]
    assert s3.sent_bytes - before < size / 2


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda dataset: dataset.read_frames(0, FRONT, [0]), VideoError),
        (lambda dataset: dataset.read_columns(0, ["action"]), EpisodeError),
    ],
)
def test_a_missing_file_is_the_same_error_as_on_a_disk_and_comes_at_once(s3, v3, copy_of, call, error):
    made = copy_of(v3)
    (made.root / VIDEO).unlink()
    (made.root / "data/chunk-000/file-000.parquet").unlink()
    dataset = open_dataset(s3.upload(made.root, f"data/missing-{error.__name__}"))
    before = s3.requests
    with pytest.raises(error, match=r"s3://data/missing-.*/file-000\.(mp4|parquet): expected .* found nothing"):
        call(dataset)
    assert s3.requests - before <= 2
    identity = dataset.episode_identity(0, [FRONT])
    assert identity["videos"][FRONT]["missing"] is identity["data"]["missing"] is True


@pytest.mark.parametrize(
    "call",
    [
        lambda dataset: dataset.read_frames(0, FRONT, [0]),
        lambda dataset: dataset.read_columns(0, ["action"]),
        lambda dataset: dataset.episode_identity(0, [FRONT]),
        lambda dataset: dataset.fingerprint(),
        lambda dataset: open_dataset(dataset.root),
    ],
)
def test_a_store_that_is_gone_is_not_the_datas_fault(s3, v3, in_a_hurry, call):
    dataset = open_dataset(s3.upload(v3.root, "data/gone"))
    with s3.fail(every=1, kinds=["error_500", "truncated"]), pytest.raises(StorageError, match=r"s3://data/gone"):
        call(dataset)


def test_a_store_that_goes_amid_a_video_is_not_the_videos_fault(s3, tmp_path, in_a_hurry):
    write_video(tmp_path / "long.avi", range(800), codec="ffvhuff")
    dataset = open_dataset(s3.upload(tmp_path, "data/amid"))
    with s3.fail(every=1, kinds=["error_500"], after=3), pytest.raises(StorageError, match=r"long\.avi"):
        dataset.read_frames(0, "video", range(800))
    assert read_ids(dataset.read_frames(0, "video", [799])) == [799], "and nothing of it is left in this thread"


def test_a_damaged_video_is_the_videos_fault(s3, v3, copy_of):
    made = copy_of(v3)
    cut(made.root / VIDEO, 0.6)
    dataset = open_dataset(s3.upload(made.root, "data/damaged"))
    with pytest.raises(VideoError, match=r"s3://data/damaged/.*file-000\.mp4: expected 17 frames"):
        dataset.read_frames(2, FRONT, range(17))


@pytest.mark.parametrize("place", ["empty/nothing", "no-such-bucket/x"])
def test_nothing_is_there(s3, place):
    s3.url("empty")
    with pytest.raises(DatasetError, match="expected a dataset folder, found nothing"):
        open_dataset(f"s3://{place}")


def test_what_is_there_instead_is_said(s3):
    s3.url("notes")
    for name in ("a.txt", "b/c.txt"):
        s3.put(f"notes/here/{name}")
    with pytest.raises(DatasetError, match=r"^s3://notes/here: expected meta/info\.json .*found a\.txt, b;"):
        open_dataset("s3://notes/here")
    with pytest.raises(DatasetError, match=r"a\.txt: expected a dataset folder, found a file"):
        open_dataset("s3://notes/here/a.txt")


def test_a_path_that_leads_to_another_bucket_is_refused(s3, v3, copy_of: Callable):
    from dataset_factory import edit_json

    made = copy_of(v3)
    edit_json(made.root / "meta/info.json", video_path="../../notes/{video_key}/{chunk_index}/{file_index}")
    with pytest.raises(DatasetError, match=r"s3://data/elsewhere/meta/info\.json: .*'video_path' to be a path inside"):
        open_dataset(s3.upload(made.root, "data/elsewhere"))
