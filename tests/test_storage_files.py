"""Parts of files, local copies and deletions by the thousand: the same on a disk and on an object store."""

from __future__ import annotations

import uuid

import pytest
from upath import UPath

from pipeline import storage
from pipeline.storage import list_files, local_copy, open_path, read_range, remove_files

CONTENT = bytes(range(100))


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> UPath:
    """With the files a, b/c and d/e/f."""
    on_store = request.param == "s3"
    url = request.getfixturevalue("s3").url(f"files/{uuid.uuid4().hex}") if on_store else tmp_path / "files"
    root = open_path(url)
    for name in ("a", "b/c", "d/e/f"):
        if not on_store:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(CONTENT)
    return root


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 10, CONTENT[:10]),
        (90, 100, CONTENT[90:]),
        (90, 1000, CONTENT[90:]),
        (90, None, CONTENT[90:]),
        (-10, None, CONTENT[-10:]),
        (-1000, None, CONTENT),
    ],
)
def test_a_part_of_a_file(folder, start, stop, expected):
    assert read_range(folder / "a", start, stop) == expected


def test_a_part_of_a_file_that_is_not_there(folder):
    with pytest.raises(FileNotFoundError):
        read_range(folder / "gone", -10)


def test_a_local_copy_lasts_as_long_as_it_is_read(folder):
    with local_copy(folder / "d/e/f") as path:
        assert path.name == "f"
        assert path.read_bytes() == CONTENT
    assert path.exists() == storage.is_local(folder), "a file of a disk is read where it is"
    assert (folder / "d/e/f").exists()


def test_there_is_no_local_copy_of_nothing(s3):
    with pytest.raises(FileNotFoundError), local_copy(open_path(s3.url("files/gone"))):
        pass


def test_files_go_whether_they_are_there_or_not(folder, monkeypatch):
    monkeypatch.setattr(storage, "_FILES_PER_REQUEST", 2)
    remove_files(folder, ["gone", "b/c", "a", "gone/too", "never/there"])
    assert list(list_files(folder)) == ["d/e/f"]
    remove_files(folder, [])
    remove_files(folder, ["gone"])
    assert list(list_files(folder)) == ["d/e/f"]
