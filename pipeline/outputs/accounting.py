"""Conservation: planned = recorded + failed + quarantined, and every merged row belongs to exactly one record.

Owns what "nothing is lost, nothing is done twice" means in numbers. It looks at what is there and mends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from pipeline.errors import OutputError
from pipeline.outputs.failures import Outcome
from pipeline.outputs.plans import plan_keys
from pipeline.storage import is_local, list_files, open_path, with_retries

_KEYS_NAMED = 10
_BLOCK_BYTES = 2**20  # of an object that is fetched at once: the columns that are looked at are small
# Of an evaluation: what has a row for every position of a record. Others depend on what a segment had to lend.
_WHOLE_VARIANTS = ("recorded", "zero_motion", "copy", "ceiling")


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of a plan. A key counts once, however it was planned; `planned` counts the plan's rows."""

    planned: int
    recorded: int
    failed: int
    quarantined: int
    unfinished_keys: tuple[str, ...]  # neither a record nor an outcome, in the plan's order
    planned_twice: tuple[str, ...]
    # A record wins: the failure is of an earlier attempt, and may be removed.
    overtaken_failures: tuple[str, ...]

    @property
    def unfinished(self) -> int:
        return len(self.unfinished_keys)

    @property
    def failed_fraction(self) -> float:
        """Of the plan; 0 where nothing was planned."""
        return (self.failed + self.quarantined) / self.planned if self.planned else 0.0

    @property
    def is_conserved(self) -> bool:
        """planned = recorded + failed + quarantined, each key once: what holds when a run has ended by itself."""
        return self.planned == self.recorded + self.failed + self.quarantined and not self.planned_twice

    def is_complete(self, max_failed_fraction: float = 0.0) -> bool:
        """Conserved, and no more failed than is tolerated."""
        return self.is_conserved and self.failed_fraction <= max_failed_fraction

    def problems(self, max_failed_fraction: float = 0.0) -> list[str]:
        """What keeps the plan from being complete, in sentences that name keys; empty where it is."""
        told = []
        if self.unfinished_keys:
            told.append(
                f"{self.unfinished} planned segments have neither record nor failure: {_few(self.unfinished_keys)}"
            )
        if self.planned_twice:
            told.append(f"{len(self.planned_twice)} keys are planned more than once: {_few(self.planned_twice)}")
        if self.failed_fraction > max_failed_fraction:
            told.append(
                f"{self.failed} segments failed and {self.quarantined} were quarantined: "
                f"{self.failed_fraction:.2%} of the plan, {max_failed_fraction:.2%} tolerated"
            )
        return told


def account(planned_keys: Iterable[str], recorded: AbstractSet[str], outcomes: Iterable[Outcome]) -> Account:
    """Holds a plan against records and failures. Those of other plans do not count."""
    keys = list(planned_keys)
    planned = dict.fromkeys(keys)
    kinds = {outcome.key: outcome.kind for outcome in outcomes if outcome.key in planned}
    ended = [kind for key, kind in kinds.items() if key not in recorded]
    return Account(
        planned=len(keys),
        recorded=sum(key in recorded for key in planned),
        failed=ended.count("failed"),
        quarantined=ended.count("quarantined"),
        unfinished_keys=tuple(key for key in planned if key not in recorded and key not in kinds),
        planned_twice=_twice(keys) if len(planned) < len(keys) else (),
        overtaken_failures=tuple(key for key in kinds if key in recorded),
    )


def check_rows(plan: pa.Table, folder: str | Path | UPath, recorded: AbstractSet[str]) -> list[str]:
    """What is wrong with the merged rows of a plan's records, in sentences that name keys; empty where nothing is.

    `folder` is a run's `labels`, `rollouts` or `frames`; which of them is seen by its columns. Every position that a
    record answers for has its row exactly once, and there is no other row. Raises OutputError where the folder holds
    no merged rows.
    """
    merged = _Merged.open(folder)
    segments = _Segments(plan, recorded)
    overlapping = [] if merged.kind == "rollouts" else segments.overlapping()
    if overlapping:
        return [
            f"{len(overlapping)} segments answer for positions that another one answers for, too: {_few(overlapping)}"
        ]
    match merged.kind:
        case "labels":
            return _compare(segments, *_label_slots(merged, segments))
        case "rollouts":
            return _compare(segments, *_rollout_slots(merged, segments))
        case _:
            return _check_evaluation(merged, segments)


def merged_run_id(folder: str | Path | UPath) -> str:
    """Whose rows a merged folder holds. Raises OutputError where it holds none."""
    return _Merged.open(folder).run_id


class _Segments:
    """A plan's segments, sorted by episode and position; each answers for positions `first..stop` of its episode."""

    def __init__(self, plan: pa.Table, recorded: AbstractSet[str]) -> None:
        columns = {name: plan[name].to_numpy() for name in ("episode_index", "label_start", "label_stop")}
        order = np.lexsort((columns["label_start"], columns["episode_index"]))
        keys = plan_keys(plan)
        self.keys = [keys[number] for number in order]
        self.episodes, self.first, self.stop = (column[order] for column in columns.values())
        self.is_recorded = np.fromiter((key in recorded for key in self.keys), dtype=bool, count=len(self.keys))
        names, self._place = np.unique(self.episodes, return_inverse=True)
        self._names = names
        # The last segment of an episode answers for its last frame as well, from which no action leads on.
        last_stop = np.zeros(len(names), dtype=np.int64)
        np.maximum.at(last_stop, self._place, self.stop)
        self.is_last = self.stop == last_stop[self._place]
        # Episode and position in one number that sorts like both.
        self._width = int(self.stop.max(initial=0)) + 2

    def overlapping(self) -> list[str]:
        same = self.episodes[1:] == self.episodes[:-1]
        return [self.keys[number + 1] for number in np.flatnonzero(same & (self.first[1:] < self.stop[:-1]))]

    def find(self, episodes: np.ndarray, positions: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """[N] number of the segment whose `first..stop` [S] holds each row's position; -1 where there is none."""
        if not len(self.keys):
            return np.full(len(episodes), -1)
        place = np.minimum(np.searchsorted(self._names, episodes), len(self._names) - 1)
        is_known = (self._names[place] == episodes) & (positions >= 0) & (positions < self._width)
        codes = place * self._width + np.where(is_known, positions, 0)
        starts = self._place * self._width + first
        found = np.searchsorted(starts, codes, side="right") - 1
        inside = is_known & (found >= 0) & (codes < (self._place * self._width + stop)[found])
        return np.where(inside, found, -1)


@dataclass(frozen=True)
class _Merged:
    """The files of a merged folder, and what their schema tells."""

    folder: Path | UPath
    files: Sequence[str]
    kind: str  # "labels", "rollouts" or "evaluation"
    stride: int  # frames of the dataset from one position to the next
    run_id: str

    @classmethod
    def open(cls, location: str | Path | UPath) -> _Merged:
        folder = open_path(location)
        files = sorted(name for name in list_files(folder) if name.endswith(".parquet") and not name.startswith("."))
        if not files:
            raise OutputError(f"{folder}: expected merged Parquet files, found none. Run the command again.")
        schema = _read(folder, files[0], lambda file: file.schema_arrow)
        kind = "evaluation" if "variant" in schema.names else "rollouts" if "video" in schema.names else "labels"
        return cls(folder, files, kind, *_stride_and_run(folder, schema))

    def columns(self, *names: str) -> list[np.ndarray]:
        """Whole columns of numbers, over all files."""
        return [column.to_numpy() for column in self.table(*names).columns]

    def table(self, *names: str) -> pa.Table:
        read = [_read(self.folder, name, lambda file: file.read(list(names), use_threads=False)) for name in self.files]
        return pa.concat_tables(read).replace_schema_metadata(None)


def _label_slots(merged: _Merged, segments: _Segments) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    episodes, frames = merged.columns("episode_index", "frame_index")
    positions = _positions(frames, merged.stride)
    first, stop = segments.first, segments.stop + segments.is_last
    return first, stop, segments.find(episodes, positions, first, stop), positions


def _rollout_slots(merged: _Merged, segments: _Segments) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A record is a video, whose name ends in the first digits of its key; a position is a frame of it."""
    table = merged.table("video", "video_frame")
    videos = table["video"].combine_chunks().dictionary_encode()
    videos = videos.combine_chunks() if isinstance(videos, pa.ChunkedArray) else videos
    number_of = {key[:16]: number for number, key in enumerate(segments.keys)}
    names = [str(name).rpartition("-")[2].removesuffix(".mp4") for name in videos.dictionary.to_pylist()]
    owners = np.array([number_of.get(name, -1) for name in names], dtype=np.int64)
    positions = table["video_frame"].to_numpy()
    found = owners[videos.indices.to_numpy()]
    stop = segments.stop + 1
    return np.zeros_like(stop), stop, np.where((positions >= 0) & (positions < stop[found]), found, -1), positions


def _check_evaluation(merged: _Merged, segments: _Segments) -> list[str]:
    """Each variant and sample by itself: it has a row for every frame that an action of the record leads to."""
    episodes, frames, samples = merged.columns("episode_index", "frame_index", "sample")
    variants = merged.table("variant")["variant"].to_numpy()
    positions = _positions(frames, merged.stride)
    first, stop = segments.first + 1, segments.stop + 1
    owners = segments.find(episodes, positions, first, stop)
    told = []
    for variant in sorted({*_WHOLE_VARIANTS, *variants.tolist()}):
        of_variant = variants == variant
        for sample in np.unique(samples[of_variant]).tolist() or [0]:
            chosen = of_variant & (samples == sample)
            lines = _compare(
                segments, first, stop, owners[chosen], positions[chosen], may_lack=variant not in _WHOLE_VARIANTS
            )
            told += [f"{variant}, sample {sample}: {line}" for line in lines]
    return told


def _compare(
    segments: _Segments,
    first: np.ndarray,
    stop: np.ndarray,
    owners: np.ndarray,
    positions: np.ndarray,
    *,
    may_lack: bool = False,
) -> list[str]:
    """Counts the rows of every position that a record answers for. `owners` [N] is -1 for a row that nobody wrote."""
    is_owned = (owners >= 0) & segments.is_recorded[owners] if len(segments.keys) else np.zeros(len(owners), dtype=bool)
    lengths = np.where(segments.is_recorded, np.maximum(stop - first, 0), 0)
    offsets = np.cumsum(lengths) - lengths
    slots = offsets[owners[is_owned]] + positions[is_owned] - first[owners[is_owned]]
    counts = np.bincount(slots, minlength=int(lengths.sum()))
    owner_of_slot = np.repeat(np.arange(len(lengths)), lengths)
    told = []
    for is_wrong, words in ((counts > 1, "have rows twice"), ((counts == 0) & (not may_lack), "lack rows")):
        if is_wrong.any():
            wrong = np.unique(owner_of_slot[is_wrong])
            keys = [segments.keys[number] for number in wrong]
            told.append(f"{len(wrong)} records {words} ({np.count_nonzero(is_wrong)} rows): {_few(keys)}")
    if strangers := int(np.count_nonzero(~is_owned)):
        unrecorded = [segments.keys[number] for number in np.unique(owners[~is_owned & (owners >= 0)])]
        of_whom = f"; some are of planned segments without a record: {_few(unrecorded)}" if unrecorded else ""
        told.append(f"{strangers} rows belong to no record of the plan{of_whom}")
    return told


def _positions(frames: np.ndarray, stride: int) -> np.ndarray:
    """[N] positions of frames of the dataset; -1 for a frame that is at none."""
    positions, rest = np.divmod(frames, stride)
    return np.where(rest == 0, positions, -1)


def _stride_and_run(folder: Path | UPath, schema: pa.Schema) -> tuple[int, str]:
    """What the manifest in a merged file says."""
    try:
        manifest = json.loads((schema.metadata or {})[b"manifest"])
        stride, run_id = manifest["recipe"]["frame_stride"], manifest["run_id"]
        if type(stride) is int and stride > 0:
            return stride, str(run_id)
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise OutputError(
        f"{folder}: expected files that carry their run's manifest, with its run_id and frame_stride; found none. Run "
        "the command again."
    )


def _read[ResultT](folder: Path | UPath, name: str, read: Callable[[pq.ParquetFile], ResultT]) -> ResultT:
    """What `read` takes from one file; of an object only what it needs is fetched."""
    path = folder / name

    def open_and_read() -> ResultT:
        opened = path.open("rb") if is_local(path) else path.fs.open(path.path, "rb", block_size=_BLOCK_BYTES)
        with opened as stream, pq.ParquetFile(stream) as file:
            return read(file)

    try:
        return with_retries(open_and_read, path)
    except (pa.ArrowException, OSError) as error:
        raise OutputError(
            f"{path}: expected merged rows as Parquet, found {type(error).__name__}: {error}. Run the command again."
        ) from error


def _twice(keys: Iterable[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    return tuple(dict.fromkeys(key for key in keys if key in seen or seen.add(key)))


def _few(keys: Sequence[str]) -> str:
    more = len(keys) - _KEYS_NAMED
    return ", ".join(keys[:_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")
