"""The report: one folder with a page, its videos and Plotly, which opens from a disk and asks no network for anything.

Owns the folder and what goes into the page. `report_tables` words the numbers; `report_page/` holds the page's
template, styles and scripts. The page's data lie inside it as JSON, because a page from a disk may fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from upath import UPath

from pipeline.datasets.video import probe_video
from pipeline.errors import ConfigError, ResultError
from pipeline.evaluation import report_tables as tables
from pipeline.outputs.videos import local_video
from pipeline.outputs.writing import BEING_REPLACED, replacing
from pipeline.storage import kind, list_files, open_path

VIDEO_KINDS = ("recorded", "rollout", "difference")

_PAGE_FILES = Path(__file__).with_name("report_page")
_STYLES = ("style.css", "gallery.css")
_SCRIPTS = ("wording.js", "horizon.js", "player.js", "actions.js", "gallery.js", "page.js")
_PAGE, _PLOTLY = "report.html", "plotly.min.js"
# What the page may load and run, should a text ever become markup all the same: its own scripts, told by their hashes,
# and the files beside it. `file:` is what 'self' means on a disk. Plotly writes styles, and shows pictures it has made.
_POLICY = (
    "default-src 'none'; script-src {hashes} 'self' file:; style-src 'unsafe-inline'; img-src data: blob:; "
    "media-src 'self' file:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One episode as three videos that play in step. T frames, D action dimensions.

    Raises ResultError when the parts do not belong together, naming the episode.
    """

    episode_index: int
    task: str
    fps: float
    num_frames: int  # T, of each of the three videos
    videos: Mapping[str, Path | UPath]  # one H.264 mp4 for each of VIDEO_KINDS
    frame_indexes: Sequence[int]  # [T] the dataset's own frame numbers
    rollout_starts: Sequence[int]  # video frames at which a rollout begins anew from a recorded frame; 0 first
    scores: Mapping[str, float | None]  # the episode's means, by which the gallery can be sorted
    psnr: Sequence[float | None]  # [T] dB, None for frames that were given
    action_names: Sequence[str]  # [D]
    action_units: Sequence[str]  # [D]
    actions_given: list[list[float]]  # [T-1][D]; the first leads from frame 0 to frame 1
    actions_recovered: list[list[float | None]] | None  # [T-1][D], None where nobody asked

    def __post_init__(self) -> None:
        self._has("videos", sorted(self.videos), sorted(VIDEO_KINDS))
        self._has("fps", self.fps > 0, True)
        for name, length in {"frame_indexes": self.num_frames, "psnr": self.num_frames}.items():
            self._has(f"number of {name}", len(getattr(self, name)), length)
        self._has("rollout_starts that begin with", list(self.rollout_starts[:1]), [0])
        self._has("number of action_units", len(self.action_units), len(self.action_names))
        for name in ("actions_given", "actions_recovered"):
            if (rows := getattr(self, name)) is not None:
                self._has(f"number of {name}", len(rows), self.num_frames - 1)
                self._has(f"widths of {name}", {len(row) for row in rows} - {len(self.action_names)}, set())

    def _has(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise ResultError(f"Gallery episode {self.episode_index}: expected {what} {expected!r}, found {found!r}.")


def write_report(
    folder: str | Path | UPath,
    *,
    metrics: dict[str, Any],
    gallery: Sequence[GalleryItem],
    settings: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    dataset: Mapping[str, Any],
    comparison: dict[str, Any] | None = None,
) -> Path | UPath:
    """Writes the report into `folder` and returns the page's path, `folder/report.html`.

    Put in its place once it is complete, on an object store with the page last; a report that is there is replaced.
    Raises ConfigError when `folder` holds anything else, ResultError when two gallery items show the same episode or a
    video has another number of frames than its item says, VideoError when one cannot be read, StorageError when there
    is no room.
    """
    folder = open_path(folder)
    _check_free(folder)
    with replacing(folder, last=_PAGE) as new:
        (new.path / "videos").mkdir(parents=True)
        metrics, comparison = _plain(metrics), _plain(comparison)
        page_data = _page_data(metrics, [_show(item, new.path) for item in _distinct(gallery)])
        facts = {"Settings": settings, "Checkpoint": checkpoint, "Dataset": dataset}
        view = _view(metrics, comparison or metrics.get("comparison"))
        # Half of a surrogate pair, which JSON can hold and UTF-8 cannot, is shown as a question mark.
        (new.path / _PAGE).write_bytes(_render(view, page_data, facts=facts).encode("utf-8", errors="replace"))
        shutil.copyfile(_plotly_script(), new.path / _PLOTLY)
    return folder / _PAGE


def _check_free(folder: Path | UPath) -> None:
    is_file = kind(folder) == "file"
    names = [] if is_file else list(list_files(folder))
    if is_file or (names and not {_PAGE, BEING_REPLACED}.intersection(names)):
        raise ConfigError(f"{folder} should be free or hold a report, but holds something else. Name another folder.")


def _plotly_script() -> Path:
    """Found without importing the package, which this needs nothing else of."""
    package = importlib.util.find_spec("plotly")
    assert package is not None, "plotly is one of this project's dependencies"
    return Path(package.origin).with_name("package_data") / _PLOTLY


# ---------------------------------------------------------------------------------------------------------- gallery


def _distinct(gallery: Sequence[GalleryItem]) -> Sequence[GalleryItem]:
    indexes = [item.episode_index for item in gallery]
    if len(set(indexes)) != len(indexes):
        raise ResultError(f"The gallery should show each episode once, but shows {sorted(indexes)}.")
    return gallery


def _show(item: GalleryItem, root: Path) -> dict[str, Any]:
    """Copies the videos; returns what the page must know of the episode."""
    fields = {name: getattr(item, name) for name in GalleryItem.__dataclass_fields__}
    return fields | {"videos": {panel: _copy_video(item, panel, root) for panel in VIDEO_KINDS}}


def _copy_video(item: GalleryItem, panel: str, root: Path) -> dict[str, Any]:
    source, path = item.videos[panel], f"videos/episode_{item.episode_index:06d}_{panel}.mp4"
    with local_video(source) as copy:
        video = probe_video(copy)
        if video.num_frames != item.num_frames:
            raise ResultError(f"{source}: expected {item.num_frames} frames, found {video.num_frames}.")
        shutil.copyfile(copy, root / path)
    return {"path": path, "width": video.width, "height": video.height}


# ------------------------------------------------------------------------------------------------------------- page


def _page_data(metrics: Mapping[str, Any], gallery: list[dict[str, Any]]) -> dict[str, Any]:
    scored = dict.fromkeys([*tables.METRIC_LABELS, *(name for item in gallery for name in item["scores"])])
    return {
        "metrics": tables.METRIC_LABELS,
        "variants": tables.VARIANT_LABELS,
        "scores": {name: tables.metric_info(name) for name in scored},
        "horizon": metrics.get("horizon") or [],
        "lpips_status": metrics.get("lpips_status") or "",
        "gallery": gallery,
    }


def _view(metrics: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "verdict": metrics.get("verdict"),
        "figures": tables.key_figures(metrics),
        "sizes": tables.sizes(metrics),
        "score_table": tables.score_table(metrics),
        "obedience": tables.drop_table(metrics),
        "agreement": tables.agreement_tables(metrics.get("agreement")),
        "comparison": tables.comparison_table(comparison),
        # A comparison knows how far these two checkpoints' differences spread; without one it is assumed.
        "differences": tables.difference_table((comparison or metrics).get("differences")),
    }


def _render(view: dict[str, Any], page_data: dict[str, Any], *, facts: dict[str, Mapping[str, Any]]) -> str:
    main_script = f'(() => {{\n"use strict";\n{_page_file(*_SCRIPTS)}\n}})();'
    scripts = {"theme": _page_file("theme.js"), "javascript": main_script}
    environment = Environment(loader=FileSystemLoader(_PAGE_FILES), autoescape=True, trim_blocks=True)
    return environment.get_template(_PAGE).render(
        view,
        checkpoint_name=_name_of(facts["Checkpoint"], "checkpoint"),
        dataset_name=_name_of(facts["Dataset"], "dataset"),
        has_horizon=bool(page_data["horizon"]),
        has_gallery=bool(page_data["gallery"]),
        provenance=[{"title": title, "rows": tables.fact_rows(of)} for title, of in facts.items() if of],
        css=_page_file(*_STYLES),
        policy=_POLICY.format(hashes=" ".join(map(_hash_source, scripts.values()))),
        **scripts,
        data=_inline_json(_plain(page_data)),
    )


def _name_of(facts: Mapping[str, Any], otherwise: str) -> str:
    """The name that was given, else the last part of the path."""
    given = next((facts[key] for key in ("name", "id", "repo_id", "root", "path") if facts.get(key)), otherwise)
    is_path = Path(given).is_absolute() or "://" in str(given)
    return Path(given).name if is_path else str(given)


def _page_file(*names: str) -> str:
    return "\n".join((_PAGE_FILES / name).read_text(encoding="utf-8") for name in names)


def _hash_source(script: str) -> str:
    """How a content security policy names one inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _inline_json(value: Any) -> str:
    """JSON that no HTML parser can take for markup: `<`, `>` and `&` are written as escapes of JSON's own."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> Any:
    """Lists, dictionaries and finite numbers; what is not finite is null, which the page shows as an en dash."""
    match value:
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case float():
            return float(value) if math.isfinite(value) else None
        case None | str() | bool() | int():
            return value
        case Sequence():
            return [_plain(entry) for entry in value]
        case _:  # NumPy's arrays and scalars
            return _plain(value.tolist())
