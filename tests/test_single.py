"""One request from files to files: what is written is what the engine says, and what cannot be right is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.action_files import read_action_file, write_action_file
from pipeline.cosmos3.conditioning import MODES as ENGINE_MODES
from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.datasets.video import probe_video, read_video_frames
from pipeline.errors import (
    ActionFileError,
    ActionStatsError,
    CheckpointError,
    ConfigError,
    PipelineError,
    ResultError,
    VideoError,
)
from pipeline.outputs.videos import write_video
from pipeline.single import answer, load_engine, prepare, run, write
from pipeline.single_request import MODES, SingleRequest

CHUNK, WIDTH, FPS = 8, 10, 15.0
TASK = "Put the marker in the pot."


def draw_clip(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [T, H, W, 3]: a bright square that moves over a ramp."""
    ramp = np.linspace(40, 200, height * width).reshape(height, width)
    clip = np.repeat(np.repeat(ramp[None, :, :, None], 3, axis=3), num_frames, axis=0)
    for frame in range(num_frames):
        clip[frame, 8:24, frame : frame + 16] = (250, 60, 10)
    return clip.astype(np.uint8)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """picture.png, and videos named by their length: 1, 2, 5, 9 and 30 frames at 15 per second."""
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(draw_clip(1)[0]).save(folder / "picture.png")
    for num_frames in (1, 2, 5, 9, 30):
        write_video(folder / f"{num_frames}.mp4", [draw_clip(num_frames)], fps=FPS)
    return folder


@pytest.fixture
def request_for(tiny_checkpoint, media, tmp_path):
    """Settings of a small request; `image` and `video` are names in the media folder."""

    def build(**changes) -> SingleRequest:
        for kind in ("image", "video"):
            if changes.get(kind):
                changes[kind] = str(media / changes[kind])
        if "video" not in changes:
            changes.setdefault("image", str(media / "picture.png"))
        small = {"image_size": 256, "action_chunk_size": CHUNK, "num_inference_steps": 2, "device": "cpu", "out": "it"}
        fields = {"checkpoint": str(tiny_checkpoint), "prompt": TASK, "output_dir": str(tmp_path / "out")}
        return SingleRequest(**(small | fields | changes))

    return build


@pytest.fixture(scope="module")
def engine(tiny_checkpoint, media):
    """What a policy request loads; all requests of these tests have the same schedule."""
    settings = {"image": str(media / "picture.png"), "image_size": 256, "device": "cpu"}
    return load_engine(prepare(SingleRequest(checkpoint=str(tiny_checkpoint), **settings)))


def answered(settings: SingleRequest, engine) -> dict[str, Path]:
    prepared = prepare(settings)
    return write(prepared, answer(prepared, engine))


def asked_directly(tiny_checkpoint, engine, images, *, mode: str, action=None, **changes):
    """The same request by way of processor and engine alone."""
    settings = {"view_point": "third_person_view", "image_size": 256, "action_chunk_size": CHUNK, "fps": FPS}
    processor = Cosmos3PolicyProcessor(tiny_checkpoint, mode=mode, **(settings | changes))
    inputs = processor.preprocess({"images": images, "task": TASK, "cond_action": action})
    makes_video = mode != "inverse_dynamics"
    request = processor.to_request(inputs, num_inference_steps=2, seed=42, decode_video=makes_video)
    return engine.step([request])[0]


def as_bytes(pixels_CTHW: torch.Tensor) -> np.ndarray:
    return (pixels_CTHW * 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


def brightness(frames: np.ndarray) -> np.ndarray:
    """What a codec keeps: colour is stored at half the size, which noise from random weights does not survive."""
    return frames @ np.array([0.299, 0.587, 0.114])


def write_actions(path: Path, actions: np.ndarray) -> str:
    write_action_file(path, actions)
    return str(path)


def test_the_modes_are_the_engines():
    assert MODES == ENGINE_MODES


# ---------------------------------------------------------------------------------------------------- the three modes


def test_policy_writes_what_the_engine_says(request_for, tiny_checkpoint, media):
    """By the way that the job goes: it loads the checkpoint itself."""
    prepared = prepare(request_for())
    outputs = run(prepared)
    assert {kind: path.name for kind, path in outputs.items()} == {
        "action": "it_action.json",
        "video": "it.mp4",
        "last_frame": "it_last_frame.png",
    }
    expected = asked_directly(tiny_checkpoint, load_engine(prepared), media / "picture.png", mode="policy")
    actions = read_action_file(outputs["action"], raw_action_dim=WIDTH)
    np.testing.assert_array_equal(actions, expected.action.numpy())
    frames = as_bytes(expected.pixels)
    with Image.open(outputs["last_frame"]) as image:
        np.testing.assert_array_equal(np.asarray(image), frames[-1])
    header = probe_video(outputs["video"])
    assert (header.num_frames, header.fps, header.height, header.width) == (CHUNK + 1, FPS, 48, 64)
    decoded = read_video_frames(outputs["video"], np.arange(CHUNK + 1) / FPS, tolerance_s=0.01)
    assert np.abs(brightness(decoded) - brightness(frames)).mean() < 4, "the same video, but for the codec"
    assert np.abs(brightness(decoded) - brightness(frames[::-1])).mean() > 8, "else this comparison sees nothing"


def test_the_action_file_says_what_its_numbers_are(request_for, engine):
    content = json.loads(answered(request_for(seed=7), engine)["action"].read_text())
    assert content["shape"] == [CHUNK, WIDTH]
    assert (content["names"][0], content["names"][-1], content["units"]) == ("dx_m", "gripper_open", "model scale")
    assert (content["mode"], content["domain_name"], content["fps"], content["seed"]) == (
        "policy",
        "droid_lerobot",
        FPS,
        7,
    )


def test_inverse_dynamics_labels_the_first_frames_of_a_video(request_for, engine, tiny_checkpoint, media):
    settings = request_for(video="30.mp4", mode="inverse_dynamics")
    assert set(settings.outputs) == {"action"}, "there is no video to write"
    actions = read_action_file(answered(settings, engine)["action"], raw_action_dim=WIDTH)
    frames = read_video_frames(media / "30.mp4", np.arange(CHUNK + 1) / FPS, tolerance_s=0.01)
    expected = asked_directly(tiny_checkpoint, engine, frames, mode="inverse_dynamics")
    np.testing.assert_array_equal(actions, expected.action.numpy())
    assert prepare(settings).request.conditioning.clean_frames == (0, 1, 2)
    assert sorted(path.name for path in Path(settings.output_dir).iterdir()) == ["it_action.json"]


@pytest.mark.parametrize("num_frames", [2, 5])
def test_padding_is_never_a_label(request_for, engine, tiny_checkpoint, media, num_frames):
    settings = request_for(video=f"{num_frames}.mp4", mode="inverse_dynamics")
    prepared = prepare(settings)
    assert f"only the {num_frames - 1} actions between real frames are written" in prepared.describe()
    actions = read_action_file(answered(settings, engine)["action"], raw_action_dim=WIDTH)
    frames = read_video_frames(media / f"{num_frames}.mp4", np.arange(num_frames) / FPS, tolerance_s=0.01)
    expected = asked_directly(tiny_checkpoint, engine, frames, mode="inverse_dynamics").action.numpy()
    np.testing.assert_array_equal(actions, expected[: num_frames - 1])


def test_actions_that_policy_wrote_can_be_followed(request_for, engine, tiny_checkpoint, media):
    proposed = answered(request_for(out="proposed"), engine)["action"]
    settings = request_for(mode="forward_dynamics", action_file=str(proposed), out="followed")
    outputs = answered(settings, engine)
    given = read_action_file(proposed, raw_action_dim=WIDTH)
    np.testing.assert_array_equal(read_action_file(outputs["action"], raw_action_dim=WIDTH), given)
    expected = asked_directly(tiny_checkpoint, engine, media / "picture.png", mode="forward_dynamics", action=given)
    with Image.open(outputs["last_frame"]) as image:
        np.testing.assert_array_equal(np.asarray(image), as_bytes(expected.pixels)[-1])
    other = request_for(mode="forward_dynamics", action_file=write_actions(proposed, given + 1), out="other")
    assert answered(other, engine)["last_frame"].read_bytes() != outputs["last_frame"].read_bytes()


@pytest.mark.parametrize(("num_rows", "said"), [(3, "last one is repeated up to 8"), (8, ""), (20, "first 8 are used")])
def test_given_actions_are_written_as_they_were_used(request_for, tmp_path, num_rows, said):
    given = np.random.default_rng(0).uniform(-1, 1, (num_rows, WIDTH)).astype(np.float32)
    path = write_actions(tmp_path / "given.json", given)
    prepared = prepare(request_for(mode="forward_dynamics", action_file=path))
    expected = given[[min(row, num_rows - 1) for row in range(CHUNK)]]
    np.testing.assert_array_equal(prepared.given_actions, expected)
    np.testing.assert_array_equal(prepared.request.cond_action[:, :WIDTH].numpy(), expected)
    assert (said in prepared.describe()) if said else ("given.json" not in prepared.describe())


def test_statistics_make_units_of_the_models_scale_and_back(request_for, engine, tiny_checkpoint, media, tmp_path):
    (tmp_path / "stats.json").write_text(json.dumps({"q01": [0.0] * WIDTH, "q99": [0.5] * WIDTH}))
    statistics = {"action_normalization": "quantile", "action_stats_path": str(tmp_path / "stats.json")}
    path = answered(request_for(**statistics), engine)["action"]
    assert json.loads(path.read_text())["units"] == "physical"
    expected = asked_directly(tiny_checkpoint, engine, media / "picture.png", mode="policy").action.numpy()
    actions = read_action_file(path, raw_action_dim=WIDTH)
    np.testing.assert_allclose(actions, 0.25 + 0.25 * expected, atol=1e-6)

    given = np.full((CHUNK, WIDTH), 0.375, np.float32)
    given[0] = 9.0
    file = write_actions(tmp_path / "given.json", given)
    prepared = prepare(request_for(mode="forward_dynamics", action_file=file, **statistics))
    assert prepared.request.cond_action[:3, 0].tolist() == [1.0, 0.5, 0.5]
    assert "12.5% of the given values lie outside" in prepared.describe()
    outputs = write(prepared, answer(prepared, engine))
    np.testing.assert_array_equal(read_action_file(outputs["action"], raw_action_dim=WIDTH), given)


# -------------------------------------------------------------------------------------------- frames, rates, chaining


def test_the_last_frame_begins_the_next_chunk_untouched(request_for, engine):
    first = request_for(out="chunk_0")
    outputs = answered(first, engine)
    following = prepare(request_for(image=str(outputs["last_frame"]), seed=first.seed + 1, out="chunk_1"))
    assert following.request.video_shape == prepare(first).request.video_shape
    with Image.open(outputs["last_frame"]) as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(following.request.cond_video_pixels[:, 0, :48, :64], expected)
    assert "another canvas" not in following.describe()


def test_a_chain_that_would_change_its_canvas_is_told(request_for, tmp_path):
    """90x100 is shown on 256x256; its decoded frame, 80x96, would be shown on 256x320."""
    Image.fromarray(draw_clip(1, 90, 100)[0]).save(tmp_path / "picture.png")
    settings = request_for(image=str(tmp_path / "picture.png"))
    assert "(80x96, HxW) falls on another canvas" in prepare(settings).describe()
    Image.fromarray(draw_clip(1, 80, 96)[0]).save(tmp_path / "picture.png")
    assert "another canvas" not in prepare(settings).describe()


def test_a_video_in_the_place_of_an_image_gives_its_first_frame(request_for, media):
    request = prepare(request_for(video="30.mp4")).request
    expected = read_video_frames(media / "30.mp4", [0.0], tolerance_s=0.01)[0]
    found = ((request.cond_video_pixels[:, 0, :48, :64] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)


def test_condition_frames_choose_what_is_given(request_for):
    prepared = prepare(request_for(video="30.mp4", condition_frames=(0, 1)))
    assert prepared.request.conditioning.clean_frames == (0, 1)
    assert "shown its first 5" in prepared.describe()
    inverse = prepare(request_for(video="5.mp4", mode="inverse_dynamics", condition_frames=(0, 1)))
    assert (inverse.request.num_clean_pixel_frames, inverse.num_actions) == (5, CHUNK), "no padding was shown"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"condition_frames": (0, 1)}, ConfigError, "0 1 are of 5 pixel frames, and an image is one"),
        ({"condition_frames": (0, -1), "video": "30.mp4"}, ConfigError, "condition_frames are latent frames 0, 1"),
        ({"condition_frames": (0, 3), "video": "30.mp4"}, PipelineError, r"must be latent frames 0\.\.2"),
        ({"condition_frames": (0, 2), "video": "5.mp4"}, VideoError, "0 2 are of 9 frames, found 5"),
        ({"video": "1.mp4", "mode": "inverse_dynamics"}, VideoError, "at least two frames, found 1"),
        ({"video": "1.mp4", "mode": "policy"}, VideoError, r"found 1\b.*--image"),
    ],
)
def test_frames_that_are_not_there_are_not_made_up(request_for, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(request_for(**changes))


def test_another_rate_is_refused_where_it_would_change_the_actions(request_for, media):
    slow = str(media / "slow.mp4")
    write_video(media / "slow.mp4", [draw_clip(9)], fps=10)
    inverse = {"video": slow, "mode": "inverse_dynamics"}
    with pytest.raises(ConfigError, match=r"has 10 frames per second, droid_lerobot was trained at 15.*\(fps 10\), or"):
        prepare(request_for(**inverse))
    with pytest.raises(ConfigError, match=r"has 10 frames per second, fps asks for 20\."):
        prepare(request_for(**inverse, fps=20.0))
    assert prepare(request_for(**inverse, fps=10.0)).request.fps == 10.0
    assert prepare(request_for(**inverse, fps=10.05)).request.fps == 10.05, "headers round"
    assert prepare(request_for(video=slow)).request.fps == 15.0, "one frame has no rate"
    with pytest.raises(ConfigError, match="frames per second"):
        prepare(request_for(video=slow, condition_frames=(0, 1)))


def test_a_domain_without_a_rate_takes_the_videos(request_for):
    settings = {"domain_name": "maniparena", "view_point": "ego_view"}
    prepared = prepare(request_for(video="9.mp4", mode="inverse_dynamics", **settings))
    assert (prepared.request.fps, prepared.request.raw_action_dim) == (15.0, 20)
    assert "maniparena states no frame rate: the video's own 15 is used" in prepared.describe()
    assert prepare(request_for(**settings)).request.fps == 24.0


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": "9.mp4", "image": "picture.png"}, "one of image and video, found both"),
        ({"video": None}, "one of image and video, found neither"),
        ({"checkpoint": None}, "checkpoint is not set"),
        ({"mode": "inverse_dynamics"}, "needs a video; found one image"),
        ({"mode": "inverse"}, "mode must be one of .* Did you mean 'inverse_dynamics'"),
        ({"mode": "forward_dynamics"}, "forward_dynamics needs action_file"),
        ({"action_file": "a.json"}, "policy generates actions and takes none"),
        ({"domain_name": "droid"}, "Unknown domain_name 'droid'. Did you mean 'droid_lerobot'"),
        ({"action_stats_path": "s.json"}, "action_normalization is none, which reads no statistics"),
        ({"action_normalization": "quantile"}, "needs action_stats_path"),
        ({"action_normalization": "quantil"}, "Did you mean 'quantile'"),
        ({"image_size": 481}, "image_size must be one of 256, 480"),
        ({"prompt_format": "xml"}, "prompt_format must be one of"),
        ({"device": "gpu"}, "device must be one of"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"fps": 0.0}, "fps must be above zero"),
        ({"fps": float("nan")}, "fps must be above zero"),
        ({"flow_shift": -1.0}, "flow_shift must be above zero"),
        ({"raw_action_dim": 0}, r"raw_action_dim must be 1\.\.64, found 0"),
        ({"action_chunk_size": 6}, "multiple of 4"),
        ({"out": "roll.mp4"}, "what the files' names begin with"),
        ({"out": "folder/"}, "what the files' names begin with"),
    ],
)
def test_settings_that_contradict_themselves_are_refused_at_once(request_for, changes, message):
    with pytest.raises(ConfigError, match=message):
        request_for(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": "nothing.png"}, ConfigError, "nothing.png: expected an image, found no file"),
        ({"image": "9.mp4"}, PipelineError, "cannot be read as an image"),
        ({"video": "nothing.mp4"}, VideoError, "nothing.mp4: expected a video file"),
        ({"video": "picture.png", "mode": "inverse_dynamics"}, VideoError, "picture.png"),
        ({"domain_name": "libero"}, ConfigError, "libero has no fixed action width"),
        ({"view_point": "third_person"}, ConfigError, "Unknown view_point .* Did you mean 'third_person_view'"),
        ({"checkpoint": "./nowhere"}, CheckpointError, "Expected a checkpoint folder"),
        ({"num_inference_steps": 0}, PipelineError, "num_inference_steps must be at least 1"),
        ({"seed": -1}, PipelineError, "seed must be in"),
        ({"action_normalization": "quantile", "action_stats_path": "no.json"}, ActionStatsError, "cannot read"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_a_model_is_loaded(request_for, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(request_for(**changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [[1, 2, 3]]}', "expected actions of width 10, found 3"),
        ('{"action_chunks": [[[0, 0, 0, NaN, 0, 0, 0, 0, 0, 0]]]}', "row 0, column 3"),
        ('{"actions": [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]}', "neither"),
    ],
)
def test_a_bad_action_file_is_refused(request_for, tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ActionFileError, match=message):
        prepare(request_for(mode="forward_dynamics", action_file=str(tmp_path / "a.json")))


def test_no_input_is_written_over(request_for, tmp_path):
    path = write_actions(tmp_path / "it_action.json", np.zeros((CHUNK, WIDTH)))
    settings = request_for(mode="forward_dynamics", action_file=path, output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"it_action.json is read and would be written over"):
        prepare(settings)
    prepare(replace(settings, out="another"))


def test_a_folder_that_cannot_be_made_is_told_before_the_model_is_loaded(request_for, tmp_path):
    (tmp_path / "file").write_text("in the way")
    prepared = prepare(request_for(output_dir=str(tmp_path / "file")))
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        run(replace(prepared, settings=replace(prepared.settings, checkpoint="./nowhere")))


def test_where_files_go(request_for, tmp_path):
    def action(**changes) -> Path:
        return request_for(**changes).outputs["action"]

    assert action(out="a/b", output_dir="runs") == Path("runs/a/b_action.json")
    assert action(out=str(tmp_path / "c.1"), output_dir="runs") == tmp_path / "c.1_action.json"
    assert action(out=None, output_dir="runs") == Path("runs/picture_action.json")
    assert action(out=None, video="9.mp4", output_dir="runs") == Path("runs/9_action.json")


@pytest.mark.parametrize("part", ["video", "action"])
def test_an_answer_that_is_not_finite_is_not_written(request_for, tmp_path, part):
    prepared = prepare(request_for())
    broken = load_engine(prepared)
    bias = broken.vae.model.post_quant_conv.bias if part == "video" else broken.transformer.action_proj_out.fc.weight
    with torch.no_grad():
        bias.fill_(float("nan"))
    with pytest.raises(ResultError, match="not finite"):
        answer(prepared, broken)
