"""Both ends that users touch: observations of every kind to model inputs, results to physical actions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cosmos3.processor import Cosmos3PolicyProcessor
from pipeline.cosmos3.prompt import Caption
from pipeline.cosmos3.request import Cosmos3ActionResult
from pipeline.embodiments import get_embodiment
from pipeline.errors import ConfigError, PipelineError, ResultError
from pipeline.views import choose_canvas, fit, pad

PICTURE = np.random.RandomState(0).randint(0, 256, (176, 208, 3), dtype=np.uint8)
CLIP = np.random.RandomState(1).randint(0, 256, (17, 48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def build(tokenizer):
    return lambda **settings: Cosmos3PolicyProcessor(tokenizer, **({"image_size": 256} | settings))


@pytest.fixture(scope="module")
def processor(build):
    return build()


CHW = torch.from_numpy(PICTURE).permute(2, 0, 1)
KINDS = {
    "path": lambda path: path,
    "string": str,
    "pil": Image.open,
    "pil with alpha": lambda path: Image.open(path).convert("RGBA"),
    "uint8 array": lambda _: PICTURE,
    "float array": lambda _: (PICTURE / 255).astype(np.float32),
    "double array": lambda _: PICTURE / 255,
    "tensor chw": lambda _: CHW,
    "float tensor chw": lambda _: CHW.float() / 255,
    "tensor hwc": lambda _: torch.from_numpy(PICTURE),
    "array thwc": lambda _: PICTURE[None],
    "tensor tchw": lambda _: CHW[None],
    "list": lambda path: [path],
    "tuple of pil": lambda path: (Image.open(path),),
}


@pytest.mark.parametrize("convert", KINDS.values(), ids=KINDS)
def test_every_kind_of_image_is_the_same_picture(processor, tmp_path, convert):
    """One image is a clip of one frame that stands still: here already at content size, so only padding is added."""
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    inputs = processor.preprocess({"images": convert(path), "task": "go"})
    padded = pad(np.repeat(PICTURE[None], 17, axis=0), choose_canvas(176, 208, 256))
    expected = torch.from_numpy(padded).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    assert torch.equal(inputs["pixel_values"], expected)
    assert inputs["video_shape"] == (17, 176, 208)


def test_floats_become_the_nearest_byte(processor):
    grey = processor.preprocess({"images": np.full((48, 64, 3), 100.9 / 255)})["pixel_values"]
    assert ((grey.unique() + 1) * 127.5).tolist() == pytest.approx([101.0], abs=1e-3)


def test_a_list_of_mixed_kinds_is_a_clip_in_order(processor):
    frames = [CLIP[0], Image.fromarray(CLIP[1]), torch.from_numpy(CLIP[2]).permute(2, 0, 1), CLIP[3:17]]
    mixed, whole = (processor.preprocess({"images": images})["pixel_values"] for images in (frames, CLIP))
    assert torch.equal(mixed, whole)


def test_pixels_are_a_batch_of_one_between_minus_one_and_one(processor):
    picture = np.zeros((176, 208, 3), np.uint8)
    picture[:, 104:] = 255
    inputs = processor.preprocess({"images": picture, "task": "go"})
    pixels = inputs["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((1, 3, 17, 256, 320), torch.float32)
    assert pixels[..., :176, :104].unique().tolist() == [-1.0]
    assert pixels[..., :176, 104:208].unique().tolist() == [1.0]


def test_a_large_picture_is_shrunk_to_its_tier_and_never_enlarged(processor):
    """540x640 on tier 256 has 256x303 pixels of content, the reference's number; a small one keeps its size."""
    large = np.random.RandomState(2).randint(0, 256, (540, 640, 3), dtype=np.uint8)
    inputs = processor.preprocess({"images": large})
    canvas = choose_canvas(540, 640, 256)
    assert inputs["video_shape"] == (17, 256, 303)
    found = ((inputs["pixel_values"][0, :, 0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(found, pad(fit(large[None], canvas), canvas)[0])
    assert processor.to_request(inputs).video_shape == (5, 16, 18)
    assert processor.preprocess({"images": CLIP})["video_shape"] == (17, 48, 64)


def test_a_short_clip_repeats_its_last_frame_and_a_long_one_is_cut(processor):
    whole = processor.preprocess({"images": CLIP})["pixel_values"][0]
    short = processor.preprocess({"images": CLIP[:5]})["pixel_values"][0]
    assert torch.equal(short[:, :5], whole[:, :5])
    assert torch.equal(short[:, 5:], whole[:, 4:5].expand(-1, 12, -1, -1))
    long = processor.preprocess({"images": np.concatenate((CLIP, CLIP))})["pixel_values"][0]
    assert torch.equal(long, whole)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is an empty list"),
        ("/no/such.png", "cannot be read as an image"),
        ([CLIP[0], CLIP[0][:40]], "must have one size"),
        (np.zeros((8, 8), np.uint8), r"must be \[\(T,\) H, W, 3\] .* found \[1, 8, 8\]|found \[8, 8\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "must be"),
        (np.zeros((8, 8, 4), np.uint8), "must be"),
        (np.zeros((8, 8, 3), np.int32), "must be uint8, or float in"),
        (np.full((8, 8, 3), 1.5), r"found float64 in \[1.5, 1.5\]"),
        (np.full((8, 8, 3), -1.0), "must be uint8, or float in"),
    ],
)
def test_other_images_are_refused(processor, images, message):
    with pytest.raises(PipelineError, match=message):
        processor.preprocess({"images": images})


def test_a_file_that_is_no_image_is_refused(processor, tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"no picture")
    with pytest.raises(PipelineError, match=r"cannot be read as an image .* Frames of a video are passed as an array"):
        processor.preprocess({"images": tmp_path / "video.mp4"})


@pytest.mark.parametrize(
    "observation", [{"task": "go"}, {"prompt": "go"}, {"task": ["go", "stop"]}, {"prompt": ("go",)}]
)
def test_the_task_is_text_or_the_first_of_a_list(processor, tokenizer, observation):
    canvas = choose_canvas(48, 64, 256)
    caption = Caption(
        task="go",
        view_point="concat_view",
        view_description=get_embodiment("droid_lerobot").view_description,
        num_frames=17,
        fps=15.0,
        height_px=canvas.height_px,
        width_px=canvas.width_px,
    )
    inputs = processor.preprocess({"images": CLIP} | observation)
    assert inputs["text_ids"] == tokenizer.encode(caption.render("json"))
    assert inputs["neg_text_ids"] == tokenizer.encode("")


@pytest.mark.parametrize("observation", [{}, {"task": []}, {"task": ""}, {"task": None}])
def test_no_task_is_an_empty_one(processor, observation):
    empty = processor.preprocess({"images": CLIP, "task": ""})["text_ids"]
    assert processor.preprocess({"images": CLIP} | observation)["text_ids"] == empty
    assert processor.preprocess({"images": CLIP, "task": "go"})["text_ids"] != empty


def test_a_task_that_is_no_text_is_refused(processor):
    with pytest.raises(PipelineError, match="task must be a string or a list of strings, found int"):
        processor.preprocess({"images": CLIP, "task": 3})


def test_the_caption_follows_the_settings(build, tokenizer):
    settings = {"view_point": "wrist_view", "fps": 5.0, "action_chunk_size": 8, "prompt_format": "plain"}
    inputs = build(**settings).preprocess({"images": CLIP[:9], "task": "go"})
    expected = (
        "go. This video is captured from a wrist-mounted camera. The video is 1.0 seconds long and is of 5 FPS. "
        "This video is of 256x320 resolution."
    )
    assert inputs["text_ids"] == tokenizer.encode(expected)
    assert (inputs["fps"], inputs["action_chunk"], inputs["pixel_values"].shape[2]) == (5.0, 8, 9)


def test_inputs_become_a_request_with_the_sampling_asked_for(build):
    processor = build(mode="inverse_dynamics", cond_frame_indexes=(0, 1))
    inputs = processor.preprocess({"images": CLIP, "task": "go"})
    request = processor.to_request(inputs, seed=7, guidance_scale=3.0, num_inference_steps=4)
    assert (request.mode, request.domain_id, request.raw_action_dim) == ("inverse_dynamics", 8, 10)
    assert (request.video_shape, request.action_chunk, request.fps) == ((5, 3, 4), 16, 15.0)
    assert (request.seed, request.guidance_scale, request.num_inference_steps) == (7, 3.0, 4)
    assert request.conditioning.clean_frames == (0, 1)
    assert torch.equal(request.cond_video_pixels, inputs["pixel_values"][0])


def test_an_observation_overrides_mode_and_domain(processor):
    observation = {"images": CLIP, "mode": "inverse_dynamics", "domain_name": "agibotworld"}
    inputs = processor.preprocess(observation)
    assert (inputs["mode"], inputs["domain_id"], inputs["raw_action_dim"]) == ("inverse_dynamics", 15, 29)
    inputs = processor.preprocess({"images": CLIP, "domain_id": 3, "raw_action_dim": 57})
    assert (inputs["mode"], inputs["domain_id"], inputs["raw_action_dim"]) == ("policy", 3, 57)
    inputs = processor.preprocess({"images": CLIP})
    assert (inputs["mode"], inputs["domain_id"], inputs["raw_action_dim"]) == ("policy", 8, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain_id": 8}, "domain_id=8 alone does not say .* add raw_action_dim"),
        ({"domain_name": "droid_lerobo"}, "Unknown domain_name 'droid_lerobo'. Did you mean 'droid_lerobot'"),
        ({"domain_name": "libero"}, "libero has no fixed action width"),
        ({"raw_action_dim": 65}, r"raw_action_dim must be 1\.\.64, found 65"),
        ({"mode": "polcy"}, "mode must be one of .* Did you mean 'policy'"),
        ({"action_normalization": "quantil"}, "Unknown action_normalization 'quantil'. Did you mean 'quantile'"),
    ],
)
def test_impossible_settings_are_refused(build, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"domain_id": 8}, "domain_id=8 alone does not say"),
        ({"domain_name": "agibot"}, "Unknown domain_name 'agibot'. Did you mean 'agibotworld'"),
        ({"mode": "inverse"}, "mode must be one of .* Did you mean 'inverse_dynamics'"),
    ],
)
def test_impossible_overrides_are_refused(processor, observation, message):
    with pytest.raises(ConfigError, match=message):
        processor.preprocess({"images": CLIP} | observation)


def test_a_known_id_and_width_need_no_known_layout(build):
    processor = build(domain_id=9, raw_action_dim=30)
    assert (processor.domain_id, processor.raw_action_dim) == (9, 30)


ACTIONS = np.random.RandomState(3).uniform(-1, 1, (20, 10)).astype(np.float32)


@pytest.mark.parametrize("name", ["cond_action", "action"])
@pytest.mark.parametrize("convert", [np.asarray, np.ndarray.tolist, torch.from_numpy])
@pytest.mark.parametrize("num_rows", [1, 5, 16, 20])
def test_actions_are_trimmed_or_their_last_row_repeated(processor, name, convert, num_rows):
    inputs = processor.preprocess({"images": CLIP, "mode": "forward_dynamics", name: convert(ACTIONS[:num_rows])})
    expected = np.zeros((16, 64), np.float32)
    for row in range(16):
        expected[row, :10] = ACTIONS[min(row, num_rows - 1)]
    assert np.array_equal(inputs["cond_action"].numpy(), expected)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (ACTIONS[:, :9], r"cond_action must be \[T >= 1, 10\], found \[20, 9\]"),
        (np.zeros((16, 64)), r"found \[16, 64\]"),
        (ACTIONS[0], r"found \[10\]"),
        (ACTIONS[:0], r"found \[0, 10\]"),
        (np.where(np.arange(10) == 3, np.nan, ACTIONS), "cond_action has NaN or infinity"),
        (np.where(np.arange(10) == 3, np.inf, ACTIONS), "cond_action has NaN or infinity"),
    ],
)
def test_other_actions_are_refused(processor, action, message):
    with pytest.raises(PipelineError, match=message):
        processor.preprocess({"images": CLIP, "mode": "forward_dynamics", "cond_action": action})


RESULTS = {
    "tensor": lambda action: action,
    "dict": lambda action: {"action": action, "video": None},
    "array": torch.Tensor.numpy,
    # The engine has cut its own results already.
    "result": lambda action: Cosmos3ActionResult(action=action[..., :10], video=torch.zeros(1), pixels=None),
}


@pytest.mark.parametrize("convert", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("shape", [(16, 64), (2, 16, 64), (16, 10)])
def test_a_result_of_any_kind_is_sliced_to_the_raw_width(processor, convert, shape):
    action = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    answer = processor.postprocess(convert(action))
    assert answer["action"].dtype == np.float32
    assert np.array_equal(answer["action"], action.numpy()[..., :10])
    assert np.array_equal(answer["action_normalized"], action.numpy()[..., :10])


def test_bf16_results_are_read(processor):
    assert processor.postprocess(torch.ones(16, 64, dtype=torch.bfloat16))["action"].shape == (16, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_result_that_is_not_finite_is_no_label(processor, bad):
    action = torch.zeros(16, 64)
    action[3, 9] = bad
    with pytest.raises(ResultError, match="returned 1 values that are not finite, of 160"):
        processor.postprocess(action)
    action[3, 9], action[3, 10] = 0, bad
    assert np.isfinite(processor.postprocess(action)["action"]).all(), "padding is no part of the label"


def test_droid_statistics_turn_model_scale_into_metres(build, shared_data):
    """Model values 0 and 1 are the middle and the upper quantile; the model's own values are kept beside."""
    path = shared_data / "stats" / "droid_lerobot_stats.json"
    stats = {name: np.array(values) for name, values in json.loads(path.read_text()).items()}
    processor = build(action_normalization="quantile", action_stats_path=path)
    normalized = torch.tensor([-1.0, 0.0, 1.0, 1.5])[:, None].expand(4, 64)
    answer = processor.postprocess(normalized)
    middle, half = (stats["q99"] + stats["q01"]) / 2, (stats["q99"] - stats["q01"]) / 2
    expected = np.stack([stats["q01"], middle, stats["q99"], middle + 1.5 * half])
    assert np.allclose(answer["action"], expected, atol=1e-7)
    assert np.array_equal(answer["action_normalized"], normalized.numpy()[:, :10])
    assert answer["action"][2, 0] == pytest.approx(0.014515, abs=1e-8)


def test_conditioning_actions_are_given_in_the_units_of_the_statistics(build, tmp_path):
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"q01": [0.0] * 10, "q99": [0.5] * 10}))
    processor = build(action_normalization="quantile", action_stats_path=path, mode="forward_dynamics")
    inputs = processor.preprocess({"images": CLIP, "cond_action": np.tile([[0.0], [0.25], [0.375], [9.0]], 10)})
    assert inputs["cond_action"][:5, 0].tolist() == [-1.0, 0.0, 0.5, 1.0, 1.0]
    assert (inputs["cond_action"][:, 10:] == 0).all()
    assert processor.postprocess(inputs["cond_action"])["action"][:4, 3].tolist() == [0.0, 0.25, 0.375, 0.5]


def test_conditioning_actions_alone_are_those_of_an_observation(build):
    """For frames that are fitted already, actions are turned by themselves; their width is the domain's by default."""
    processor = build(mode="forward_dynamics")
    expected = processor.preprocess({"images": CLIP, "cond_action": ACTIONS})["cond_action"]
    assert torch.equal(processor.cond_action(ACTIONS), expected)
    assert torch.equal(processor.cond_action(ACTIONS[:, :7], 7)[:, :7], expected[:, :7])
    with pytest.raises(PipelineError, match=r"cond_action must be \[T >= 1, 10\], found \[20, 7\]"):
        processor.cond_action(ACTIONS[:, :7])


def test_prepared_frames_give_the_same_inputs_as_raw_ones(processor):
    """A labelling run fits frames itself and sends bytes; the engine then sees what `preprocess` would give it."""
    canvas = choose_canvas(48, 64, 256)
    prepared = processor.window_inputs(fit(CLIP, canvas), canvas, "go")
    raw = processor.preprocess({"images": CLIP, "task": "go"})
    assert prepared["pixel_values"].dtype == torch.uint8
    assert torch.equal(prepared["pixel_values"].float() / 127.5 - 1, raw["pixel_values"][0])
    assert {k: v for k, v in prepared.items() if k != "pixel_values"} == {
        k: v for k, v in raw.items() if k != "pixel_values"
    }
    request = processor.to_request(prepared)
    assert request.cond_video_pixels.shape == (3, 17, canvas.height_px, canvas.width_px)


def test_another_embodiment_of_an_observation_keeps_its_width_to_the_end(processor):
    """A DROID processor asked for an agibotworld rollout: 29 values in, 29 values out, none cut to DROID's ten."""
    action = np.random.default_rng(0).normal(size=(16, 29)).astype(np.float32)
    observation = {"images": CLIP, "domain_name": "agibotworld", "mode": "forward_dynamics", "cond_action": action}
    inputs = processor.preprocess(observation)
    assert inputs["raw_action_dim"] == 29
    np.testing.assert_array_equal(inputs["cond_action"][:, :29].numpy(), action)
    result = Cosmos3ActionResult(action=torch.from_numpy(action), video=torch.zeros(1), pixels=None)
    np.testing.assert_array_equal(processor.postprocess(result)["action"], action)
    np.testing.assert_array_equal(
        processor.postprocess(torch.nn.functional.pad(result.action, (0, 35)), raw_action_dim=29)["action"], action
    )


def test_a_lone_width_of_an_observation_overrides_the_constructors(processor):
    assert processor.preprocess({"images": CLIP, "raw_action_dim": 7})["raw_action_dim"] == 7


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"task": "x"}, "needs 'images'"),
        ({"images": np.full((4, 4, 3), np.nan, dtype=np.float32)}, "float in"),
        ({"images": CLIP, "cond_action": [[1.0], [1.0, 2.0]]}, "numbers"),
    ],
)
def test_input_that_is_none_is_a_typed_error(processor, observation, message):
    with pytest.raises(PipelineError, match=message):
        processor.preprocess(observation)


@pytest.mark.parametrize("setting", [{"fps": 0.0}, {"fps": -1.0}, {"action_chunk_size": 6}, {"action_chunk_size": 0}])
def test_impossible_settings_are_refused_at_once(tokenizer, setting):
    with pytest.raises(ConfigError, match="action_chunk_size must be"):
        Cosmos3PolicyProcessor(tokenizer, **setting)
