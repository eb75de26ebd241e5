"""Strict loading: every way in which weights can be wrong is named, and nothing is held twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_edits import WEIGHTS, edit_tensors
from request_factory import assert_same_answer, make_request, relative_error

from pipeline.cosmos3.checkpoint import check_checkpoint
from pipeline.cosmos3.engine import Engine
from pipeline.cosmos3.loading import weight_files
from pipeline.demo.checkpoint import write_tiny_checkpoint
from pipeline.errors import CheckpointError

INDEX = f"{WEIGHTS}.index.json"


@pytest.fixture(scope="module")
def sharded_checkpoint(write_tiny, tmp_path_factory):
    """The tiny checkpoint's weights in several files."""
    return write_tiny(tmp_path_factory.mktemp("sharded") / "tiny", max_shard_size="1MB")


@pytest.fixture
def sharded_folder(tmp_path):
    """A sharded transformer folder that the test may damage."""
    return write_tiny_checkpoint(tmp_path / "tiny", max_shard_size="1MB") / "transformer"


def load(folder, **settings):
    return Engine.from_pretrained(folder, device="cpu", **settings)


def refuse(folder, message: str, *, part: str = "transformer") -> None:
    """Loading fails with `message`, and so does the check of headers, which leaves the VAE's tensors to the engine."""
    with pytest.raises(CheckpointError, match=message):
        load(folder)
    if part != "vae":
        with pytest.raises(CheckpointError, match=message):
            check_checkpoint(folder)


def test_shards_hold_what_one_file_holds(engine, sharded_checkpoint):
    """Weights agree bit for bit. Answers need not: a matrix product's rounding depends on where in memory it starts."""
    assert len(weight_files(sharded_checkpoint / "transformer")) > 1
    sharded = load(sharded_checkpoint)
    found, expected = sharded.transformer.state_dict(), engine.transformer.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    requests = [make_request(1), make_request(2, mode="inverse_dynamics")]
    for one, other in zip(sharded.step(requests), engine.step(requests), strict=True):
        assert_same_answer(one, other)


@pytest.mark.parametrize(
    ("part", "name"),
    [("transformer", "layers.1.self_attn.norm_added_k.weight"), ("vae", "encoder.conv_in.bias")],
)
def test_a_missing_tensor_is_named(checkpoint_copy, part, name):
    edit_tensors(checkpoint_copy / part, lambda tensors: tensors.pop(name))
    refuse(checkpoint_copy, f"{part} are not those of its config: missing {name}", part=part)


@pytest.mark.parametrize(
    ("part", "name"), [("transformer", "layers.1.self_attn.k_norm_und_for_gen.weight"), ("vae", "encoder.other")]
)
def test_an_extra_tensor_is_named(checkpoint_copy, part, name):
    edit_tensors(checkpoint_copy / part, lambda tensors: tensors.update({name: torch.ones(3)}))
    refuse(checkpoint_copy, f"not expected {name}", part=part)


def test_many_wrong_tensors_are_counted(checkpoint_copy):
    edit_tensors(
        checkpoint_copy / "transformer",
        lambda tensors: (
            [tensors.update({f"x{n}": torch.ones(1)}) or n for n in range(8)] and tensors.pop("proj_in.bias")
        ),
    )
    refuse(checkpoint_copy, r"missing proj_in.bias; not expected x0, x1, x2, x3, x4 and 3 more")


def test_a_misshapen_tensor_is_named(checkpoint_copy):
    edit_tensors(
        checkpoint_copy / "transformer", lambda tensors: tensors.update({"proj_in.weight": torch.ones(192, 64)})
    )
    with pytest.raises(
        CheckpointError, match=r"'proj_in.weight' has shape \[192, 64\], its config asks for \[64, 192\]"
    ):
        load(checkpoint_copy)


@pytest.mark.parametrize("damage", ["cut short", "no safetensors", "empty"])
def test_a_corrupt_file_is_named(checkpoint_copy, damage):
    path = checkpoint_copy / "transformer" / WEIGHTS
    content = path.read_bytes()
    path.write_bytes({"cut short": content[: len(content) // 2], "no safetensors": b"x" * 4096, "empty": b""}[damage])
    refuse(checkpoint_copy, f"{WEIGHTS} cannot be read as safetensors")


def test_a_missing_shard_is_named(sharded_folder):
    shard = weight_files(sharded_folder)[1]
    shard.unlink()
    refuse(sharded_folder.parent, f"names files that are not in .*: {shard.name}")


@pytest.mark.parametrize("absolute", [True, False])
def test_an_index_that_points_outside_its_folder_is_refused(sharded_folder, absolute):
    """Also where the file is there and holds the right tensors."""
    shard = weight_files(sharded_folder)[0]
    outside = shard.rename(sharded_folder.parent / "outside.safetensors")
    index = json.loads((sharded_folder / INDEX).read_text())
    target = str(outside) if absolute else "../outside.safetensors"
    index["weight_map"] = {k: target if v == shard.name else v for k, v in index["weight_map"].items()}
    (sharded_folder / INDEX).write_text(json.dumps(index))
    refuse(sharded_folder.parent, r"names files that are not in .*: outside.safetensors")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(sharded_folder, content):
    (sharded_folder / INDEX).write_text(content)
    refuse(sharded_folder.parent, "is not a safetensors index")


class _Touch:
    """Unpickling this creates the file `path`."""

    def __init__(self, path) -> None:
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


def test_a_pickle_is_refused_and_never_opened(checkpoint_copy, tmp_path):
    folder = checkpoint_copy / "transformer"
    (folder / WEIGHTS).unlink()
    torch.save(_Touch(tmp_path / "opened"), folder / "diffusion_pytorch_model.bin")
    refuse(checkpoint_copy, r"found neither but diffusion_pytorch_model\.bin, which would have to be unpickled\. Only")
    assert not (tmp_path / "opened").exists()


def test_heads_that_actions_never_reach_are_not_needed(checkpoint_copy, engine):
    """`lm_head`, the text tower's last `norm` and `audio_*` may be there or not; `norm_moe_gen` is another thing."""
    unused = ("lm_head.weight", "norm.weight")
    edit_tensors(checkpoint_copy / "transformer", lambda tensors: [tensors.pop(name) for name in unused])
    without = load(checkpoint_copy)
    names = dict(without.transformer.named_parameters())
    assert names.keys() == dict(engine.transformer.named_parameters()).keys()
    assert not {*unused} & names.keys()
    assert "norm_moe_gen.weight" in names
    assert_same_answer(without.step([make_request(1)])[0], engine.step([make_request(1)])[0])


def test_a_whole_checkpoint_passes_the_check_of_its_headers(tiny_checkpoint, sharded_checkpoint):
    check_checkpoint(tiny_checkpoint)
    check_checkpoint(sharded_checkpoint)


def test_a_check_wants_the_tokenizer_too(checkpoint_copy):
    (checkpoint_copy / "text_tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"text_tokenizer has no tokenizer_config.json"):
        check_checkpoint(checkpoint_copy)


def test_the_decoder_is_loaded_only_with_decode_video(checkpoint_copy):
    edit_tensors(
        checkpoint_copy / "vae",
        lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(("decoder.", "post_quant_conv."))],
    )
    assert not load(checkpoint_copy).vae.has_decoder
    with pytest.raises(CheckpointError, match=r"missing decoder\."):
        load(checkpoint_copy, decode_video=True)


@pytest.fixture(scope="module")
def bf16_engine(tiny_checkpoint):
    return load(tiny_checkpoint, dtype=torch.bfloat16)


def test_the_time_embedder_stays_fp32_in_bf16(bf16_engine):
    """bf16 cannot tell timesteps apart: above 512 it rounds by up to 2."""
    for name, parameter in bf16_engine.transformer.named_parameters():
        expected = torch.float32 if name.startswith("time_embedder.") else torch.bfloat16
        assert parameter.dtype == expected, name


def test_bf16_is_near_fp32(bf16_engine, engine):
    requests = [make_request(1, num_inference_steps=6), make_request(2, mode="inverse_dynamics")]
    for found, expected in zip(bf16_engine.step(requests), engine.step(requests), strict=True):
        assert found.action.dtype == found.video.dtype == torch.float32
        assert 0 < relative_error(found.action, expected.action) < 0.05
        assert relative_error(found.video, expected.video) < 0.05


_MEASURE = """
import sys
from pathlib import Path
import torch
from pipeline.cosmos3.engine import Engine
torch.set_num_threads(1)
def num_bytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
resident, copied = num_bytes("VmRSS:"), num_bytes("RssAnon:")
engine = Engine.from_pretrained(sys.argv[1], device="cpu")
for parameter in engine.transformer.parameters():
    parameter.sum()
print(num_bytes("VmHWM:") - resident, num_bytes("RssAnon:") - copied)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_fp32_on_the_cpu_holds_the_weights_once(tmp_path):
    """A fresh process peaks at most 1.2 times the weights above its imports once all are read, and copies none."""
    folder = write_tiny_checkpoint(
        tmp_path / "big", hidden_size=512, intermediate_size=2048, num_hidden_layers=6, max_shard_size="60MB"
    )
    weights = sum(path.stat().st_size for path in (folder / "transformer").glob("*.safetensors"))
    assert weights > 150e6
    done = subprocess.run([sys.executable, "-c", _MEASURE, folder], capture_output=True, text=True, check=True)
    peak, copied = map(int, done.stdout.split())
    assert 0.8 < peak / weights < 1.2
    assert copied < 0.1 * weights
