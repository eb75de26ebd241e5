"""A folder is replaced as a whole, and what was there before stays until then."""

from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from pipeline.outputs import writing
from pipeline.outputs.manifest import write_json, write_manifest
from pipeline.outputs.writing import BEING_REPLACED, replacing
from pipeline.storage import list_files, read_bytes


def fill(folder: Path, content: str, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def found(folder) -> dict[str, bytes]:
    return {name: read_bytes(folder / name) for name in sorted(list_files(folder))}


def test_a_folder_is_replaced_with_all_that_was_in_it(output_dir):
    folder = output_dir / "report"
    for names in (["page.html", "videos/a.mp4", "videos/b.mp4"], ["page.html", "videos/b.mp4"]):
        with replacing(folder, last="page.html") as new:
            assert not new.path.exists()
            fill(new.path, names[-1], *names)
        assert found(folder) == {name: names[-1].encode() for name in names}
        assert {name.split("/")[0] for name in list_files(output_dir)} == {"report"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_the_old_folder_is_there_and_nothing_else(output_dir, error):
    folder = output_dir / "report"
    with replacing(folder) as new:
        fill(new.path, "old", "a", "b")

    def fail() -> None:
        with replacing(folder) as new:
            fill(new.path, "new", "a", "c")
            new.hand_over("a")
            raise error

    with pytest.raises(error):
        fail()
    assert found(output_dir) == {"report/a": b"old", "report/b": b"old"}


def test_the_file_that_tells_of_a_whole_folder_comes_last_and_goes_first(s3, monkeypatch):
    folder, seen = UPath(s3.url("last/out")) / "dataset", []
    with replacing(folder, last="meta/generator.json") as new:
        fill(new.path, "old", "meta/generator.json", "meta/info.json", "data/0")
    request = writing.request

    def watched(*asked):
        result = request(*asked)
        seen.append(set(list_files(folder)))
        return result

    monkeypatch.setattr(writing, "_CONNECTIONS", 1)
    monkeypatch.setattr(writing, "request", watched)
    with replacing(folder, last="meta/generator.json") as new:
        fill(new.path, "new", "meta/generator.json", "meta/info.json", "data/0", "data/1")
    old, new = ({"meta/generator.json", "meta/info.json", *data} for data in (["data/0"], ["data/0", "data/1"]))
    complete = [names for names in seen if "meta/generator.json" in names]
    assert {frozenset(names - {BEING_REPLACED}) for names in complete} == {frozenset(old), frozenset(new)}
    assert all(BEING_REPLACED in names for names in seen if names not in (old, new))
    assert set(found(folder)) == new


def test_files_that_are_handed_over_do_not_wait_on_the_local_disk(s3):
    folder = UPath(s3.url("handed/out"))
    with replacing(folder) as new:
        fill(new.path, "large", "a", "b")
        new.hand_over("a")
        assert [path.name for path in new.path.iterdir()] == ["b"]
        assert not folder.exists()
    assert found(folder) == {"a": b"large", "b": b"large"}


def test_a_web_server_learns_what_kind_of_file_it_is(s3):
    folder = UPath(s3.url("kinds/out"))
    with replacing(folder) as new:
        fill(new.path, "<html>", "report.html")
    assert folder.fs.info(f"{folder.path}/report.html")["ContentType"] == "text/html"


def test_a_manifest_is_the_newest_runs_and_each_recipes(output_dir):
    for run_id in ("one", "two"):
        write_manifest(output_dir, {"run_id": run_id})
    assert found(output_dir) == {
        name: f'{{\n  "run_id": "{run_id}"\n}}\n'.encode()
        for name, run_id in (("manifest.json", "two"), ("manifests/one.json", "one"), ("manifests/two.json", "two"))
    }


def test_json_has_no_word_for_nan(output_dir):
    with pytest.raises(ValueError, match="JSON"):
        write_json(output_dir / "summary.json", {"rate": float("nan")})
    assert list(list_files(output_dir)) == []
