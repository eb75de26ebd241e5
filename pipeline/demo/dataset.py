"""The demo's robot videos as LeRobot v3.0 datasets, rendered on the spot. Owns what is in the files.

What moves is known exactly (`choreography`), so the recorded actions are the truth; `tabletop` draws it. May import
those, `views` and `outputs.quiet`; lerobot only while writing, because importing it takes long.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.choreography import Recording, true_actions
from pipeline.demo.scripted import play_demo
from pipeline.demo.tabletop import DEMO_CAMERA_KEYS, DEMO_HEIGHT_PX, DEMO_WIDTH_PX, TIP_M, Renderer
from pipeline.demo.world import play_world
from pipeline.errors import DatasetError
from pipeline.outputs.quiet import quiet_lerobot
from pipeline.views import compose

DEMO_FPS = 15
_VIDEO_FILE_MB = 5
SCENES_NAME = "scenes.json"
_MANY_EPISODES, _EPISODES_AHEAD = 20, 4
_DEMO_VERSION = 4  # part of demo.json: raise it when the same seed would give other frames


def render_frames(recording: Recording, frames: Sequence[int]) -> list[dict[str, NDArray[np.uint8]]]:
    """Every camera's picture of each of these frames: {key: [96, 160, 3]}."""
    renderer = Renderer(recording.scene.solids, recording.scene.look)
    return [
        renderer.views(
            recording.hand_poses[index],
            {name: poses[index] for name, poses in recording.object_poses.items()},
            float(recording.gripper_position[index]),
        )
        for index in frames
    ]


def render_composed(recording: Recording, frames: Sequence[int]) -> NDArray[np.uint8]:
    """The same as the model sees them: all cameras in one picture, [T, 144, 160, 3]."""
    views = render_frames(recording, frames)
    return compose([np.stack([view[camera] for view in views]) for camera in DEMO_CAMERA_KEYS], "concat_view")


def write_demo_dataset(root: Path, *, seed: int = 0) -> Path:
    """Renders the demo's five episodes into `root`, a LeRobot v3.0 dataset, and returns it; at once if it is there.

    Three 96x160 cameras at 15 fps; `observation.state.cartesian_position` [6] (m; extrinsic xyz, rad) and
    `.gripper_position` [1] (0 open, 1 closed); `action` [10], DROID's, of which an episode's last row stands still; and
    `action.gripper_position` [1], the command. Everything follows from `seed`. Takes some seconds, touches no network,
    and `root` appears only when it is complete. Raises DatasetError when `root` holds anything else.
    """
    return _write_once(root, {"demo_version": _DEMO_VERSION, "seed": seed}, lambda: play_demo(seed))


def write_world_dataset(root: Path, *, seed: int, num_episodes: int, held_out: bool = False) -> Path:
    """The same with `num_episodes` episodes of ever other scenes and tasks, all held out from the others or none."""
    identity = {"demo_version": _DEMO_VERSION, "seed": seed, "num_episodes": num_episodes, "held_out": held_out}
    return _write_once(root, identity, lambda: play_world(seed, num_episodes, held_out=held_out))


def _write_once(root: Path, identity: dict[str, int | bool], play: Callable[[], list[Recording]]) -> Path:
    root = Path(root).absolute()
    if _holds(root, identity):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        unfinished = Path(folder) / root.name
        recordings = play()
        _write_episodes(unfinished, recordings)
        (unfinished / SCENES_NAME).write_text(json.dumps(_scenes(recordings), indent=1))
        (unfinished / "demo.json").write_text(json.dumps(identity))
        try:
            unfinished.rename(root)
        except OSError:  # somebody else was quicker: theirs is as good, if it is this demo
            if not _holds(root, identity):
                raise
    return root


def _holds(root: Path, identity: dict[str, int | bool]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / "demo.json"
    found = marker.read_text() if marker.is_file() else "something else"
    if found != json.dumps(identity):
        raise DatasetError(
            f"{root} should be free or hold the demo dataset {identity}, but holds {found}. "
            "Remove that folder or name another one."
        )
    return True


def _scenes(recordings: Sequence[Recording]) -> dict[str, Any]:
    """What `evaluation.scenes` reads: where everything is in each first frame."""

    def position(pose44: NDArray[np.floating]) -> list[float]:
        return pose44[:3, 3].round(6).tolist()

    episodes = [
        {
            "episode_index": index,
            "target": recording.target,
            "objects_m": {name: position(poses[0]) for name, poses in recording.object_poses.items()},
        }
        for index, recording in enumerate(recordings)
    ]
    return {"tool_m": [0.0, 0.0, TIP_M], "episodes": episodes}


def _features() -> dict[str, dict]:
    def numbers(*names: str) -> dict:
        return {"dtype": "float32", "shape": (len(names),), "names": list(names)}

    shape = (DEMO_HEIGHT_PX, DEMO_WIDTH_PX, 3)
    video = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
    return {
        **{key: dict(video) for key in DEMO_CAMERA_KEYS},
        "observation.state.cartesian_position": numbers("x", "y", "z", "roll", "pitch", "yaw"),
        "observation.state.gripper_position": numbers("gripper"),
        "action": numbers("dx", "dy", "dz", "r00", "r10", "r20", "r01", "r11", "r21", "gripper"),
        "action.gripper_position": numbers("gripper"),
    }


def _render_all(recordings: Sequence[Recording]) -> Iterator[list[dict[str, NDArray[np.uint8]]]]:
    """Every frame of each. Many are drawn in another process, a few episodes ahead of the encoder."""
    if len(recordings) < _MANY_EPISODES:
        yield from (render_frames(recording, range(recording.num_frames)) for recording in recordings)
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead: deque[Future] = deque()
        for recording in recordings:
            ahead.append(pool.submit(render_frames, recording, range(recording.num_frames)))
            if len(ahead) > _EPISODES_AHEAD:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)


def _write_episodes(root: Path, recordings: Sequence[Recording]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    longest = max(recording.num_frames for recording in recordings)
    with quiet_lerobot():
        dataset = LeRobotDataset.create(
            "demo/tabletop",
            fps=DEMO_FPS,
            features=_features(),
            root=root,
            robot_type="demo_arm",
            use_videos=True,
            video_backend="pyav",  # named, so that lerobot does not try, and report, the others
            streaming_encoding=True,
            # A full queue drops frames, so it holds an episode.
            encoder_queue_maxsize=longest + 1,
            # Each episode is appended to its file by writing that anew.
            video_files_size_in_mb=_VIDEO_FILE_MB,
        )
        for recording, views in zip(recordings, _render_all(recordings), strict=True):
            for index, action in enumerate(true_actions(recording)):
                state = {
                    "observation.state.cartesian_position": recording.xyz_euler[index],
                    "observation.state.gripper_position": recording.gripper_position[index : index + 1],
                    "action": action,
                    "action.gripper_position": recording.gripper_command[index : index + 1],
                }
                dataset.add_frame({**views[index], **state, "task": recording.task})
            dataset.save_episode()
        dataset.finalize()
