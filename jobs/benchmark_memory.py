"""Does memory grow with the number of episodes? `uv run jobs/benchmark_memory.py --help`.

Sends the same short clip under many names down the real road, once and then four times as many, with a tiny random
checkpoint, and follows what each process holds for itself (what it shares with Ray's object store is the store's).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.command_line import parse_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.printable import error_line

_FPS, _HEIGHT_PX, _WIDTH_PX, _CHUNK = 15, 64, 96, 16


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What is measured."""

    # label: pseudo-actions; rollout: videos, their rows and the LeRobot dataset.
    work: str = "rollout"
    # Episodes of the smaller run; the larger one has four times as many.
    episodes: int = 50
    output_dir: str = "outputs/benchmark_memory"

    def __post_init__(self) -> None:
        if self.work not in ("label", "rollout") or self.episodes < 5:
            raise ConfigError(
                f"work must be label or rollout and episodes at least 5, found {self.work!r} and {self.episodes}."
            )


def main() -> int:
    try:
        config = parse_config(MemoryConfig)
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        runs = [measure(Path(scratch) / str(factor), config.work, factor * config.episodes) for factor in (1, 4)]
    for run in runs:
        print(_line(f"{run['episodes']} episodes, end against first fifth", run["late_bytes"], run["early_bytes"]))
    print(
        _line(
            f"{runs[1]['episodes']} against {runs[0]['episodes']} episodes", *(run["late_bytes"] for run in runs[::-1])
        )
    )
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"memory_{config.work}.json").write_text(json.dumps({"config": asdict(config), "runs": runs}, indent=2))
    return 0


def measure(scratch: Path, work: str, num_episodes: int) -> dict:
    """Bytes that driver and stages hold for themselves, after the first fifth of each one's time and at the end."""
    resident: dict[str, list[int]] = defaultdict(list)
    run, is_done = _run_of(scratch, work, num_episodes), threading.Event()
    watcher = threading.Thread(target=_watch, args=(resident, is_done))
    watcher.start()
    try:
        run()
    finally:
        is_done.set()
        watcher.join()
    return {
        "episodes": num_episodes,
        "early_bytes": {name: values[len(values) // 5] for name, values in resident.items()},
        "late_bytes": {name: values[-1] for name, values in resident.items()},
    }


def _watch(resident: dict[str, list[int]], is_done: threading.Event) -> None:
    """Twice a second, and once more when all is merged."""
    import psutil

    own = psutil.Process()
    while True:
        was_done = is_done.wait(0.5)
        resident["driver"].append(own.memory_full_info().uss)
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                # A stage's process carries its name from when it is ready; what it still imports then is no growth.
                if stage := re.search(r"Map\((\w+)\)(?!.*__init__)", " ".join(child.cmdline())):
                    resident[stage[1]].append(child.memory_full_info().uss)
        if was_done:
            return


def _run_of(scratch: Path, work: str, num_episodes: int) -> Callable[[], object]:
    from pipeline.config import DatasetConfig, EngineConfig, LabelConfig, RolloutConfig
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    scratch.mkdir(parents=True)
    shared = {
        "dataset": DatasetConfig(root=str(_write_videos(scratch / "videos", num_episodes)), cameras=("video",)),
        "engine": EngineConfig(checkpoint=str(write_tiny_checkpoint(scratch / "tiny")), num_inference_steps=1),
        "action_normalization": "none",
        "image_size": 256,
        "output_dir": str(scratch / "out"),
    }
    if work == "label":
        from pipeline.labelling import label, prepare

        prepared = prepare(LabelConfig(**shared))
        return lambda: label(prepared)
    from pipeline.rollouts import prepare_forward, roll_out

    prepared = prepare_forward(RolloutConfig(**shared, actions=str(_write_actions(scratch / "actions.json"))))
    return lambda: roll_out(prepared)


def _write_actions(path: Path) -> Path:
    import numpy as np

    from pipeline.action_files import write_action_file

    write_action_file(path, np.random.default_rng(0).uniform(-1, 1, (_CHUNK, 10)).astype(np.float32))
    return path


def _write_videos(folder: Path, count: int) -> Path:
    """`count` copies of one short clip under names of their own."""
    import numpy as np

    from pipeline.outputs.videos import write_video

    folder.mkdir()
    first = folder / "clip_00000.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (_CHUNK + 1, _HEIGHT_PX, _WIDTH_PX, 3), dtype=np.uint8)
    write_video(first, [frames], fps=_FPS)
    for index in range(1, count):
        os.link(first, folder / f"clip_{index:05d}.mp4")
    return folder


def _line(what: str, late: dict[str, int], early: dict[str, int]) -> str:
    both = [name for name in late if name in early]
    grown = ", ".join(f"{name} {late[name] / 2**20:.0f} MiB (x{late[name] / early[name]:.2f})" for name in both)
    return f"{what}: {grown}"


if __name__ == "__main__":
    sys.exit(main())
