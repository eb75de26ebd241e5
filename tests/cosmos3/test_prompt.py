"""Captions byte for byte as in training, and their token ids."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from pipeline.cosmos3.prompt import Caption, PromptTokenizer
from pipeline.embodiments import get_embodiment
from pipeline.errors import CheckpointError, ConfigError

DROID = Caption(
    task="Put the marker in the pot",
    view_point="concat_view",
    view_description=get_embodiment("droid_lerobot").view_description,
    num_frames=17,
    fps=15.0,
    height_px=544,
    width_px=736,
)

# cosmos-framework's output for DROID, 16 actions at 15 Hz, tier 480, less its `idle_frame`, which is never written.
JSON_GOLDEN = (
    '{"cinematography": {"framing": "This video contains concatenated views from multiple camera perspectives. '
    "The top row is from the wrist-mounted camera. The bottom row contains two horizontally concatenated "
    'third-person perspective views of the scene from opposite sides, with the robot visible."}, '
    '"actions": [{"time": "0:00-0:01", "description": "Put the marker in the pot."}], "duration": "1s", '
    '"fps": 15.0, "resolution": {"H": 544, "W": 736}, "aspect_ratio": "4,3"}'
)
PLAIN_GOLDEN = (
    "Put the marker in the pot. This video contains concatenated views from multiple camera perspectives. "
    "The top row is from the wrist-mounted camera. The bottom row contains two horizontally concatenated "
    "third-person perspective views of the scene from opposite sides, with the robot visible. "
    "The video is 2.0 seconds long and is of 15 FPS. This video is of 544x736 resolution."
)


def rendered(**changes) -> dict:
    return json.loads(dataclasses.replace(DROID, **changes).render("json"))


def test_json_caption_is_the_references_byte_for_byte():
    assert DROID.render("json") == JSON_GOLDEN


def test_plain_caption_is_the_references_byte_for_byte():
    assert dataclasses.replace(DROID, num_frames=33).render("plain") == PLAIN_GOLDEN


@pytest.mark.parametrize(
    ("num_frames", "fps", "time", "duration"),
    [
        (33, 15.0, "0:00-0:02", "2s"),  # 2.2 s
        (17, 10.0, "0:00-0:02", "1s"),  # 1.7 s: the time rounds, the duration is cut
        (17, 30.0, "0:00-0:01", "0s"),  # 0.57 s
        (5, 2.0, "0:00-0:02", "2s"),  # 2.5 s: Python rounds half to even
        (61, 0.5, "0:00-2:02", "122s"),
        (17, 3.0, "0:00-0:06", "5s"),
    ],
)
def test_time_rounds_and_duration_is_cut(num_frames, fps, time, duration):
    caption = rendered(num_frames=num_frames, fps=fps)
    assert (caption["actions"][0]["time"], caption["duration"]) == (time, duration)


@pytest.mark.parametrize(
    ("task", "description"),
    [
        ("pick it up", "pick it up."),
        ("  pick it up.  ", "pick it up."),
        ("now!", "now!"),
        ("is it there?", "is it there?"),
        ("pick it up,", "pick it up,."),
    ],
)
def test_a_task_ends_in_one_mark(task, description):
    assert rendered(task=task)["actions"][0]["description"] == description


@pytest.mark.parametrize("task", ["", "   \n"])
def test_an_empty_task_leaves_no_description(task):
    assert rendered(task=task)["actions"] == [{"time": "0:00-0:01"}]
    assert dataclasses.replace(DROID, task=task).render("plain").startswith("This video contains")


def test_json_escapes_to_ascii_and_plain_does_not():
    caption = dataclasses.replace(DROID, task='Öffne die „Tür" 开')
    assert r'"\u00d6ffne die \u201eT\u00fcr\" \u5f00."' in caption.render("json")
    assert caption.render("json").isascii()
    assert caption.render("plain").startswith('Öffne die „Tür" 开. This')


@pytest.mark.parametrize(
    ("width_px", "height_px", "name"),
    [
        (640, 640, "1,1"),
        (736, 544, "4,3"),
        (544, 736, "3,4"),
        (832, 480, "16,9"),
        (480, 832, "9,16"),
        (512, 768, "2,3"),
        (320, 256, "4,3"),
        (256, 320, "3,4"),
        (1280, 720, "16,9"),
    ],
)
def test_aspect_ratio_is_the_canvas_nearest_name(width_px, height_px, name):
    caption = rendered(width_px=width_px, height_px=height_px)
    assert caption["aspect_ratio"] == name
    assert caption["resolution"] == {"H": height_px, "W": width_px}


def test_a_single_view_has_no_description_behind_it():
    caption = rendered(view_point="ego_view", view_description="")
    framing = "This video is captured from a first-person perspective looking at the scene."
    assert caption["cinematography"] == {"framing": framing}


def test_unknown_view_points_and_formats_are_refused_with_the_closest():
    with pytest.raises(ConfigError, match="Did you mean 'concat_view'"):
        rendered(view_point="concat_views")
    with pytest.raises(
        ConfigError, match=r"prompt_format must be one of json, plain, found 'jsn'. Did you mean 'json'"
    ):
        DROID.render("jsn")


def test_ids_are_one_user_turn_closed_for_generation(tokenizer, tiny_checkpoint):
    """Chat template without a system turn, the generation prompt, then eos and <|vision_start|>."""
    from transformers import AutoTokenizer

    raw = AutoTokenizer.from_pretrained(tiny_checkpoint / "text_tokenizer")
    ids = tokenizer.encode(JSON_GOLDEN)
    assert raw.decode(ids) == (
        f"<|im_start|>user\n{JSON_GOLDEN}<|im_end|>\n<|im_start|>assistant\n<|im_end|><|vision_start|>"
    )
    assert ids[-2:] == (raw.eos_token_id, raw.convert_tokens_to_ids("<|vision_start|>"))
    assert all(isinstance(token, int) for token in ids)


def test_the_negative_prompt_is_an_empty_turn(tokenizer):
    opening, closing = tokenizer.encode("a")[:3], tokenizer.encode("a")[4:]
    assert tokenizer.encode("") == (*opening, *closing)


@pytest.mark.parametrize("damage", ["absent", "broken", "no vision_start", "no eos"])
def test_a_tokenizer_that_cannot_serve_is_refused(tiny_checkpoint, tmp_path, damage):
    folder = tmp_path / "text_tokenizer"
    if damage != "absent":
        shutil.copytree(tiny_checkpoint / "text_tokenizer", folder)
    if damage == "broken":
        (folder / "tokenizer_config.json").write_text("{")
    if damage == "no vision_start":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace("<|vision_start|>", "<|image_start|>"))
    if damage == "no eos":
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckpointError, match="tokenizer"):
        PromptTokenizer.from_pretrained(tmp_path)
