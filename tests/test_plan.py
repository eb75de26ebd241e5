"""The plan: every position of every episode answered for once, and keys that are made of content."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config import DatasetConfig, LabelConfig
from pipeline.cosmos3.config import read_checkpoint_config
from pipeline.datasets import open_dataset
from pipeline.errors import DatasetError
from pipeline.fingerprint import digest
from pipeline.plan import (
    RECORD_VERSION,
    Plan,
    count_windows,
    estimate_flops,
    make_plan,
    max_windows,
    window_seed,
    window_starts,
)
from pipeline.recipe import Recipe, make_recipe
from pipeline.views import RESOLUTION_TIERS

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import make_v3, write_video

LENGTHS = (30, 9, 1, 2, 5)
MIB = 1024**2


def write_videos(root: Path, first_id: int = 0, tasks: dict[str, str] | None = None) -> Path:
    for number, length in enumerate(LENGTHS):
        write_video(root / f"{number}.mp4", range(first_id + 100 * number, first_id + 100 * number + length))
    lines = [{"file_name": name, "text": text} for name, text in (tasks or {"0.mp4": "Lift.", "1.mp4": "Put."}).items()]
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("plan") / "videos")


def recipe_of(root: Path, **changes) -> Recipe:
    dataset = open_dataset(root)
    settings = {"action_normalization": "none", "action_chunk_size": 4, "image_size": 256} | changes
    config = LabelConfig(dataset=DatasetConfig(cameras=dataset.cameras[:1]), **settings)
    return make_recipe(config, dataset, "weights")


def plan_of(root: Path, *, recipe: Recipe | None = None, mib: float = 64, episodes=()) -> Plan:
    dataset = open_dataset(root)
    return make_plan(dataset, recipe or recipe_of(root), episodes=episodes, max_segment_bytes=int(mib * MIB))


def keys(plan: Plan, episode: int | None = None) -> list[str]:
    return [segment.key for segment in plan.segments if episode in (None, segment.episode_index)]


# --- windows ---


@pytest.mark.parametrize("chunk", [4, 16, 60])
def test_windows_cover_every_action_and_end_with_the_episode(chunk):
    for num_positions in range(2, 6 * chunk):
        starts = window_starts(num_positions, chunk)
        assert starts[0] == 0
        if num_positions - 1 <= chunk:
            assert starts == [0], "a short episode is one window"
            continue
        assert starts[-1] + chunk == num_positions - 1, "the last window ends at the last frame"
        covered = {position for start in starts for position in range(start, start + chunk)}
        assert covered == set(range(num_positions - 1))
        steps = [after - before for before, after in pairwise(starts)]
        assert all(step == chunk for step in steps[:-1])
        assert 0 < steps[-1] <= chunk if steps else True


def test_a_frame_more_than_full_windows_moves_the_last_one_back():
    assert window_starts(9, 4) == [0, 4]
    assert window_starts(10, 4) == [0, 4, 5]
    assert window_starts(1, 4) == window_starts(5, 4) == [0]


# --- segments ---


@pytest.mark.parametrize("mib", [0.001, 1.2, 2, 3, 64])
def test_label_ranges_partition_each_episode(videos, mib):
    plan = plan_of(videos, mib=mib)
    for episode, length in enumerate(LENGTHS):
        segments = [segment for segment in plan.segments if segment.episode_index == episode]
        bounds = [(segment.label_start, segment.label_stop) for segment in segments]
        assert [position for start, stop in bounds for position in range(start, stop)] == list(range(length - 1))
        windows = [start for segment in segments for start in segment.window_starts]
        assert windows == window_starts(length, 4)
        for segment in segments:
            first, last = segment.window_starts[0], segment.window_starts[-1]
            assert first <= segment.label_start <= segment.label_stop <= last + 4, "answers lie within its windows"


@pytest.mark.parametrize("image_size", [256, 480])
@pytest.mark.parametrize("mib", [2, 5, 17, 64])
def test_a_segments_frames_fit_the_bound(videos, image_size, mib):
    recipe = recipe_of(videos, image_size=image_size)
    frame_bytes = 3 * max(width * height for width, height in RESOLUTION_TIERS[str(image_size)])
    segments = plan_of(videos, recipe=recipe, mib=mib).segments
    sizes = [(segment.window_starts[-1] - segment.window_starts[0] + 5) * frame_bytes for segment in segments]
    alone = [len(segment.window_starts) == 1 for segment in segments]
    assert all(size <= mib * MIB or single for size, single in zip(sizes, alone, strict=True))
    num_windows = max_windows(recipe, mib * MIB)
    assert (num_windows * 4 + 1) * frame_bytes <= mib * MIB or num_windows == 1
    assert ((num_windows + 1) * 4 + 1) * frame_bytes > mib * MIB, "one window more would fit"


def test_a_smaller_bound_makes_more_segments_of_the_same_windows(videos):
    few, many = plan_of(videos, mib=64), plan_of(videos, mib=2)
    assert len(few.segments) == len(LENGTHS) < len(many.segments)
    assert few.num_windows == many.num_windows == count_windows(many.segments)
    assert few.num_episodes == many.num_episodes == len(LENGTHS)


def test_positions_count_frames_at_the_models_rate(videos):
    segment = plan_of(videos, recipe=recipe_of(videos, fps=5.0), episodes=[0]).segments[0]
    assert (segment.num_positions, segment.window_starts, segment.label_stop) == (10, (0, 4, 5), 9)


def test_chosen_episodes_are_planned_in_the_order_asked_and_once(videos):
    plan = plan_of(videos, episodes=[3, 0, 3])
    assert [segment.episode_index for segment in plan.segments] == [3, 0]


def test_an_episode_that_is_not_there_is_refused(videos):
    with pytest.raises(DatasetError, match="episode 9"):
        plan_of(videos, episodes=[0, 9])


def test_a_single_frame_is_planned_without_labels(videos):
    """So that it counts as failed in the end; the message with the fix is the load stage's."""
    [segment] = plan_of(videos, episodes=[2]).segments
    assert segment.num_positions == 1
    assert (segment.label_start, segment.label_stop) == (0, 0)


def test_a_damaged_video_is_a_planned_segment_with_a_problem(tmp_path):
    """It has to be counted as failed at the end, so it must be in the plan."""
    root = write_videos(tmp_path / "videos")
    (root / "1.mp4").write_bytes(b"no video")
    plan = plan_of(root)
    assert plan.num_episodes == len(LENGTHS)
    [segment] = [segment for segment in plan.segments if segment.episode_index == 1]
    assert "1.mp4" in segment.problem


def test_empty_tasks_are_counted_by_episode(tmp_path, videos):
    assert plan_of(videos, mib=0.001).num_empty_tasks == 3
    root = write_videos(tmp_path / "videos", tasks={"0.mp4": "  ", "1.mp4": "Lift."})
    assert plan_of(root).num_empty_tasks == 4


def test_a_row_holds_plain_values_and_no_error(videos):
    row = plan_of(videos).segments[0].to_row()
    assert json.loads(json.dumps(row)) == row
    assert (row["problem"], row["error"], row["error_type"]) == ("", "", "")


# --- keys ---


def test_keys_are_unique_and_the_same_every_time(videos):
    plan = plan_of(videos, mib=2)
    assert len(set(keys(plan))) == len(plan.segments)
    assert keys(plan_of(videos, mib=2)) == keys(plan)
    assert keys(plan_of(videos, mib=2, episodes=[1])) == keys(plan, 1), "other episodes take no part"


@pytest.mark.parametrize("mib", [0.001, 2, 64])
def test_a_key_is_the_digest_of_version_recipe_content_and_windows(videos, mib):
    """It is written out for speed, and must stay what it always was: records are found by it."""
    recipe = recipe_of(videos)
    for segment in plan_of(videos, recipe=recipe, mib=mib).segments:
        parts = [RECORD_VERSION, digest(recipe.to_json()), segment.input_digest, list(segment.window_starts)]
        assert segment.key == digest(parts)


def test_keys_are_the_same_after_the_dataset_moved(videos, tmp_path):
    moved = Path(shutil.copytree(videos, tmp_path / "elsewhere"))
    assert keys(plan_of(moved)) == keys(plan_of(videos))


def test_keys_of_a_lerobot_dataset_are_the_same_after_it_moved(tmp_path):
    made = make_v3(tmp_path / "here", [6, 7], per_file=2, codec="libx264")
    before = keys(plan_of(made.root))
    assert keys(plan_of(made.root.rename(tmp_path / "there"))) == before


def test_another_video_changes_its_own_keys_only(videos, tmp_path):
    root = Path(shutil.copytree(videos, tmp_path / "videos"))
    write_video(root / "1.mp4", range(500, 500 + LENGTHS[1]))
    before, after = plan_of(videos), plan_of(root)
    assert keys(after, 1) != keys(before, 1)
    assert [keys(after, episode) for episode in (0, 2, 3, 4)] == [keys(before, episode) for episode in (0, 2, 3, 4)]


def test_another_task_changes_its_own_keys_only(videos, tmp_path):
    root = Path(shutil.copytree(videos, tmp_path / "videos"))
    lines = [{"file_name": "0.mp4", "text": "Lift."}, {"file_name": "1.mp4", "text": "Put it down."}]
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before, after = plan_of(videos), plan_of(root)
    assert keys(after, 1) != keys(before, 1)
    assert keys(after, 0) == keys(before, 0)


def test_another_recipe_or_other_windows_change_every_key(videos):
    recipe = recipe_of(videos)
    plans = [
        plan_of(videos, recipe=recipe),
        plan_of(videos, recipe=replace(recipe, seed=1)),
        plan_of(videos, recipe=replace(recipe, checkpoint_fingerprint="other weights")),
        plan_of(videos, recipe=replace(recipe, action_chunk=8)),
    ]
    assert len({key for plan in plans for key in keys(plan)}) == sum(len(plan.segments) for plan in plans)
    # One segment of the whole episode and the first of several hold different labels.
    assert not set(keys(plan_of(videos, mib=2), 0)) & set(keys(plans[0], 0))


def test_missing_is_what_has_no_record_in_the_plans_order(videos):
    plan = plan_of(videos, mib=2)
    recorded = [keys(plan)[1], keys(plan)[3], "a key of another run"]
    missing = plan.missing(recorded)
    assert [segment.key for segment in missing] == [key for key in keys(plan) if key not in recorded]
    assert plan.missing([]) == list(plan.segments)
    assert plan.missing(keys(plan)) == []


# --- seeds and cost ---


def test_a_windows_seed_never_changes():
    """Labels of a resumed run have to match those that are there already."""
    by_hand = int(hashlib.sha256(b'[0,"content",16]').hexdigest()[:8], 16) & 0x7FFFFFFF
    assert window_seed(0, "content", 16) == by_hand == 1053273173


def test_seeds_are_int31_and_differ():
    starts = range(0, 160, 4)
    cases = [(seed, f"content {episode}", start) for seed in range(3) for episode in range(40) for start in starts]
    seeds = [window_seed(*case) for case in cases]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) >= len(seeds) - 1, "more than one collision in 4,800 seeds of 31 bits"


def test_the_estimate_grows_with_the_work(videos, tiny_checkpoint):
    model, recipe = read_checkpoint_config(tiny_checkpoint).transformer, recipe_of(videos)
    one = estimate_flops(recipe, model, 1)
    assert one > 0
    assert estimate_flops(recipe, model, 0) == 0
    assert estimate_flops(recipe, model, 1000) == pytest.approx(1000 * one)
    steps = replace(recipe, num_inference_steps=2 * recipe.num_inference_steps)
    assert estimate_flops(steps, model, 1) == pytest.approx(2 * one)
    assert estimate_flops(replace(recipe, guidance_scale=3.0), model, 1) == pytest.approx(2 * one)
    assert estimate_flops(replace(recipe, image_size=480), model, 1) > one
