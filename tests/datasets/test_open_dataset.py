"""What a folder is, and what it is not: every refusal says what was expected, what was found, and what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from dataset_factory import edit_json, write_video

from pipeline.datasets import open_dataset
from pipeline.errors import DatasetError


def test_auto_tells_the_formats_apart(v3, v2, tmp_path):
    write_video(tmp_path / "a.mp4", range(3))
    formats = [open_dataset(str(root)).format for root in (v3.root, v2.root, tmp_path)]
    assert formats == ["lerobot_v3", "lerobot_v2", "videos"]


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match=r"gone: expected a dataset folder, found nothing"):
        open_dataset(tmp_path / "gone")


def test_a_path_to_a_file(v3):
    with pytest.raises(DatasetError, match=r"info\.json: expected a dataset folder, found a file"):
        open_dataset(v3.root / "meta/info.json")


def test_a_folder_without_either_says_what_is_in_it(tmp_path):
    with pytest.raises(DatasetError, match=r"meta/info\.json \(LeRobot\) or video files .*, found an empty folder"):
        open_dataset(tmp_path)
    for name in "abcdefg":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(DatasetError, match=r"found a\.txt, b\.txt, c\.txt, d\.txt, e\.txt, …"):
        open_dataset(tmp_path)


def test_lerobot_without_info(v3, copy_of, tmp_path):
    made = copy_of(v3)
    (made.root / "meta/info.json").unlink()
    for format in ("auto", "lerobot"):
        with pytest.raises(
            DatasetError, match=r"expected a LeRobot dataset with meta/info\.json, found data, meta, videos"
        ):
            open_dataset(made.root, format)


def test_formats_that_do_not_match_the_folder(v3, tmp_path):
    write_video(tmp_path / "a.mp4", range(3))
    with pytest.raises(DatasetError, match=r"expected a LeRobot dataset .*found a\.mp4.*format 'videos'"):
        open_dataset(tmp_path, "lerobot")
    with pytest.raises(DatasetError, match=r"expected plain videos, found a LeRobot dataset.*format 'lerobot'"):
        open_dataset(v3.root, "videos")


def test_an_unknown_format_gets_a_suggestion(v3):
    with pytest.raises(DatasetError, match=r"'lerobto' is not known.*auto, lerobot, videos.*Did you mean 'lerobot'"):
        open_dataset(v3.root, "lerobto")


def test_an_unknown_codebase_version(v3, copy_of):
    made = copy_of(v3)
    edit_json(made.root / "meta/info.json", codebase_version="v4.0")
    with pytest.raises(DatasetError, match=r"info\.json: codebase_version 'v4\.0' .*v2\.0, v2\.1, v3\.0"):
        open_dataset(made.root)


def test_nothing_heavy_is_imported():
    heavy = "torch", "ray", "lerobot", "datasets", "decord", "pandas"
    program = f"import pipeline.datasets, sys; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
