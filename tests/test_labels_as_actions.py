"""A label run's pseudo-actions as the actions of a rollout: followed as written, and never where they do not belong."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.action_sources import open_action_source
from pipeline.config import DatasetConfig, RolloutConfig
from pipeline.datasets import RobotVideoDataset, open_dataset
from pipeline.errors import ActionStatsError, ConfigError, EpisodeError
from pipeline.recipe import Recipe, make_recipe
from pipeline.rollout_plan import read_tasks

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import make_v3

LENGTHS = (9, 6)
FRONT = "observation.images.front"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The dataset that was labelled. Read only."""
    return make_v3(tmp_path_factory.mktemp("plain") / "dataset", LENGTHS, per_file=2, codec="libx264", gop=12).root


def recipe_of(dataset: RobotVideoDataset, **changes) -> Recipe:
    """One camera at the dataset's rate, no statistics; everything else is DROID's."""
    view = DatasetConfig(cameras=(FRONT,), timebase=changes.pop("timebase", "model"))
    settings = {"action_normalization": "none", "action_chunk_size": 4} | changes
    return make_recipe(RolloutConfig(dataset=view, **settings), dataset, "weights", mode="forward_dynamics")


def read(folder: Path, dataset: RobotVideoDataset, recipe: Recipe, episode: int) -> np.ndarray:
    """As a worker gets them: through a source that was pickled on the driver."""
    source = pickle.loads(pickle.dumps(open_action_source(f"labels:{folder}", dataset, recipe)))
    actions = source.read(dataset, episode, recipe.timebase)
    assert len(actions) == source.num_actions(dataset.episode(episode), recipe.timebase)
    assert actions.dtype == np.float64
    return actions


@pytest.fixture(scope="module")
def labelled(plain, tiny_checkpoint, tmp_path_factory) -> Path:
    """The output folder of a label run with statistics, made by the stages themselves."""
    from stage_by_stage import drive_without_ray

    from pipeline.config import EngineConfig, LabelConfig
    from pipeline.labelling import prepare
    from pipeline.outputs.labels import merge_labels
    from pipeline.outputs.manifest import write_manifest

    folder = tmp_path_factory.mktemp("labels")
    stats = folder / "stats.json"
    stats.write_text(json.dumps({"q01": [-2.0] * 10, "q99": [1.0] * 10}))
    config = LabelConfig(
        dataset=DatasetConfig(root=str(plain), cameras=(FRONT,)),
        engine=EngineConfig(checkpoint=str(tiny_checkpoint), num_inference_steps=1, device="cpu"),
        action_stats_path=str(stats),
        action_chunk_size=4,
        image_size=256,
        output_dir=str(folder / "run"),
    )
    prepared = prepare(config)
    assert [status["error"] for status in drive_without_ray(prepared)] == ["", ""]
    write_manifest(prepared.output_dir, prepared.manifest)
    keys, labels = prepared.recorded_keys(), prepared.output_dir / "labels"
    merge_labels(prepared.store, keys, prepared.recipe, labels, prepared.manifest)
    # The same run, broken off after its first episode.
    shutil.copytree(prepared.output_dir, folder / "unfinished")
    labels = folder / "unfinished" / "labels"
    merge_labels(prepared.store, keys[:1], prepared.recipe, labels, prepared.manifest)
    return prepared.output_dir


@pytest.fixture
def physical(labelled) -> dict:
    """Settings under which the label run's actions fit."""
    return {"action_normalization": "quantile", "action_stats_path": str(labelled.parent / "stats.json")}


@pytest.fixture
def copied(labelled, tmp_path) -> Path:
    """A copy of the label run that a test may change."""
    return Path(shutil.copytree(labelled, tmp_path / "copied"))


def edit_manifest(folder: Path, **recipe) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"] |= recipe
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_labels_are_followed_as_they_were_written(plain, labelled, physical):
    dataset = open_dataset(plain)
    rows = pq.read_table(labelled / "labels").to_pylist()
    for episode, length in enumerate(LENGTHS):
        expected = [row["action"] for row in rows if row["episode_index"] == episode][:-1]
        actions = read(labelled, dataset, recipe_of(dataset, **physical), episode)
        assert actions.shape == (length - 1, 10)
        np.testing.assert_array_equal(actions, expected)


def test_all_that_a_run_reads_may_lie_in_an_object_store(plain, labelled, physical, s3):
    """Labels, statistics, action files and task lists."""
    url = s3.upload(labelled, "followed/run")
    s3.put("followed/stats.json", (labelled.parent / "stats.json").read_bytes())
    s3.put("followed/actions.json", json.dumps({"data": [[0.5] * 10]}).encode())
    s3.put("followed/tasks.txt", b"Lift.\nWave.\n")
    dataset = open_dataset(plain)
    here = recipe_of(dataset, **physical)
    there = recipe_of(dataset, **physical | {"action_stats_path": "s3://followed/stats.json"})
    assert there.run_id == here.run_id
    assert open_action_source(f"labels:{url}", dataset, there).to_json() == (
        open_action_source(f"labels:{labelled}", dataset, here).to_json()
    )
    np.testing.assert_array_equal(read(url, dataset, there, 0), read(labelled, dataset, here, 0))
    source = open_action_source("s3://followed/actions.json", dataset, there)
    assert source.read(dataset, 0, there.timebase).tolist() == [[0.5] * 10]
    assert read_tasks("s3://followed/tasks.txt") == ["Lift.", "Wave."]
    with pytest.raises(ConfigError, match=r"expected the output folder of a label run"):
        open_action_source("labels:s3://followed/nothing", dataset, there)
    with pytest.raises(ActionStatsError, match=r"s3://followed/none\.json: cannot read"):
        recipe_of(dataset, action_normalization="quantile", action_stats_path="s3://followed/none.json")


def test_labels_are_known_by_their_run_and_not_by_their_folder(plain, labelled, copied, physical):
    dataset = open_dataset(plain)
    recipe = recipe_of(dataset, **physical)
    here, there = (open_action_source(f"labels:{folder}", dataset, recipe) for folder in (labelled, copied))
    assert here.to_json() == there.to_json()
    manifest = json.loads((copied / "manifest.json").read_text()) | {"run_id": "another"}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    for path in (copied / "labels").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"manifest": json.dumps(manifest)}), path)
    assert open_action_source(f"labels:{copied}", dataset, recipe).to_json() != here.to_json()


def test_labels_are_found_after_the_dataset_moved(plain, labelled, physical, tmp_path):
    moved = open_dataset(Path(shutil.copytree(plain, tmp_path / "moved")))
    assert len(read(labelled, moved, recipe_of(moved, **physical), 1)) == 5


@pytest.mark.parametrize(("lengths", "fps"), [([9, 7], 15), ([6, 9], 15), ([9, 6, 2], 15), ([9, 6], 30)])
def test_labels_of_another_dataset_are_refused(labelled, physical, tmp_path, lengths, fps):
    """Other lengths or another rate: the labels would be those of other moments."""
    other = open_dataset(make_v3(tmp_path / "other", lengths, per_file=3, codec="libx264", fps=fps).root)
    with pytest.raises(ConfigError, match=r"labels are of another dataset.*jobs/label_inverse\.py"):
        open_action_source(f"labels:{labelled}", other, recipe_of(other, **physical))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embodiment": "robomind-franka", "fps": 15.0}, "embodiment 'droid_lerobot', this run has 'robomind-franka'"),
        ({"fps": 5.0}, "model_fps 15.0, this run has 5.0"),
        ({"raw_action_dim": 8, "action_normalization": "none"}, "raw_action_dim 10, this run has 8"),
    ],
    ids=str,
)
def test_labels_with_another_meaning_are_refused(plain, labelled, physical, changes, message):
    dataset = open_dataset(plain)
    recipe = recipe_of(dataset, **physical | changes)
    with pytest.raises(ConfigError, match=f"{message}.*label again"):
        open_action_source(f"labels:{labelled}", dataset, recipe)


def test_labels_at_the_native_rate_fit_a_run_at_the_same_rate(plain, labelled, physical):
    dataset = open_dataset(plain)
    recipe = recipe_of(dataset, fps=5.0, timebase="native", **physical)
    assert open_action_source(f"labels:{labelled}", dataset, recipe)


def test_labels_at_another_stride_are_refused(plain, copied, physical):
    dataset = open_dataset(plain)
    edit_manifest(copied, frame_stride=2)
    with pytest.raises(ConfigError, match="frame_stride 2, this run has 1"):
        open_action_source(f"labels:{copied}", dataset, recipe_of(dataset, **physical))


def test_physical_actions_and_the_models_own_scale_do_not_mix(plain, labelled, copied, physical):
    dataset = open_dataset(plain)
    message = "Use one --action_normalization for both"
    with pytest.raises(ConfigError, match=message):
        open_action_source(f"labels:{labelled}", dataset, recipe_of(dataset))
    edit_manifest(copied, action_normalization={"method": "none"})
    with pytest.raises(ConfigError, match=message):
        open_action_source(f"labels:{copied}", dataset, recipe_of(dataset, **physical))
    assert open_action_source(f"labels:{copied}", dataset, recipe_of(dataset))


def test_other_statistics_are_no_obstacle_to_physical_labels(plain, labelled, physical, tmp_path):
    stats = tmp_path / "other.json"
    stats.write_text(json.dumps({"min": [-3.0] * 10, "max": [3.0] * 10}))
    dataset = open_dataset(plain)
    settings = physical | {"action_normalization": "minmax", "action_stats_path": str(stats)}
    assert open_action_source(f"labels:{labelled}", dataset, recipe_of(dataset, **settings))


def test_an_episode_without_labels_says_so_and_the_others_do_not_suffer(plain, labelled, physical):
    dataset, unfinished = open_dataset(plain), labelled.parent / "unfinished"
    assert len(read(unfinished, dataset, recipe_of(dataset, **physical), 0)) == 8
    with pytest.raises(EpisodeError, match=r"all 5 steps of episode 1, found 0.*the same command again"):
        read(unfinished, dataset, recipe_of(dataset, **physical), 1)


def test_labels_of_a_part_of_an_episode_are_not_moved_together(plain, copied, physical):
    """A missing row in the middle would otherwise shift all that follow."""
    [path] = (copied / "labels").iterdir()
    table = pq.read_table(path)
    keep = [index for index in range(table.num_rows) if index != 3]
    pq.write_table(table.take(keep), path)
    dataset = open_dataset(plain)
    with pytest.raises(EpisodeError, match="all 8 steps of episode 0, found 7"):
        read(copied, dataset, recipe_of(dataset, **physical), 0)


def test_labels_of_the_run_before_are_not_taken_for_this_ones(plain, copied, physical):
    """A run writes its manifest when it starts and its labels when it ends; between the two it may be broken off."""
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"run_id": "newer"}))
    dataset = open_dataset(plain)
    with pytest.raises(ConfigError, match=rf"labels are of run {manifest['run_id']}.*is newer.*same command again"):
        open_action_source(f"labels:{copied}", dataset, recipe_of(dataset, **physical))


@pytest.mark.parametrize("missing", ["manifest.json", "labels", ""])
def test_a_folder_that_is_no_label_run_is_refused(plain, copied, missing):
    dataset, folder = open_dataset(plain), copied if missing else copied / "nowhere"
    if missing == "labels":
        shutil.rmtree(folder / missing)
    elif missing:
        (folder / missing).unlink()
    with pytest.raises(ConfigError, match=r"manifest\.json and labels/.*jobs/label_inverse\.py"):
        open_action_source(f"labels:{folder}", dataset, recipe_of(dataset))


def test_the_manifest_of_a_rollout_run_is_refused(plain, copied):
    edit_manifest(copied, mode="forward_dynamics")
    dataset = open_dataset(plain)
    with pytest.raises(ConfigError, match="manifest of a label run, found one of 'forward_dynamics'"):
        open_action_source(f"labels:{copied}", dataset, recipe_of(dataset))


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[]", "'something else'")])
def test_a_manifest_that_is_none_is_refused(plain, copied, text, message):
    (copied / "manifest.json").write_text(text)
    dataset = open_dataset(plain)
    with pytest.raises(ConfigError, match=message):
        open_action_source(f"labels:{copied}", dataset, recipe_of(dataset))
