"""What a label depends on: how open settings are resolved, what changes a run's name, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.command_line import parse_config
from pipeline.config import DatasetConfig, EngineConfig, LabelConfig, RayConfig
from pipeline.datasets import open_dataset
from pipeline.errors import ActionStatsError, ConfigError, DatasetError, TimebaseError
from pipeline.recipe import Recipe, make_recipe

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import make_v3, write_video

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
DROID = "observation.images."


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two cameras, 15 fps; only its metadata is read here."""
    root = tmp_path_factory.mktemp("recipe") / "dataset"
    return open_dataset(make_v3(root, [5], per_file=1, codec="libx264").root)


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    def write(name: str, width: int = 10, high: float = 1.0) -> str:
        path = folder / name
        fields = {"q01": -1.0, "q99": high, "min": -2.0, "max": 2.0}
        path.write_text(json.dumps({field: [value] * width for field, value in fields.items()}))
        return str(path)

    folder = tmp_path_factory.mktemp("stats")
    return write


@pytest.fixture
def base(stats) -> LabelConfig:
    """One camera of the factory's dataset, everything else as it comes."""
    return LabelConfig(
        dataset=DatasetConfig(root="x", cameras=(FRONT,)),
        engine=EngineConfig(checkpoint="y", dtype="float32"),
        action_stats_path=stats("base.json"),
    )


def recipe_of(config: LabelConfig, dataset, checkpoint_fingerprint: str = "weights") -> Recipe:
    return make_recipe(config, dataset, checkpoint_fingerprint)


# --- resolution ---


def test_what_is_left_open_comes_from_the_embodiment(base, dataset):
    recipe = recipe_of(base, dataset)
    assert (recipe.raw_action_dim, recipe.action_chunk, recipe.timebase.model_fps) == (10, 16, 15.0)
    assert (recipe.cameras, recipe.view_point, recipe.view_description) == ((FRONT,), "third_person_view", "")
    assert recipe.mode == "inverse_dynamics"
    assert len(recipe.action_names) == 10
    assert recipe.action_names[-1] == "gripper_open"


def test_what_is_set_wins_over_the_embodiment(base, dataset):
    config = replace(base, action_chunk_size=8, fps=5.0, view_point="wrist_view")
    recipe = recipe_of(config, dataset)
    assert (recipe.action_chunk, recipe.view_point) == (8, "wrist_view")
    assert (recipe.timebase.dataset_fps, recipe.timebase.model_fps, recipe.timebase.stride) == (15.0, 5.0, 3)


def test_native_timebase_takes_every_frame_at_the_datasets_rate(base, dataset):
    config = replace(base, fps=4.0, dataset=replace(base.dataset, timebase="native"))
    timebase = recipe_of(config, dataset).timebase
    assert (timebase.dataset_fps, timebase.model_fps, timebase.stride) == (15.0, 15.0, 1)


def test_droids_cameras_are_found_in_composite_order_and_described(base, shared_data):
    droid = open_dataset(shared_data / "droid_real")
    config = replace(base, dataset=DatasetConfig(root="x", timebase="native"))
    recipe = recipe_of(config, droid)
    assert recipe.cameras == tuple(DROID + name for name in ("wrist_left", "exterior_1_left", "exterior_2_left"))
    assert recipe.view_point == "concat_view"
    assert recipe.view_description.startswith("The top row is from the wrist-mounted camera.")
    assert recipe.timebase.model_fps == 5.0


def test_plain_videos_need_no_camera_name(base, tmp_path):
    write_video(tmp_path / "a.mp4", range(4))
    config = replace(base, embodiment="bridge_orig_lerobot", dataset=DatasetConfig(root="x"))
    recipe = recipe_of(config, open_dataset(tmp_path))
    assert (recipe.cameras, recipe.view_point, recipe.timebase.stride) == (("video",), "ego_view", 3)


def test_the_shipped_config_for_videos_fits_a_folder_of_videos(base, tmp_path):
    """One camera under the name that such a folder has; the command is the one in the README."""
    write_video(tmp_path / "a.mp4", range(4))
    for path in (Path(__file__).parents[1] / "configs").glob("videos.yaml"):
        arguments = ["--dataset.root", str(tmp_path), "--action_stats_path", base.action_stats_path]
        config = parse_config(LabelConfig, ["--config_path", str(path), *arguments])
        assert recipe_of(config, open_dataset(tmp_path, config.dataset.format)).cameras == ("video",)


def test_a_width_of_the_users_own_has_plain_names(base, dataset):
    config = replace(base, raw_action_dim=3, action_normalization="none")
    assert recipe_of(config, dataset).action_names == ("action_0", "action_1", "action_2")


# --- identity ---

ENGINE_CHANGES = {
    "seed": 1,
    "num_inference_steps": 31,
    "guidance_scale": 2.0,
    "flow_shift": 5.0,
    "use_karras_sigmas": True,
    "dtype": "bfloat16",
}
LABEL_CHANGES = {
    "image_size": 256,
    "prompt_format": "plain",
    "action_chunk_size": 8,
    "fps": 5.0,
    "view_point": "wrist_view",
    "embodiment": "bridge_orig_lerobot",
    "raw_action_dim": 7,
    "action_normalization": "minmax",
}


def changed(base: LabelConfig, name: str, value) -> LabelConfig:
    if name in ENGINE_CHANGES:
        return replace(base, engine=replace(base.engine, **{name: value}))
    return replace(base, **{name: value})


@pytest.mark.parametrize(("name", "value"), list((ENGINE_CHANGES | LABEL_CHANGES).items()))
def test_a_setting_that_changes_labels_changes_the_run(base, dataset, name, value):
    if name == "raw_action_dim":  # statistics have a width too
        base = replace(base, action_normalization="none")
    if name == "embodiment":  # this one differs from DROID in nothing else that is left open
        base = replace(base, fps=15.0, view_point="ego_view")
    assert recipe_of(changed(base, name, value), dataset).run_id != recipe_of(base, dataset).run_id


def test_karras_has_three_answers(base, dataset):
    answers = [changed(base, "use_karras_sigmas", value) for value in (False, True, None)]
    assert len({recipe_of(config, dataset).run_id for config in answers}) == 3


def test_cameras_and_timebase_change_the_run(base, dataset):
    variants = [
        base,
        replace(base, dataset=replace(base.dataset, cameras=(WRIST,))),
        replace(base, fps=5.0),
        replace(base, fps=5.0, dataset=replace(base.dataset, timebase="native")),
    ]
    ids = [recipe_of(config, dataset).run_id for config in variants]
    assert len({*ids[:3]}) == 3
    assert ids[3] == ids[0], "native at 15 fps is what model at 15 fps is"


def test_the_content_of_the_statistics_counts_and_not_their_path(base, dataset, stats):
    run_id = recipe_of(base, dataset).run_id
    same = replace(base, action_stats_path=stats("copied.json"))
    other = replace(base, action_stats_path=stats("other.json", high=1.5))
    assert recipe_of(same, dataset).run_id == run_id
    assert recipe_of(other, dataset).run_id != run_id


def test_the_checkpoints_content_counts_and_not_its_path(base, dataset):
    moved = replace(base, engine=replace(base.engine, checkpoint="elsewhere"))
    assert recipe_of(moved, dataset).run_id == recipe_of(base, dataset).run_id
    assert recipe_of(base, dataset, "other weights").run_id != recipe_of(base, dataset).run_id


def test_settings_of_how_the_work_is_done_leave_the_run_as_it_is(base, dataset):
    other = replace(
        base,
        dataset=replace(base.dataset, root="elsewhere", episodes=(0,), format="lerobot"),
        engine=replace(base.engine, device="cpu", batch_size=3, text_cache_mib=1),
        ray=RayConfig(num_engines=2, num_loaders=2, memory_budget_mib=100),
        output_dir="elsewhere",
        dry_run=True,
    )
    assert recipe_of(other, dataset).run_id == recipe_of(base, dataset).run_id


def test_the_recipe_is_json_and_complete(base, dataset):
    recipe = recipe_of(base, dataset)
    plain = json.loads(json.dumps(recipe.to_json(), allow_nan=False))
    resolved = {"embodiment", "timebase", "normalizer"}
    assert set(vars(recipe)) - resolved <= set(plain)
    assert {"domain_id", "model_fps", "frame_stride", "action_normalization"} <= set(plain)


# --- refusals ---


def test_unknown_camera_lists_what_is_there(base, dataset):
    config = replace(base, dataset=replace(base.dataset, cameras=("observation.images.frnt",)))
    with pytest.raises(DatasetError, match=r"Did you mean 'observation\.images\.front'") as raised:
        recipe_of(config, dataset)
    assert FRONT in str(raised.value)
    assert WRIST in str(raised.value)


def test_cameras_that_cannot_be_guessed_list_what_is_there(base, dataset):
    with pytest.raises(DatasetError, match=r"--dataset\.cameras") as raised:
        recipe_of(replace(base, dataset=DatasetConfig(root="x")), dataset)
    assert FRONT in str(raised.value)


def test_two_cameras_are_no_composite(base, dataset):
    config = replace(base, dataset=replace(base.dataset, cameras=(FRONT, WRIST)))
    with pytest.raises(ConfigError, match="2 cameras"):
        recipe_of(config, dataset)


def test_5_fps_are_not_taken_for_15(base, shared_data):
    config = replace(base, dataset=DatasetConfig(root="x"))
    with pytest.raises(TimebaseError, match=r"15 fps.*5 fps.*--dataset\.timebase native"):
        recipe_of(config, open_dataset(shared_data / "droid_real"))


def test_a_rate_that_is_no_multiple_is_refused(base, dataset):
    with pytest.raises(TimebaseError, match="integer multiple"):
        recipe_of(replace(base, fps=10.0), dataset)


def test_statistics_of_another_width_are_refused(base, dataset, stats):
    config = replace(base, action_stats_path=stats("narrow.json", width=7))
    with pytest.raises(ActionStatsError, match="7 columns, the actions have 10"):
        recipe_of(config, dataset)


def test_an_embodiment_without_a_width_asks_for_it(base, dataset):
    config = replace(base, embodiment="hand_pose", action_normalization="none")
    with pytest.raises(ConfigError, match="--raw_action_dim"):
        recipe_of(config, dataset)
    assert recipe_of(replace(config, raw_action_dim=57), dataset).raw_action_dim == 57


def test_the_dtype_is_settled_before_anything_is_recorded(base, dataset, monkeypatch):
    """Otherwise a run on the CPU (fp32) and its continuation on a GPU (bf16) would share keys."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def on(device: str, **ray) -> str:
        engine = replace(base.engine, device=device, dtype="auto")
        return recipe_of(replace(base, engine=engine, ray=replace(base.ray, **ray)), dataset).dtype

    assert (on("cpu"), on("cuda"), on("auto", address="cluster:6379")) == ("float32", "bfloat16", "bfloat16")
    assert on("cpu", address="cluster:6379") == "float32"
