"""Small real datasets whose frames carry their number in their pixels, so a wrong one cannot pass for the right one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HEIGHT, WIDTH = 96, 128
NUM_BITS = 16
CAMERA_OFFSET = 20_000  # the second camera's frame ids, so that cameras cannot be mixed up either

CODEC_OPTIONS = {
    "libx264": {"crf": "23", "preset": "veryfast"},
    "libsvtav1": {"crf": "30", "preset": "12", "svtav1-params": "keyint=2"},
}


@dataclass(frozen=True)
class Made:
    """A dataset that was written: where, and which id the pixels of an episode's first frame carry."""

    root: Path
    lengths: tuple[int, ...]
    first_ids: tuple[int, ...]
    cameras: tuple[str, ...]
    fps: float

    def ids(self, episode: int, camera: str, indexes: Iterable[int]) -> list[int]:
        offset = CAMERA_OFFSET * self.cameras.index(camera)
        return [offset + self.first_ids[episode] + int(index) for index in indexes]


def draw(frame_id: int) -> np.ndarray:
    """uint8 [96, 128, 3]: two rows of eight black or white blocks, the bits of `frame_id`, above a noisy band."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(NUM_BITS):
        if frame_id >> bit & 1:
            picture[_block(bit, margin=0)] = 255
    noise = np.random.default_rng(frame_id).integers(0, 255, (4, 16, 3), dtype=np.uint8)
    picture[64:] = noise.repeat(8, 0).repeat(8, 1)
    return picture


def read_ids(frames_NHWC: np.ndarray) -> list[int]:
    """The ids that these frames carry."""
    return [_read_id(frame) for frame in frames_NHWC]


def _read_id(frame: np.ndarray) -> int:
    return sum(int(frame[_block(bit, margin=4)].mean() > 127) << bit for bit in range(NUM_BITS))


def _block(bit: int, margin: int) -> tuple[slice, slice]:
    row, column = divmod(bit, NUM_BITS // 2)
    return slice(row * 32 + margin, row * 32 + 32 - margin), slice(column * 16 + margin, column * 16 + 16 - margin)


def write_video(
    path: Path,
    ids: Sequence[int],
    *,
    fps: int = 15,
    codec: str = "libx264",
    gop: int = 12,
    options: dict[str, str] | None = None,
    skip: Sequence[int] = (),
) -> Path:
    """A video of these ids at a constant rate; positions in `skip` are left out, which leaves a gap in time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fast_start = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=fast_start) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = CODEC_OPTIONS.get(codec, {}) if options is None else options
        for position, frame_id in enumerate(ids):
            if position in skip:
                continue
            frame = av.VideoFrame.from_ndarray(draw(frame_id), format="rgb24")
            frame.pts = position
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    _leave_real_time()
    return path


def _leave_real_time() -> None:
    """SVT-AV1, called by root, makes the calling thread a real-time one for good, and all that it starts inherits that.

    Threads of a matrix product, which wait for each other by spinning, then keep each other off the cores for ever.
    """
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def packet_spans(path: Path) -> list[tuple[int, int]]:
    """(position, size) in the file of every packet, in decoding order."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]


def overwrite(path: Path, start: int, size: int) -> None:
    """Replace bytes of a file by noise."""
    raw = bytearray(path.read_bytes())
    raw[start : start + size] = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8).tobytes()
    path.write_bytes(raw)


def cut(path: Path, share: float) -> None:
    """Keep the first `share` of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edit_json(path: Path, **changes: object) -> None:
    """Change fields of a JSON file; a field set to None is removed."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def edit_table(path: Path, **columns: Sequence) -> None:
    """Replace columns of a Parquet file; `__` in a name stands for `/`."""
    table = pq.read_table(path)
    for name, values in columns.items():
        position = table.column_names.index(name.replace("__", "/"))
        table = table.set_column(position, table.schema.field(position).name, pa.array(values))
    pq.write_table(table, path)


def state(frame_ids: Sequence[int], width: int) -> np.ndarray:
    """float32 [T, width] that says which frame each row belongs to."""
    return np.asarray(frame_ids, np.float32)[:, None] + np.arange(width, dtype=np.float32) / 10


def _info(version: str, fps: float, cameras: Sequence[str], num_episodes: int) -> dict:
    numbers = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "action.gripper": {"dtype": "float32", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        "frame_index": {"dtype": "int64", "shape": [1], "names": None},
        "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    videos = {camera: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": None} for camera in cameras}
    return {
        "codebase_version": version,
        "fps": fps,
        "features": videos | numbers,
        "total_episodes": num_episodes,
        "chunks_size": 1000,
    }


def _rows(episode: int, ids: Sequence[int], fps: float) -> pa.Table:
    count = len(ids)
    return pa.table(
        {
            "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(state(ids, 3).ravel()), 3),
            "action": pa.array(state(ids, 2).tolist(), pa.list_(pa.float32())),
            "action.gripper": pa.array(state(ids, 1)[:, 0]),
            "timestamp": pa.array(np.arange(count, dtype=np.float32) / np.float32(fps)),
            "frame_index": pa.array(range(count), pa.int64()),
            "episode_index": pa.array([episode] * count, pa.int64()),
        }
    )


def make_v3(root: Path, lengths: Sequence[int], *, per_file: int, codec: str, fps: int = 15, gop: int = 2) -> Made:
    """LeRobot v3.0 with `per_file` episodes in every video and data file, and two cameras."""
    cameras = ("observation.images.front", "observation.images.wrist")
    made = Made(root, tuple(lengths), tuple(int(x) for x in np.cumsum([0, *lengths])[:-1]), cameras, fps)
    info = _info("v3.0", fps, cameras, len(lengths)) | {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    for file, first in enumerate(range(0, len(lengths), per_file)):
        _write_v3_file(made, file, range(first, min(first + per_file, len(lengths))), codec, gop)
    return made


def make_recorded_v3(root: Path, lengths: Sequence[int]) -> Path:
    """LeRobot v3.0 in one file, with the states that DROID's actions are made of."""
    from recorded_columns import droid_states, record

    made = make_v3(root, lengths, per_file=len(lengths), codec="libx264")
    record(made.root, droid_states(sum(lengths)))
    return made.root


def _write_v3_file(made: Made, file: int, episodes: range, codec: str, gop: int) -> None:
    name = f"chunk-000/file-{file:03d}"
    for camera in made.cameras:
        ids = [i for e in episodes for i in made.ids(e, camera, range(made.lengths[e]))]
        write_video(made.root / f"videos/{camera}/{name}.mp4", ids, fps=int(made.fps), codec=codec, gop=gop)
    rows = [_rows(e, made.ids(e, made.cameras[0], range(made.lengths[e])), made.fps) for e in episodes]
    pq.write_table(pa.concat_tables(rows), made.root / f"data/{name}.parquet", row_group_size=made.lengths[episodes[0]])
    pq.write_table(_v3_episodes(made, file, episodes), made.root / f"meta/episodes/{name}.parquet")


def _v3_episodes(made: Made, file: int, episodes: range) -> pa.Table:
    lengths = [made.lengths[e] for e in episodes]
    starts = np.cumsum([0, *lengths]) / made.fps
    columns = {
        "episode_index": list(episodes),
        "tasks": [[f"task of {e}", "valid"] if e else [] for e in episodes],
        "length": lengths,
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [file] * len(lengths),
        "stats/action/mean": [[0.0, 0.0]] * len(lengths),
    }
    for camera in made.cameras:
        columns |= {
            f"videos/{camera}/chunk_index": [0] * len(lengths),
            f"videos/{camera}/file_index": [file] * len(lengths),
            f"videos/{camera}/from_timestamp": starts[:-1].tolist(),
            f"videos/{camera}/to_timestamp": starts[1:].tolist(),
        }
    return pa.table(columns)


def make_v2(root: Path, lengths: Sequence[int], *, version: str = "v2.1", fps: int = 20) -> Made:
    """LeRobot v2.x, two episodes a chunk, one camera with files and one ("phantom") without."""
    camera = "observation.images.front"
    made = Made(root, tuple(lengths), tuple(int(x) for x in np.cumsum([0, *lengths])[:-1]), (camera,), fps)
    info = _info(version, fps, [camera, "observation.images.phantom"], len(lengths)) | {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "chunks_size": 2,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = [{"episode_index": e, "tasks": [f"task of {e}", "valid"], "length": n} for e, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for episode, length in enumerate(lengths):
        ids = made.ids(episode, camera, range(length))
        name = f"chunk-{episode // 2:03d}/{{}}episode_{episode:06d}"
        write_video(root / "videos" / (name.format(camera + "/") + ".mp4"), ids, fps=fps)
        data = root / "data" / (name.format("") + ".parquet")
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_rows(episode, ids, fps), data)
    return made
