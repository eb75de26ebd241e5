"""What a request derives from its fields, and every reason to refuse one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from request_factory import make_request, unlike_requests

from pipeline.cosmos3.config import read_checkpoint_config
from pipeline.cosmos3.request import check_request
from pipeline.errors import PipelineError
from pipeline.views import pixel_to_latent_shape


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return read_checkpoint_config(tiny_checkpoint).transformer


def test_good_requests_are_accepted(config):
    for request in unlike_requests():
        check_request(request, config)


LATENTS = torch.zeros(48, 3, 4, 5)
PIXELS = torch.zeros(3, 9, 64, 80, dtype=torch.uint8)
FORWARD = {"mode": "forward_dynamics"}
ROWS = torch.zeros(8, 10)

REFUSED = {
    "unknown mode": ({"mode": "forward_dynamic"}, "Unknown mode 'forward_dynamic'.*Did you mean 'forward_dynamics'"),
    "chunk not of 4": ({"action_chunk": 6}, "action_chunk must be a positive multiple of 4.*found 6"),
    "no chunk": ({"action_chunk": 0}, "action_chunk must be a positive multiple of 4.*found 0"),
    "negative chunk": ({"action_chunk": -4}, "action_chunk must be a positive multiple of 4.*found -4"),
    "too many latent frames": (
        {"video_shape": (4, 4, 5)},
        r"\(4, 4, 5\) does not fit an action chunk of 8: expected 3",
    ),
    "no height": ({"video_shape": (3, 0, 5)}, "of at least 1x1"),
    "no width": ({"video_shape": (3, 4, 0)}, "of at least 1x1"),
    "domain too large": ({"domain_id": 32}, r"domain_id 32 is not in 0\.\.31"),
    "negative domain": ({"domain_id": -1}, r"domain_id -1 is not in 0\.\.31"),
    "no action columns": ({"raw_action_dim": 0}, r"raw_action_dim 0 is not in 1\.\.64"),
    "too many action columns": ({"raw_action_dim": 65}, r"raw_action_dim 65 is not in 1\.\.64"),
    "zero fps": ({"fps": 0.0}, "fps must be positive, found 0.0"),
    "nan fps": ({"fps": float("nan")}, "fps must be positive, found nan"),
    "infinite fps": ({"fps": float("inf")}, "fps must be positive, found inf"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, found 0"),
    "nan guidance": ({"guidance_scale": float("nan")}, "guidance_scale must be a number, found nan"),
    "negative seed": ({"seed": -1}, r"seed must be in 0..2\*\*32 - 1, found -1"),
    "negative text outside": ({"neg_text_ids": (5000,)}, "neg_text_ids must be .* ids below 1024"),
    "empty negative text": ({"neg_text_ids": ()}, "neg_text_ids must be a non-empty"),
    "half a frame": ({"cond_frame_indexes": (0.7,)}, "must be latent frames"),
    "integer pixels": ({"cond_video_pixels": PIXELS.long()}, "must be uint8, or float"),
    "nan pixels": ({"cond_video_pixels": PIXELS * float("nan")}, "cond_video_pixels has NaN"),
    "nan noise": ({"video_noise": LATENTS * float("nan")}, "video_noise has NaN"),
    "guidance without negative": ({"guidance_scale": 3.0, "neg_text_ids": None}, "needs neg_text_ids"),
    "no text": ({"text_ids": ()}, "text_ids must be a non-empty sequence of ids below 1024"),
    "text id too large": ({"text_ids": (1, 1024)}, "ids below 1024"),
    "negative text id": ({"text_ids": (-1, 5)}, "ids below 1024"),
    "nothing to generate": (FORWARD | {"cond_frame_indexes": (0, 1, 2)}, "forward_dynamics .* nothing to generate"),
    "frame outside": ({"cond_frame_indexes": (3,)}, r"cond_frame_indexes \[3\] must be latent frames 0\.\.2"),
    "no video": ({"cond_video_pixels": None}, "policy needs either cond_video_pixels or cond_video_latents"),
    "both videos": ({"cond_video_latents": LATENTS}, "and not both"),
    "latents of another grid": (
        {"cond_video_pixels": None, "cond_video_latents": LATENTS[:, :2]},
        r"cond_video_latents must be \[48, 3, 4, 5\], found \[48, 2, 4, 5\]",
    ),
    "pixels with a batch axis": ({"cond_video_pixels": PIXELS[None]}, r"must be \[3, T >= 1, H, W\] for policy"),
    "pixels channels last": ({"cond_video_pixels": PIXELS.permute(1, 2, 3, 0)}, r"must be \[3, T >= 1"),
    "too few frames": (
        {"mode": "inverse_dynamics", "cond_video_pixels": PIXELS[:, :8]},
        r"T >= 9, H, W\] for inverse_dynamics, found \[3, 8, 64, 80\]",
    ),
    "pixels not of 16": ({"cond_video_pixels": torch.zeros(3, 9, 72, 80)}, "72x80 must be multiples of 16"),
    "pixels too small": ({"cond_video_pixels": PIXELS[..., :64]}, "64x64 must .* cover 64x80"),
    "video noise": ({"video_noise": LATENTS[..., 1:]}, r"video_noise must be \[48, 3, 4, 5\], found \[48, 3, 4, 4\]"),
    "no actions": (FORWARD | {"cond_action": None}, "forward_dynamics needs cond_action"),
    "too few rows": (FORWARD | {"cond_action": ROWS[1:]}, r"cond_action must be \[8, >= 10\], found \[7, 10\]"),
    "too few columns": (FORWARD | {"cond_action": ROWS[:, 1:]}, r"cond_action must be \[8, >= 10\], found \[8, 9\]"),
    "batched rows": (FORWARD | {"cond_action": ROWS[None]}, r"cond_action must be .* found \[1, 8, 10\]"),
    "action noise": ({"action_noise": ROWS[:, 1:]}, r"action_noise must be \[8, >= 10\], found \[8, 9\]"),
    "nan action": (FORWARD | {"cond_action": torch.full((8, 10), float("nan"))}, "cond_action has NaN or infinity"),
    "infinite action": (
        FORWARD | {"cond_action": torch.full((8, 10), float("inf"))},
        "cond_action has NaN or infinity",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_model_cannot_answer_is_refused_with_what_was_expected(config, changes, message):
    mode = {"mode": changes["mode"]} if changes.get("mode") in ("forward_dynamics", "inverse_dynamics") else {}
    request = make_request(**mode)
    check_request(request, config)
    with pytest.raises(PipelineError, match=message):
        check_request(dataclasses.replace(request, **changes), config)


def test_a_request_without_clean_frames_needs_no_video(config):
    check_request(make_request(cond_video_pixels=None, cond_frame_indexes=()), config)


@pytest.mark.parametrize(
    ("changes", "frames"),
    [
        ({"mode": "policy"}, 1),
        ({"mode": "forward_dynamics"}, 1),
        ({"mode": "inverse_dynamics"}, 9),
        ({"mode": "policy", "cond_frame_indexes": (0, 1)}, 5),
        ({"mode": "inverse_dynamics", "cond_frame_indexes": ()}, 0),
    ],
)
def test_as_many_pixel_frames_are_needed_as_the_clean_latents_see(changes, frames):
    assert make_request(**changes).num_clean_pixel_frames == frames


@pytest.mark.parametrize(
    ("pixels", "latent"),
    [
        ((17, 540, 640), (5, 33, 40)),
        ((33, 540, 640), (9, 33, 40)),
        ((1, 8, 300), (1, 1, 18)),
        ((9, 176, 208), (3, 11, 13)),
    ],
)
def test_latent_grid_of_a_clip_is_the_references(pixels, latent):
    assert pixel_to_latent_shape(*pixels) == latent
