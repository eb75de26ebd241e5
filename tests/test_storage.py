"""One layer under disks and object stores: whole files or none, one winner, and patience with an end."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import ConfigError, DatasetError, StorageError
from pipeline.fingerprint import RECORDING_BLOCKS, digest_file
from pipeline.storage import (
    create,
    file_sizes,
    folder_names,
    inside,
    kind,
    list_files,
    open_path,
    read_bytes,
    remove,
    with_retries,
    write_atomically,
)


@pytest.fixture
def in_a_hurry(monkeypatch):
    """Patience of a second, with pauses to match."""
    monkeypatch.setattr(storage, "PATIENCE_S", 1.0)
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "_LONGEST_PAUSE_S", 0.05)


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    """An empty folder on a disk, and one in an object store."""
    if request.param == "disk":
        return open_path(tmp_path / "folder")
    return open_path(request.getfixturevalue("s3").url(f"storage/{request.node.name}"))


def test_a_scheme_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="found gs://"):
        open_path("gs://bucket/key")


def test_what_was_written_is_read_and_listed(folder):
    for name in ("a", "b/c", "b/.hidden"):
        assert write_atomically(folder / name, lambda partial: partial.write_bytes(b"x" * 5)) == 5
    assert sorted(list_files(folder)) == ["a", "b/.hidden", "b/c"]
    assert file_sizes(folder, recursive=True) == {"a": 5, "b/c": 5, "b/.hidden": 5}
    assert file_sizes(folder, recursive=False) == {"a": 5}
    assert folder_names(folder) == ["a", "b"]
    assert read_bytes(folder / "b/c") == b"xxxxx"
    assert [kind(folder / name) for name in ("a", "b", "nothing")] == ["file", "folder", None]
    remove(folder / "a")
    remove(folder / "a")
    assert sorted(list_files(folder)) == ["b/.hidden", "b/c"]


def test_nothing_is_listed_of_a_folder_that_is_not_there(folder):
    assert list(list_files(folder / "gone")) == []
    assert file_sizes(folder / "gone", recursive=True) == file_sizes(folder / "gone", recursive=False) == {}


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(folder):
    write_atomically(folder / "file", lambda partial: partial.write_bytes(b"before"))

    def fail_half_way(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(folder / "file", fail_half_way)
    assert list(list_files(folder)) == ["file"]
    assert read_bytes(folder / "file") == b"before"


def test_of_eight_that_create_one_file_one_wins(folder):
    start = threading.Barrier(8)

    def try_to(number: int) -> bool:
        start.wait()
        return create(folder / "lease", f"holder {number}".encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(try_to, range(8)))
    assert won.count(True) == 1
    assert read_bytes(folder / "lease") == f"holder {won.index(True)}".encode()
    assert list(list_files(folder)) == ["lease"]
    assert not create(folder / "lease", b"late")


def test_a_listing_goes_on_after_a_thousand(s3):
    place = open_path(s3.url("storage/many"))
    for number in range(1003):
        s3.put(f"storage/many/{number:04d}")
    before = s3.requests
    assert sorted(list_files(place)) == [f"{number:04d}" for number in range(1003)]
    assert len(file_sizes(place, recursive=False)) == 1003
    assert s3.requests - before <= 6, "pages of a thousand, and no request for each file"


@pytest.mark.parametrize("kinds", [["error_500"], ["timeout"], ["truncated"]])
def test_what_fails_and_passes_is_asked_again(s3, kinds):
    place = open_path(s3.url(f"storage/faults-{kinds[0]}"))
    content = bytes(range(256)) * 1000
    before = s3.failures
    with s3.fail(every=2, kinds=kinds):
        write_atomically(place / "file", lambda partial: partial.write_bytes(content))
        assert read_bytes(place / "file") == content
        assert kind(place / "file") == "file"
        assert file_sizes(place, recursive=True) == {"file": len(content)}
        assert create(place / "other", b"mine")
    assert s3.failures - before >= 2


def test_a_missing_file_is_not_asked_for_again(s3):
    place = open_path(s3.url("storage/missing"))
    before = s3.requests
    with pytest.raises(FileNotFoundError):
        read_bytes(place / "gone")
    assert s3.requests - before == 1
    assert kind(place / "gone") is None
    assert s3.requests - before <= 3, "a look for the file, a look for the folder"


def test_patience_ends_with_an_error_that_says_what_to_do(s3, in_a_hurry):
    place = open_path(s3.url("storage/dead")) / "file"
    with s3.fail(every=1, kinds=["error_500"]):
        for ask in (lambda: read_bytes(place), lambda: kind(place), lambda: file_sizes(place, recursive=True)):
            before = s3.requests
            with pytest.raises(StorageError, match=r"s3://storage/dead/file: .*\[Errno 121\].* attempts\).*endpoint"):
                ask()
            assert s3.requests - before > 2


def test_what_is_not_allowed_says_so_at_once(s3, monkeypatch):
    from s3fs import S3FileSystem

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    place = open_path("s3://storage/file")
    for purpose, attempt in {
        "read": lambda: read_bytes(place),
        "write": lambda: write_atomically(place, lambda partial: partial.write_text("new")),
        "write ": lambda: create(place, b"new"),
        "delete": lambda: remove(place),
        "list": lambda: list(list_files(place.parent)),
    }.items():
        with pytest.raises(StorageError, match=rf"to {purpose.strip()} it, found NoCredentials.*credentials"):
            attempt()
    S3FileSystem.clear_instance_cache()


def test_only_what_may_pass_is_tried_again(in_a_hurry):
    errors = [ConnectionResetError(), TimeoutError(), OSError(errno.EIO, "I/O")]

    def operation() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert with_retries(operation, "this") == "done"
    for error in (FileNotFoundError(), PermissionError(), OSError(errno.ENOSPC, "full"), ValueError()):
        attempts = []
        with pytest.raises(type(error)):
            with_retries(lambda error=error, attempts=attempts: attempts.append(1) or _throw(error), "this")
        assert attempts == [1]


def _throw(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("size", [0, 1, 100_000, 17 * 65536, 17 * 65536 + 1, 3_000_000, 66 * 65536 + 7])
def test_a_digest_is_the_same_on_a_disk_and_in_a_store(s3, tmp_path, size):
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    s3.url("storage/digests")
    s3.put(f"storage/digests/{size}", content)
    remote = open_path(f"s3://storage/digests/{size}")
    assert digest_file(remote) == digest_file(tmp_path / "file")
    sampled = digest_file(tmp_path / "file", num_blocks=RECORDING_BLOCKS)
    before = s3.requests
    assert digest_file(remote, num_blocks=RECORDING_BLOCKS, size=size) == sampled
    assert s3.requests - before <= RECORDING_BLOCKS + 1
    with s3.fail(every=3, kinds=["error_500", "truncated"]):
        assert digest_file(remote, num_blocks=RECORDING_BLOCKS) == sampled


class TestPathsFromData:
    @pytest.mark.parametrize(
        "path", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b", "x" * 256, "a/\ud800", "a/" + "é" * 128 + ".mp4"]
    )
    def test_that_lead_out_or_nowhere(self, tmp_path, path):
        for root in (tmp_path, open_path("s3://bucket/dataset")):
            with pytest.raises(DatasetError, match=r"info\.json: expected a path inside the dataset .*copy the files"):
                inside(root, path, said_by="info.json")

    def test_that_stay(self, tmp_path):
        assert inside(tmp_path, "a/./b c.mp4", said_by="x") == tmp_path / "a/b c.mp4"
        remote = inside(open_path("s3://bucket/dataset"), "a//b.mp4", said_by="x")
        assert str(remote) == "s3://bucket/dataset/a/b.mp4"

    @pytest.mark.parametrize("link", ["file", "folder", "hop"])
    def test_links_that_lead_out(self, tmp_path, link):
        root, outside = tmp_path / "dataset", tmp_path / "outside"
        root.mkdir()
        outside.mkdir()
        (outside / "x.mp4").touch()
        (root / "link.mp4").symlink_to(outside / "x.mp4")
        (root / "folder").symlink_to(outside)
        (root / "hop.mp4").symlink_to("link.mp4")
        path = {"file": "link.mp4", "folder": "folder/x.mp4", "hop": "hop.mp4"}[link]
        with pytest.raises(DatasetError, match=r"which leads to .*outside/x\.mp4.*point dataset\.root"):
            inside(root, path, said_by="info.json")

    def test_links_that_stay(self, tmp_path):
        (tmp_path / "dataset").mkdir()
        (tmp_path / "dataset/x.mp4").touch()
        (tmp_path / "dataset/link.mp4").symlink_to("x.mp4")
        (tmp_path / "elsewhere").symlink_to("dataset")
        for root in (tmp_path / "dataset", tmp_path / "elsewhere"):
            assert inside(root, "link.mp4", said_by="x") == root / "link.mp4"

    def test_a_neighbour_whose_name_begins_alike_is_outside(self, tmp_path):
        for name in ("dataset", "dataset-2"):
            (tmp_path / name).mkdir()
        (tmp_path / "dataset/link").symlink_to(tmp_path / "dataset-2")
        with pytest.raises(DatasetError, match="dataset-2"):
            inside(tmp_path / "dataset", "link", said_by="x")

    def test_a_hub_snapshot_is_made_of_links_to_its_blobs(self, tmp_path):
        repository = tmp_path / "datasets--org--name"
        snapshot = repository / "snapshots" / "0123abc"
        (snapshot / "meta").mkdir(parents=True)
        for blobs in (repository / "blobs", tmp_path / "datasets--org--other" / "blobs"):
            blobs.mkdir(parents=True)
            (blobs / "feed").touch()
        (snapshot / "meta/info.json").symlink_to("../../../blobs/feed")
        (snapshot / "meta/stolen").symlink_to("../../../../datasets--org--other/blobs/feed")
        (snapshot / "meta/refs").symlink_to("../../../refs/main")
        assert kind(inside(snapshot, "meta/info.json", said_by="x")) == "file"
        for name in ("stolen", "refs"):
            with pytest.raises(DatasetError, match="which leads to"):
                inside(snapshot, f"meta/{name}", said_by="x")
