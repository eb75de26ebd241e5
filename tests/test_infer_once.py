"""The single-request job as a user types it, and how it reads a command line."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell_environment import SHELL_ENVIRONMENT

from pipeline.action_files import read_action_file
from pipeline.errors import ConfigError
from pipeline.single_request import SingleRequest

JOB = Path(__file__).resolve().parents[1] / "jobs" / "infer_once.py"


def run(*flags: str, folder: Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *python, str(JOB), *flags],
        cwd=folder,
        env=SHELL_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.slow
def test_a_request_leaves_its_files_and_says_how_to_go_on(tiny_checkpoint, picture, tmp_path):
    done = run(
        *("--checkpoint", str(tiny_checkpoint), "--image", picture.name, "--prompt", "Push the cube.", "--seed=7"),
        *("--image_size", "256", "--action-chunk-size", "8", "--num_inference_steps", "2", "--device", "cpu"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "infer_once"
    names = ["picture.mp4", "picture_action.json", "picture_last_frame.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert read_action_file(folder / "picture_action.json", raw_action_dim=10).shape == (8, 10)
    assert "policy of droid_lerobot" in done.stdout
    assert "--image outputs/infer_once/picture_last_frame.png --seed 8" in done.stdout
    assert done.stderr == ""


def test_a_bad_action_file_is_answered_before_torch_is_imported(picture, tmp_path):
    (tmp_path / "actions.json").write_text('{"data": [[0.1, 0.2, 0.3]]}')
    done = run(
        *("--checkpoint", "nowhere/near", "--image", picture.name),
        *("--mode", "forward_dynamics", "--action-file", "actions.json"),
        folder=tmp_path,
        python=("-X", "importtime"),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "ActionFileError: actions.json: expected actions of width 10, found 3."
    )
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "pipeline.single" in imported
    assert not imported & {"torch", "transformers", "diffusers", "ray"}
    assert not (tmp_path / "outputs").exists()


@pytest.fixture(scope="module")
def parse():
    return runpy.run_path(str(JOB))["parse"]


def test_no_arguments_are_the_demo_with_all_defaults(parse):
    assert parse([]) == SingleRequest()
    assert parse([]).is_demo


ALL_FLAGS = {
    "checkpoint": ("ckpt", "ckpt"),
    "video": ("v.mp4", "v.mp4"),
    "prompt": ("a task with_underscores", "a task with_underscores"),
    "domain_name": ("bridge_orig_lerobot", "bridge_orig_lerobot"),
    "mode": ("forward_dynamics", "forward_dynamics"),
    "action_file": ("a_b.json", "a_b.json"),
    "condition_frames": ("0 1", (0, 1)),
    "raw_action_dim": ("7", 7),
    "view_point": ("wrist_view", "wrist_view"),
    "fps": ("7.5", 7.5),
    "image_size": ("256", 256),
    "action_chunk_size": ("8", 8),
    "prompt_format": ("plain", "plain"),
    "action_normalization": ("minmax", "minmax"),
    "action_stats_path": ("s.json", "s.json"),
    "num_inference_steps": ("4", 4),
    "guidance_scale": ("-1.5", -1.5),
    "flow_shift": ("5", 5.0),
    "use_karras_sigmas": ("auto", None),
    "seed": ("3", 3),
    "device": ("cpu", "cpu"),
    "dtype": ("float32", "float32"),
    "output_dir": ("runs", "runs"),
    "out": ("x", "x"),
}


@pytest.mark.parametrize("spelling", ["--{}", "--{}="], ids=["apart", "joined"])
@pytest.mark.parametrize("mark", ["_", "-"])
def test_every_flag_reaches_its_setting_with_dashes_or_underscores(parse, spelling, mark):
    arguments = []
    for name, (typed, _) in ALL_FLAGS.items():
        flag = spelling.format(name.replace("_", mark))
        arguments += [flag + typed] if flag.endswith("=") else [flag, typed]
    settings = parse(arguments)
    assert settings == SingleRequest(**{name: value for name, (_, value) in ALL_FLAGS.items()})
    assert {*ALL_FLAGS, "image"} == set(vars(settings)), "a setting without a flag, or without this test"


@pytest.mark.parametrize("typed", [["0", "1"], ["0 1"], ["0,1"]])
def test_condition_frames_may_be_typed_in_any_way(parse, typed):
    arguments = ["--checkpoint", "c", "--video", "v.mp4", "--condition-frames", *typed]
    assert parse(arguments).condition_frames == (0, 1)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("auto", None)])
def test_karras_is_yes_no_or_the_checkpoints(parse, text, value):
    assert parse(["--use-karras-sigmas", text]).use_karras_sigmas is value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--view-pont", "ego_view"], "Unknown argument '--view-pont'. Did you mean '--view-point'"),
        (["--check", "x"], "Unknown argument '--check'"),
        (["picture.png"], "Unknown argument 'picture.png'"),
        (["--seed", "many"], "argument --seed: invalid int value"),
        (["--image"], "argument --image: expected one argument"),
        (["--condition-frames", "0 x"], "invalid latent_frame_indexes value: '0 x'"),
        (["--use-karras-sigmas", "yes"], "invalid auto_true_or_false value: 'yes'"),
        (["--mode", "forward_dynamics"], "needs action_file"),
        (["--image", "a.png"], "checkpoint is not set"),
    ],
)
def test_a_mistyped_command_line_is_a_config_error(parse, arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(arguments)
