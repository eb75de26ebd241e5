"""The report as a folder: what lies in it, that text stays text, and how numbers are worded."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import HEIGHT, HOSTILE, METRICS, WIDTH, estimate, make_gallery, write_sample, write_video

from pipeline.errors import ConfigError, ResultError
from pipeline.evaluation.report import VIDEO_KINDS, GalleryItem
from pipeline.evaluation.report_tables import agreement_tables, comparison_table, format_number
from pipeline.storage import open_path, read_bytes


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> list[GalleryItem]:
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def report(tmp_path_factory, gallery) -> Path:
    return write_sample(tmp_path_factory.mktemp("written") / "report", gallery)


class Page(HTMLParser):
    """The tags of a page, its visible text, and the JSON inside it, as an HTML parser sees them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.words, self.json, self.inside = [], [], "", ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("id", tag) if tag in ("script", "style") else self.inside

    def handle_endtag(self, tag):
        self.inside = "" if tag in ("script", "style") else self.inside

    def handle_data(self, data):
        if self.inside == "report-data":
            self.json += data
        elif not self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


# ---------------------------------------------------------------------------------------------------------- the folder


def test_an_object_store_has_the_same_report(s3, report, gallery):
    """The videos are there, too, as after a run whose output folder it is."""
    url = s3.url("reports/out")
    items = []
    for item in gallery:
        for kind, video in item.videos.items():
            s3.put(f"reports/out/videos/{item.episode_index}-{kind}.mp4", video.read_bytes())
        videos = {kind: open_path(f"{url}/videos/{item.episode_index}-{kind}.mp4") for kind in VIDEO_KINDS}
        items.append(replace(item, videos=videos))
    for _ in range(2):
        assert str(write_sample(f"{url}/report", items)) == f"{url}/report/report.html"
    found = {key.removeprefix("out/report/") for key in s3.keys("reports/out/report")}
    assert found == {path.relative_to(report.parent).as_posix() for path in report.parent.rglob("*") if path.is_file()}
    for name in found:
        assert read_bytes(open_path(f"{url}/report/{name}")) == (report.parent / name).read_bytes()
    with pytest.raises(ConfigError, match="something else"):
        write_sample(f"{url}/videos", items)


def test_the_folder_holds_all_that_the_page_needs(report):
    videos = {f"videos/episode_{index:06d}_{kind}.mp4" for index in (2, 4, 9) for kind in VIDEO_KINDS}
    found = {path.relative_to(report.parent).as_posix() for path in report.parent.rglob("*") if path.is_file()}
    assert found == {"report.html", "plotly.min.js"} | videos
    assert [path.name for path in report.parent.parent.iterdir()] == ["report"], "nothing is left beside it"


def test_the_page_names_no_address_outside_the_folder(report):
    addresses = [value for _, found in Page(report).tags for name, value in found.items() if name in ("src", "href")]
    assert len(addresses) == 2
    for address in addresses:
        assert address.startswith("data:") or (report.parent / address).is_file()


def test_data_survive_the_way_into_the_page(report, gallery):
    data = json.loads(Page(report).json)
    assert [item["episode_index"] for item in data["gallery"]] == [4, 2, 9]
    shown = data["gallery"][1]
    assert shown["task"] == HOSTILE
    assert shown["videos"]["rollout"] == {"path": "videos/episode_000002_rollout.mp4", "width": WIDTH, "height": HEIGHT}
    assert shown["actions_given"] == gallery[1].actions_given
    assert shown["frame_indexes"] == list(range(100, 140))
    assert data["horizon"][15]["recorded"]["psnr"]["mean"] == 14
    score = data["scores"]["translation_error_m"]
    assert (score["label"], score["unit"]) == ("Translation error", "m")


def test_hostile_text_stays_text(tmp_path, gallery):
    path = write_sample(
        tmp_path / "report",
        gallery[1:2],
        METRICS | {"verdict": HOSTILE, "lpips_status": HOSTILE},
        settings={HOSTILE: HOSTILE},
        checkpoint={"name": HOSTILE},
        comparison={"baseline": HOSTILE, "psnr": estimate(1.0)},
    )
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert "b" not in tags
    assert tags.count("script") == 4
    assert (
        page.text.count("<img src=x onerror=alert(1)>") == 8
    )  # title, heading, verdict, note, setting (2), checkpoint, baseline
    assert json.loads(page.json)["gallery"][0]["task"] == HOSTILE


def test_figures_are_worded_with_their_intervals(report):
    text = Page(report).text
    for phrase in ("Better than a copy. It does as it is told.", "24.25 dB 23.75 to 24.75", "+4.25 dB 3.75 to 4.75"):
        assert phrase in text
    assert "Obedience 4.75 dB 4.25 to 5.25" in text
    assert "Below the ceiling – – Moving PSNR" in text
    assert "Moving PSNR 17.50 dB – Only" in text
    assert "3 episodes, 1,120 frames, 2 rollouts of each episode." in text
    assert "LPIPS: No weights on this machine." in text
    assert "engine.cfg –" in text


def test_a_report_of_next_to_nothing_can_be_written(tmp_path):
    page = Page(write_sample(tmp_path / "report", [], {}, settings={}, checkpoint={}, dataset={}))
    assert "PSNR – –" in page.text
    assert "nan" not in page.text.lower()
    assert "None" not in page.text
    assert json.loads(page.json)["gallery"] == []
    assert "gallery" not in [attributes.get("id") for _, attributes in page.tags]


def test_a_report_replaces_the_one_before_it(tmp_path, gallery):
    write_sample(tmp_path / "report", gallery)
    path = write_sample(tmp_path / "report", gallery[:1])
    assert len(list((path.parent / "videos").iterdir())) == 3
    assert [found.name for found in tmp_path.iterdir()] == ["report"]


def test_a_failure_leaves_the_report_before_it(tmp_path, gallery):
    path = write_sample(tmp_path / "report", gallery[:1])
    before = path.read_bytes()
    short = {**gallery[1].videos, "rollout": write_video(tmp_path / "short.mp4", num_frames=7)}
    with pytest.raises(ResultError, match=r"short\.mp4: expected 40 frames, found 7"):
        write_sample(tmp_path / "report", [replace(gallery[1], videos=short)])
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_report_is_not_replaced(tmp_path, gallery):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="free or hold a report"):
        write_sample(tmp_path, gallery)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"psnr": [1.0]}, "number of psnr 40, found 1"),
        ({"rollout_starts": [3]}, r"begin with \[0\], found \[3\]"),
        ({"actions_given": [[0.0] * 4] * 40}, "number of actions_given 39, found 40"),
        ({"actions_given": [[0.0] * 3] * 39}, r"widths of actions_given set\(\), found \{3\}"),
        ({"videos": {}}, r"videos \['difference', 'recorded', 'rollout'\], found \[\]"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(gallery, changed, message):
    with pytest.raises(ResultError, match=f"episode 4: expected .*{message}"):
        replace(gallery[0], **changed)


def test_an_episode_is_shown_once(tmp_path, gallery):
    with pytest.raises(ResultError, match=r"shows \[4, 4\]"):
        write_sample(tmp_path / "report", [gallery[0], gallery[0]])


# ---------------------------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 2, "–"),
        (float("nan"), 2, "–"),
        (True, 2, "–"),
        (-1.234, 2, "−1.23"),
        (-0.001, 2, "0.00"),
        (0.0042, None, "0.00420"),
        (123.4, None, "123"),
        (1536, None, "1,536"),
        (0.0000001234, None, "1.23e−07"),
    ],
)
def test_numbers_as_text(value, digits, text):
    assert format_number(value, digits) == text


def test_agreement_lists_every_source_with_the_rollouts_interval():
    dimension = {"name": "dx_m", "unit": "m", "mae": 0.5, "r2": None, "ceiling": {"mae": 0.25}}
    tables = agreement_tables(
        {
            "dimensions": [dimension],
            "rotation": {"unit": "rad", "rmse": 0.5, "mean": 0.25, "ceiling": {"rmse": 0.125, "mean": None}},
            "gripper": None,
            "intervals": {"rotation_rmse_rad": {"mean": 0.5, "low": 0.25, "high": 0.75}},
        }
    )
    assert [span["label"] for span in tables["spans"]] == ["Rollout", "Recorded video"]
    assert tables["rows"] == [{"name": "dx_m", "unit": "m", "cells": ["0.500", "0.250"]}]
    (rotation,) = tables["groups"]
    cells = {row["label"]: [(cell.value, cell.interval) for cell in row["cells"]] for row in rotation["rows"]}
    assert cells == {
        "Rollout": [("0.500", "0.250 to 0.750"), ("0.250", "")],
        "Recorded video": [("0.125", ""), ("–", "")],
    }


def test_a_comparison_says_how_sure_it_is():
    table = comparison_table(
        {
            "num_common_episodes": 8,
            "num_only_here": 0,
            "warning": "Other settings.",
            "psnr": {"mean": 0.5, "low": -0.25, "high": 1.25, "p": 0.0004, "num_episodes": 8},
            "lpips": None,
            "agreement_translation_rmse_m": estimate(-0.001) | {"unit": "m", "higher_is_better": False, "p": None},
        }
    )
    psnr, translation = table["rows"]
    assert (psnr["value"], psnr["interval"]) == ("+0.50 dB", "−0.25 to 1.25")
    assert (psnr["p"], psnr["num_episodes"]) == ("< 0.001", "8")
    assert (translation["label"], translation["value"]) == ("Translation RMSE", "−0.00100 m")
    assert (translation["hint"], translation["p"]) == ("lower is better", "–")
    assert table["notes"] == ["Episodes: 8 in both, 0 only here.", "Other settings."]
