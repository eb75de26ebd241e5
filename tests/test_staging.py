"""A checkpoint on an object store is fetched once a node, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cosmos3.config import checkpoint_fingerprint, resolve_checkpoint
from pipeline.errors import StorageError
from pipeline.staging import stage_folder, staging_root
from pipeline.storage import open_path

WANTED = ("vae/*", "model_index.json")
PROGRAM = "import sys; from pipeline.staging import stage_folder; from pipeline.storage import open_path; "


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(s3, tmp_path_factory) -> str:
    source = tmp_path_factory.mktemp("source")
    for name, content in {
        "vae/weights.bin": b"w" * 100_000,
        "model_index.json": b"{}",
        "other/large.bin": b"x",
    }.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    return s3.upload(source, f"staging/{source.name}")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_wanted_is_fetched_and_nothing_else(folder):
    staged = stage_folder(open_path(folder), WANTED)
    assert files(staged) == ["model_index.json", "vae/weights.bin"]
    assert (staged / "vae/weights.bin").read_bytes() == b"w" * 100_000
    assert staged.is_relative_to(staging_root())


def test_a_second_time_costs_a_listing(s3, folder):
    stage_folder(open_path(folder), WANTED)
    before, sent = s3.requests, s3.sent_bytes
    stage_folder(open_path(folder), WANTED)
    assert s3.requests - before <= 2
    assert s3.sent_bytes - sent < 50_000, "no content came again"


def test_processes_that_ask_at_once_fetch_it_once(s3, folder):
    before = s3.sent_bytes
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", f"{PROGRAM}print(stage_folder(open_path(sys.argv[1]), {WANTED!r}))", folder],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    places = {process.communicate(timeout=60)[0] for process in asking}
    assert len(places) == 1
    assert 100_000 <= s3.sent_bytes - before < 200_000


def test_other_content_under_the_same_name_is_another_folder(s3, folder):
    before = stage_folder(open_path(folder), WANTED)
    s3.put(f"{folder.removeprefix('s3://')}/vae/weights.bin", b"v" * 100_000)
    after = stage_folder(open_path(folder), WANTED)
    assert after != before
    assert (after / "vae/weights.bin").read_bytes() == b"v" * 100_000


def test_a_fetch_that_fails_leaves_nothing_that_looks_whole(s3, folder, monkeypatch):
    monkeypatch.setattr("pipeline.storage.PATIENCE_S", 0.3)
    with s3.fail(every=1, kinds=("error_500",), after=1), pytest.raises(StorageError):
        stage_folder(open_path(folder), WANTED)
    assert [path.name for path in staging_root().iterdir() if path.is_dir()] == []
    assert files(stage_folder(open_path(folder), WANTED)) == ["model_index.json", "vae/weights.bin"]


def test_nothing_that_matches_is_an_error(folder):
    with pytest.raises(StorageError, match="expected files such as"):
        stage_folder(open_path(folder), ("transformer/*",))


def test_a_checkpoint_on_an_object_store_is_the_one_that_was_put_there(s3, tiny_checkpoint):
    url = s3.upload(tiny_checkpoint, "staging/tiny")
    assert checkpoint_fingerprint(resolve_checkpoint(url)) == checkpoint_fingerprint(tiny_checkpoint)
    small = resolve_checkpoint(url, with_weights=False)
    assert not list(small.rglob("*.safetensors"))
