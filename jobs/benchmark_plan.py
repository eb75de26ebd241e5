"""How long do planning and resuming take, and in how much memory? `uv run jobs/benchmark_plan.py --help`.

Writes what planning reads of a LeRobot v3.0 dataset with three cameras, plans all of it as a label run does, fills an
output folder with the records of 99 % of the plan, and asks what is left to do. Every measurement has a process of its
own, so that its peak memory is its own, too. Files are read from the page cache; disks and networks are not measured.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import batched, repeat
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import parse_config
from pipeline.config import IMAGE_SIZES
from pipeline.errors import ConfigError, PipelineError
from pipeline.printable import error_line

if TYPE_CHECKING:
    from pipeline.config import LabelConfig
    from pipeline.outputs.records import RecordStore
    from pipeline.run import Prepared

_FPS, _CHUNK, _WINDOWS = 15, 16, 12
_FRAMES = _WINDOWS * _CHUNK + 1
_CAMERAS = ("exterior_1_left", "exterior_2_left", "wrist_left")
_EPISODES_PER_FILE, _FILES_PER_CHUNK = 100, 1000  # the latter as LeRobot has it
_EPISODES_PER_METADATA_FILE = 10_000
# A digest reads 17 blocks of 64 KiB of a larger file: no more of a recording of any size. These hold a name and a hole.
_RECORDING_BYTES = 4 * 2**20
_RECORDS_PER_PACK = 65_536  # as compaction makes them
# Of a hundred segments: one is left to do, one has a loose record, all others are in packs.
_OUT_OF, _LEFT, _LOOSE = 100, 99, 49


@dataclass(frozen=True, kw_only=True)
class PlanningConfig:
    """What is measured."""

    # Of 193 frames each: twelve windows.
    episodes: int = 100_000
    repeats: int = 3
    # Resolution tier: it decides how many windows are a segment.
    image_size: int = 480
    output_dir: str = "outputs/benchmark_plan"

    def __post_init__(self) -> None:
        if self.episodes < 50 or self.repeats < 1:
            raise ConfigError(
                f"episodes must be at least 50 and repeats at least 1, found {self.episodes} and {self.repeats}."
            )
        if self.image_size not in IMAGE_SIZES:
            raise ConfigError(f"image_size must be one of {', '.join(map(str, IMAGE_SIZES))}, found {self.image_size}.")


def main() -> int:
    try:
        config = parse_config(PlanningConfig)
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="benchmark-plan-") as scratch:
        report = measure(config, Path(scratch), apart=run_apart, say=partial(print, flush=True))
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "plan.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def run_apart(work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def measure(
    config: PlanningConfig,
    scratch: Path,
    *,
    apart: Callable[[Callable[[], Any]], Any],
    say: Callable[[str], object],
) -> dict[str, Any]:
    """The report: medians, and each run of which they are, in seconds and bytes. `say` gets them in words."""
    write_dataset(scratch / "dataset", config.episodes)
    write_checkpoint(scratch / "checkpoint")
    work = scratch, config.image_size
    load_before = os.getloadavg()
    plans = [apart(partial(plan_once, *work)) for _ in range(config.repeats)]
    plan = _median(plans)
    say(_plan_lines(plan))
    records = apart(partial(fill_output, *work))
    resumes = [apart(partial(resume_once, *work)) for _ in range(config.repeats)]
    resume = _median(resumes)
    say(_resume_lines(resume, records))
    say(f"load      {load_before[0]:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")
    return {
        "config": asdict(config),
        "cores": os.cpu_count(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "records": records,
        "plan": plan,
        "resume": resume,
        "runs": {"plan": plans, "resume": resumes},
    }


def _plan_lines(plan: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in plan["seconds"].items())
    total_s = sum(plan["seconds"].values())
    return (
        f"plan      {plan['windows']:,} windows in {plan['segments']:,} segments: {total_s:.1f} s, "
        f"{plan['peak_bytes'] / 1e9:.2f} GB\n"
        f"          {parts}; {plan['cpu_s']:.1f} s of processor time"
    )


def _resume_lines(resume: dict[str, Any], records: dict[str, int]) -> str:
    look_s, prepare_s = (resume["seconds"][part] for part in ("look", "prepare"))
    return (
        f"resume    {resume['missing']:,} of {resume['segments']:,} segments are left: {look_s:.1f} s to see it, "
        f"{prepare_s:.1f} s with planning, {resume['peak_bytes'] / 1e9:.2f} GB\n"
        f"          of {records['packed']:,} records in {records['packs']} packs and {records['loose']:,} loose ones: "
        f"{resume['opened']} files opened, {resume['read_bytes'] / 1e6:.1f} MB read, {resume['listed']} folders listed"
    )


# --- what each process does ---


def plan_once(scratch: Path, image_size: int) -> dict[str, Any]:
    """`pipeline.labelling.prepare` step by step, and the plan's file."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "import"):
        from pipeline.cosmos3.config import checkpoint_fingerprint
        from pipeline.outputs.plans import write_plan
        from pipeline.plan import make_plan
        from pipeline.recipe import make_recipe
        from pipeline.run import open_input

        config = _label_config(scratch, image_size)
    with _timed(seconds, "open"):
        dataset = open_input(config)
    with _timed(seconds, "recipe"):
        fingerprint = checkpoint_fingerprint(Path(config.engine.checkpoint))
        recipe = make_recipe(config, dataset, fingerprint, mode="inverse_dynamics")
    with _timed(seconds, "plan"):
        plan = make_plan(dataset, recipe, max_segment_bytes=config.max_segment_mib * 1024**2)
    with _timed(seconds, "write"):
        write_plan(scratch / "planned", recipe.run_id, plan)
    return {
        "seconds": seconds,
        "cpu_s": time.process_time(),
        "peak_bytes": _peak_bytes(),
        "episodes": plan.num_episodes,
        "segments": len(plan.segments),
        "windows": plan.num_windows,
    }


def fill_output(scratch: Path, image_size: int) -> dict[str, int]:
    """Records for all but one of a hundred planned segments: rows as a label run writes them, the same ones in each."""
    from pipeline.labelling import prepare
    from pipeline.outputs.plans import plan_keys, read_plan

    prepared = prepare(_label_config(scratch, image_size, episodes=(0,)))
    table, store = _record(prepared), prepared.store
    keys = plan_keys(read_plan(scratch / "planned", prepared.recipe.run_id))
    loose = [key for number, key in enumerate(keys) if number % _OUT_OF == _LOOSE]
    packed = [key for number, key in enumerate(keys) if number % _OUT_OF not in (_LOOSE, _LEFT)]
    for key in loose:
        store.write(key, table)
    num_packs = _write_packs(store, packed, table)
    return {"packed": len(packed), "loose": len(loose), "packs": num_packs}


def resume_once(scratch: Path, image_size: int) -> dict[str, Any]:
    """`prepare` as of a run that is started again, and by itself the look at what there is."""
    from pipeline.labelling import prepare

    seconds: dict[str, float] = {}
    config = _label_config(scratch, image_size)
    with _timed(seconds, "prepare"):
        prepared = prepare(config)
    before = _read_bytes()
    with watch_files(Path(config.output_dir)) as touched, _timed(seconds, "look"):
        missing = prepared.left_to_do(prepared.store.keys())
    assert missing == prepared.missing, "nobody has written in between"
    return {
        "seconds": seconds,
        "cpu_s": time.process_time(),
        "peak_bytes": _peak_bytes(),
        "segments": len(prepared.plan.segments),
        "missing": len(missing),
        "opened": touched["open"],
        "listed": touched["os.scandir"] + touched["os.listdir"],
        "read_bytes": _read_bytes() - before,
    }


@contextlib.contextmanager
def watch_files(folder: Path) -> Iterator[dict[str, int]]:
    """How often files in or below `folder` were opened and folders listed, by the interpreter's audit event."""
    touched = {"open": 0, "os.scandir": 0, "os.listdir": 0}
    place, is_watching = str(folder), True

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if is_watching and event in touched and str(arguments[0]).startswith(place):
            touched[event] += 1

    sys.addaudithook(hear)  # for good: hooks cannot be taken off
    try:
        yield touched
    finally:
        is_watching = False


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started


def _peak_bytes() -> int:
    """Of this process alone: `ru_maxrss` begins with what the process held that started it."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def _read_bytes() -> int:
    """What this process has read so far, also from the page cache and by libraries that tell no interpreter."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def _median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts are the same in all runs, and stay whole."""
    return {
        name: _median([run[name] for run in runs])
        if isinstance(value, dict)
        else (statistics.median if isinstance(value, float) else statistics.median_low)([run[name] for run in runs])
        for name, value in runs[0].items()
    }


# --- what they work on ---


def _label_config(scratch: Path, image_size: int, episodes: tuple[int, ...] = ()) -> LabelConfig:
    from pipeline.config import DatasetConfig, EngineConfig, LabelConfig

    return LabelConfig(
        dataset=DatasetConfig(root=str(scratch / "dataset"), cameras=tuple(map(_feature, _CAMERAS)), episodes=episodes),
        engine=EngineConfig(checkpoint=str(scratch / "checkpoint")),
        action_normalization="none",
        image_size=image_size,
        output_dir=str(scratch / "out"),
        dry_run=True,  # no weights are looked for
    )


def write_checkpoint(folder: Path) -> None:
    """Something to take a fingerprint of."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text("{}")


def write_dataset(root: Path, num_episodes: int) -> None:
    """Metadata of as many episodes, and files of different content where it says that recordings are."""
    import pyarrow.parquet as pq

    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(_info(num_episodes)))
    for number, episodes in enumerate(batched(range(num_episodes), _EPISODES_PER_METADATA_FILE)):
        path = root / "meta" / "episodes" / "chunk-000" / f"file-{number:03d}.parquet"
        pq.write_table(_episodes_table(episodes), path)
    for number in range(ceil(num_episodes / _EPISODES_PER_FILE)):
        chunk, file = divmod(number, _FILES_PER_CHUNK)
        place = f"chunk-{chunk:03d}/file-{file:03d}"
        names = [f"data/{place}.parquet", *(f"videos/{_feature(camera)}/{place}.mp4" for camera in _CAMERAS)]
        for name in names:
            _write_recording(root / name, name)


def _write_recording(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content.encode())
        file.truncate(_RECORDING_BYTES)


def _feature(camera: str) -> str:
    return f"observation.images.{camera}"


def _info(num_episodes: int) -> dict[str, Any]:
    video = {"dtype": "video", "shape": [180, 320, 3], "names": ["height", "width", "channels"]}
    state = {"dtype": "float32", "shape": [7], "names": None}
    return {
        "codebase_version": "v3.0",
        "fps": _FPS,
        "total_episodes": num_episodes,
        "total_frames": num_episodes * _FRAMES,
        "chunks_size": _FILES_PER_CHUNK,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {_feature(camera): video for camera in _CAMERAS} | {"observation.state": state},
    }


def _episodes_table(episodes: Sequence[int]) -> Any:
    import numpy as np
    import pyarrow as pa

    numbers = np.asarray(episodes)
    files, places = np.divmod(numbers, _EPISODES_PER_FILE)
    chunks, files = np.divmod(files, _FILES_PER_CHUNK)
    columns = {
        "episode_index": numbers,
        "tasks": [[f"Put object {number % 97} into container {number % 89}."] for number in episodes],
        "length": np.full(len(numbers), _FRAMES),
        "data/chunk_index": chunks,
        "data/file_index": files,
    }
    for camera in map(_feature, _CAMERAS):
        columns |= {
            f"videos/{camera}/chunk_index": chunks,
            f"videos/{camera}/file_index": files,
            f"videos/{camera}/from_timestamp": places * _FRAMES / _FPS,
            f"videos/{camera}/to_timestamp": (places + 1) * _FRAMES / _FPS,
        }
    return pa.table(columns)


def _record(prepared: Prepared) -> Any:
    """The labels of the plan's first segment, all zero."""
    import numpy as np

    from pipeline.outputs.labels import label_table

    segment, recipe = prepared.plan.segments[0], prepared.recipe
    actions = np.zeros((len(segment.window_starts), recipe.action_chunk, recipe.raw_action_dim), dtype=np.float32)
    times_s = np.arange(segment.window_starts[0], segment.label_stop + 1) / _FPS
    row = segment.to_row() | {"timestamps": times_s, "action": actions, "action_normalized": actions}
    return label_table(row, recipe)


def _write_packs(store: RecordStore, keys: Sequence[str], table: Any) -> int:
    """Compaction would first need a file for each record."""
    from pipeline.outputs.packs import write_pack

    batches = list(batched(keys, _RECORDS_PER_PACK))
    for number, batch in enumerate(batches):
        write_pack(store.pack_path(f"{number:032x}"), table.schema, zip(batch, repeat(table)))
    return len(batches)


if __name__ == "__main__":
    sys.exit(main())
