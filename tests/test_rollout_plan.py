"""The plans of rollouts and evaluations: what is drawn, from where, under which key, and on which episodes."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from recorded_columns import droid_actions

from pipeline.action_files import write_action_file
from pipeline.action_sources import ActionSource, open_action_source
from pipeline.config import DatasetConfig, RolloutConfig
from pipeline.datasets import open_dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.plan import Plan, window_starts
from pipeline.recipe import EvaluationRecipe, RolloutRecipe, make_recipe
from pipeline.rollout_plan import (
    EvaluationSegment,
    chunk_starts,
    held_out_episodes,
    plan_dreams,
    plan_evaluation,
    plan_rollouts,
    read_tasks,
)
from pipeline.views import RESOLUTION_TIERS

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from dataset_factory import write_video

CHUNK = 4
LENGTHS = (30, 9, 1, 6, 2)
MIB = 1024**2


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Five films at 15 fps; tasks come from a file that names two of them."""
    root = tmp_path_factory.mktemp("rollouts") / "videos"
    for number, length in enumerate(LENGTHS):
        write_video(root / f"{number}.mp4", range(100 * number, 100 * number + length))
    (root / "captions.jsonl").write_text(
        '{"file_name": "0.mp4", "text": "Lift."}\n{"file_name": "1.mp4", "text": "Put."}\n'
    )
    return root


class AsRecorded(ActionSource):
    """As many actions as there are steps. Plans never read them."""

    def to_json(self) -> dict[str, Any]:
        return {"source": "recorded"}

    def read(self, dataset, episode_index, timebase):
        raise AssertionError("a plan reads metadata only")


def recipe_of(root: Path, chaining: str = "autoregressive", **changes) -> RolloutRecipe:
    dataset = open_dataset(root)
    settings = {"action_normalization": "none", "action_chunk_size": CHUNK, "image_size": 256} | changes
    config = RolloutConfig(dataset=DatasetConfig(cameras=("video",)), **settings)
    recipe = make_recipe(config, dataset, "weights", mode="forward_dynamics")
    return RolloutRecipe(**vars(recipe), chaining=chaining, actions=AsRecorded().to_json())


def evaluation_recipe(root: Path, chaining: str = "teacher_forced", **changes) -> EvaluationRecipe:
    return EvaluationRecipe(**vars(recipe_of(root, chaining, **changes)), num_samples=2, lpips="", metrics_version=1)


def rollouts(root: Path, recipe: RolloutRecipe | None = None, *, source=None, episodes=(), num_samples=1) -> Plan:
    dataset, recipe = open_dataset(root), recipe or recipe_of(root)
    return plan_rollouts(dataset, recipe, source or AsRecorded(), episodes=episodes, num_samples=num_samples)


def dreams(root: Path, recipe: RolloutRecipe | None = None, *, tasks=(), num_chunks=2, num_samples=1, episodes=()):
    recipe = recipe or recipe_of(root)
    counts = {"num_chunks": num_chunks, "num_samples": num_samples}
    return plan_dreams(open_dataset(root), recipe, episodes=episodes, tasks=tasks, **counts)


def evaluation(root: Path, recipe: EvaluationRecipe | None = None, *, episodes=range(5), gallery=2, mib=64.0) -> Plan:
    recipe = recipe or evaluation_recipe(root)
    bounds = {"gallery_episodes": gallery, "max_segment_bytes": int(mib * MIB)}
    return plan_evaluation(open_dataset(root), recipe, episodes=tuple(episodes), **bounds)


def keys(plan: Plan) -> list[str]:
    return [segment.key for segment in plan.segments]


# --- chunks ---


@pytest.mark.parametrize(
    ("num_positions", "chain", "windows"),
    [
        (1, [0], [0]),
        (2, [0], [0]),
        (5, [0], [0]),  # four actions: one chunk
        (6, [0, 4], [0, 1]),  # one more: a chain starts anew and is cut off, a window is moved back
        (9, [0, 4], [0, 4]),
        (10, [0, 4, 8], [0, 4, 5]),
    ],
)
def test_chunk_starts_of_both_chainings(videos, num_positions, chain, windows):
    assert chunk_starts(num_positions, recipe_of(videos)) == chain
    assert chunk_starts(num_positions, recipe_of(videos, "teacher_forced")) == windows


@pytest.mark.parametrize("chaining", ["autoregressive", "teacher_forced"])
@pytest.mark.parametrize("chunk", [4, 16])
def test_chunks_cover_every_action(videos, chaining, chunk):
    recipe = recipe_of(videos, chaining, action_chunk_size=chunk)
    for num_positions in range(2, 5 * chunk):
        starts = chunk_starts(num_positions, recipe)
        covered = {start + step for start in starts for step in range(chunk)}
        assert covered >= set(range(num_positions - 1))
        assert starts[0] == 0
        assert starts[-1] < num_positions - 1, "no chunk without an action"
        steps = {after - before for before, after in pairwise(starts)}
        assert steps <= {chunk} if chaining == "autoregressive" else max(steps, default=0) <= chunk


# --- rollouts ---


def test_a_video_is_a_segment_and_lasts_as_long_as_its_episode(videos):
    plan = rollouts(videos, num_samples=2)
    assert [(s.episode_index, s.sample) for s in plan.segments] == [(e, s) for e in range(5) for s in (0, 1)]
    for segment in plan.segments:
        length = LENGTHS[segment.episode_index]
        assert (segment.num_positions, segment.label_start, segment.label_stop) == (length, 0, length - 1)
        assert list(segment.window_starts) == chunk_starts(length, recipe_of(videos))
    assert plan.num_episodes == 5
    assert plan.num_windows == 2 * (8 + 2 + 1 + 2 + 1)


def test_positions_are_counted_at_the_models_rate(videos):
    [segment] = rollouts(videos, recipe_of(videos, fps=5.0), episodes=[0]).segments
    assert (segment.num_positions, segment.window_starts) == (10, (0, 4, 8))


def test_empty_tasks_are_counted_by_episode_and_not_by_sample(videos):
    assert rollouts(videos, num_samples=3).num_empty_tasks == 3


@pytest.mark.parametrize(
    ("chaining", "expected"), [("autoregressive", [21] * 5), ("teacher_forced", [21, *LENGTHS[1:]])]
)
def test_a_file_may_be_longer_than_the_episode(videos, tmp_path, chaining, expected):
    """A chain goes on beyond it; a window needs a recorded frame to start from."""
    path = tmp_path / "actions.json"
    write_action_file(path, droid_actions(20))
    recipe = recipe_of(videos, chaining)
    source = open_action_source(str(path), open_dataset(videos), recipe)
    segments = rollouts(videos, recipe, source=source).segments
    assert [segment.num_positions for segment in segments] == expected
    for segment, length in zip(segments, expected, strict=True):
        assert list(segment.window_starts) == chunk_starts(length, recipe)
        assert chaining == "autoregressive" or segment.window_starts[-1] < LENGTHS[segment.episode_index]


# --- keys of rollouts ---


def test_other_episodes_and_more_samples_leave_keys_as_they_are(videos):
    all_keys = keys(rollouts(videos, num_samples=2))
    assert len(set(all_keys)) == 10
    assert keys(rollouts(videos, num_samples=2)) == all_keys
    assert keys(rollouts(videos, episodes=[3, 1])) == [all_keys[6], all_keys[2]]
    assert keys(rollouts(videos, num_samples=1)) == all_keys[::2]
    assert set(all_keys) < set(keys(rollouts(videos, num_samples=3)))


def test_whatever_changes_a_video_changes_its_key(videos):
    recipe = recipe_of(videos)
    variants = [
        recipe,
        replace(recipe, actions={"source": "labels", "run_id": "a"}),
        replace(recipe, actions={"source": "labels", "run_id": "b"}),
        replace(recipe, chaining="teacher_forced"),
        replace(recipe, checkpoint_fingerprint="other weights"),
        replace(recipe, seed=1),
        replace(recipe, mode="policy"),
    ]
    made = [key for variant in variants for key in keys(rollouts(videos, variant, num_samples=2))]
    assert len(set(made)) == len(variants) * 10


def test_another_recorded_task_changes_its_own_key_only(videos, tmp_path):
    root = Path(shutil.copytree(videos, tmp_path / "videos"))
    captions = (root / "captions.jsonl").read_text().replace("Put.", "Put it down.")
    (root / "captions.jsonl").write_text(captions)
    before, after = keys(rollouts(videos)), keys(rollouts(root))
    assert [old != new for old, new in zip(before, after, strict=True)] == [False, True, False, False, False]


# --- dreams ---


def test_each_task_is_imagined_from_each_first_frame_in_every_sample(videos):
    plan = dreams(videos, tasks=["Lift.", "Wave."], num_samples=2, num_chunks=3, episodes=[1, 0])
    told = [(segment.episode_index, segment.task, segment.sample) for segment in plan.segments]
    assert told == [(e, task, sample) for e in (1, 0) for task in ("Lift.", "Wave.") for sample in (0, 1)]
    assert {(s.num_positions, s.window_starts, s.label_stop) for s in plan.segments} == {(13, (0, 4, 8), 12)}
    assert len(set(keys(plan))) == 8
    assert plan.num_empty_tasks == 0


def test_without_tasks_each_episode_has_its_own(videos):
    plan = dreams(videos)
    assert [segment.task for segment in plan.segments] == ["Lift.", "Put.", "", "", ""]
    assert plan.num_empty_tasks == 3


def test_a_dreams_key_is_made_of_task_and_length(videos):
    plain = keys(dreams(videos, episodes=[0]))
    assert keys(dreams(videos, tasks=["Wave.", "Lift."], episodes=[0]))[1:] == plain, "the task it has anyway"
    assert keys(dreams(videos, tasks=["Wave."], episodes=[0])) != plain
    assert keys(dreams(videos, num_chunks=3, episodes=[0])) != plain
    assert keys(dreams(videos, num_samples=2, episodes=[0, 1]))[:1] == plain


# --- evaluation ---


@pytest.mark.parametrize("chaining", ["teacher_forced", "autoregressive"])
@pytest.mark.parametrize("mib", [0.001, 1.2, 2, 3, 64])
def test_every_position_belongs_to_exactly_one_segment(videos, chaining, mib):
    recipe = evaluation_recipe(videos, chaining)
    plan = evaluation(videos, recipe, mib=mib)
    frame_bytes = 3 * max(width * height for width, height in RESOLUTION_TIERS["256"])
    for episode, length in enumerate(LENGTHS):
        segments = [segment for segment in plan.segments if segment.episode_index == episode]
        bounds = [(segment.label_start, segment.label_stop) for segment in segments]
        assert [position for start, stop in bounds for position in range(start, stop)] == list(range(length - 1))
        assert [s for segment in segments for s in segment.window_starts] == chunk_starts(length, recipe)
        for segment in segments:
            first, last = segment.window_starts[0], segment.window_starts[-1]
            assert first <= segment.label_start <= segment.label_stop <= last + CHUNK
            assert segment.num_positions == length
            assert len(segment.window_starts) == 1 or (last - first + CHUNK + 1) * frame_bytes <= mib * MIB
    assert len(set(keys(plan))) == len(plan.segments)


def test_windows_are_those_of_labelling_unless_they_are_chained(videos):
    segments = evaluation(videos).segments
    assert [list(segment.window_starts) for segment in segments] == [window_starts(length, CHUNK) for length in LENGTHS]


def test_the_other_episode_is_the_next_one_that_has_actions_and_never_itself(videos):
    """The third has a single frame, hence nothing to lend; it must not fail the second."""
    others = {segment.episode_index: segment.other_episode_index for segment in evaluation(videos).segments}
    assert others == {0: 1, 1: 3, 2: 3, 3: 4, 4: 0}


def test_an_episode_that_cannot_be_read_lends_nothing(videos, tmp_path):
    root = Path(shutil.copytree(videos, tmp_path / "videos"))
    (root / "1.mp4").write_bytes(b"no video")
    others = {segment.episode_index: segment.other_episode_index for segment in evaluation(root).segments}
    assert others == {0: 3, 1: 3, 2: 3, 3: 4, 4: 0}


@pytest.mark.parametrize(("episodes", "others"), [([0], [-1]), ([0, 2], [-1, 0]), ([3, 0], [0, 3])])
def test_a_selection_of_few_episodes(videos, episodes, others):
    """Without a second one that has actions, there is no other."""
    segments = evaluation(videos, episodes=episodes).segments
    assert [segment.other_episode_index for segment in segments] == others


@pytest.mark.parametrize("gallery", [0, 1, 2, 24])
def test_the_gallery_shows_the_first_segment_of_the_first_episodes(videos, gallery):
    segments = evaluation(videos, mib=2, gallery=gallery, episodes=[1, 0, 3]).segments
    assert len(segments) > 3, "the long episode has several segments"
    shown = [(segment.episode_index, segment.window_starts[0]) for segment in segments if segment.in_gallery]
    assert shown == [(1, 0), (0, 0), (3, 0)][:gallery]


def test_keys_of_an_evaluation(videos):
    """Of two episodes that are compared with each other, either's content is in both keys."""
    recipe = evaluation_recipe(videos)
    base = evaluation(videos, recipe, gallery=1)
    assert keys(evaluation(videos, recipe, gallery=1)) == keys(base)
    more = keys(evaluation(videos, recipe, gallery=2))
    assert [old != new for old, new in zip(keys(base), more, strict=True)] == [False, True, False, False, False]
    fewer = keys(evaluation(videos, recipe, gallery=1, episodes=[0, 1, 3, 4]))
    assert fewer == [key for segment, key in zip(base.segments, keys(base), strict=True) if segment.episode_index != 2]
    assert not set(keys(evaluation(videos, recipe, gallery=1, episodes=[0]))) & set(keys(base)), "no other episode"
    assert not set(keys(evaluation(videos, replace(recipe, num_samples=3), gallery=1))) & set(keys(base))


def test_segments_travel_as_plain_rows(videos):
    [evaluated, *_] = evaluation(videos).segments
    assert isinstance(evaluated, EvaluationSegment)
    row = evaluated.to_row()
    assert (row["other_episode_index"], row["in_gallery"], row["problem"], row["error"]) == (1, True, "", "")
    assert rollouts(videos, num_samples=2).segments[1].to_row()["sample"] == 1


# --- held-out episodes ---


class Numbered:
    """A dataset as far as its split can see it. Real ones of a hundred episodes take long to write."""

    root = Path("numbered")

    def __init__(self, indexes) -> None:
        self.indexes = indexes

    def episode_indexes(self):
        return self.indexes


# torch.randperm(20, generator=torch.Generator().manual_seed(42)), as cosmos-framework draws it.
PERMUTATION = [2, 14, 18, 15, 1, 10, 0, 4, 6, 11, 8, 3, 7, 17, 13, 12, 19, 5, 16, 9]


@pytest.mark.parametrize(("fraction", "count"), [(0.03, 1), (0.1, 2), (0.24, 5), (0.26, 5), (0.5, 10), (1.0, 20)])
def test_the_split_is_the_frameworks(fraction, count):
    chosen = held_out_episodes(Numbered(range(20)), fraction=fraction, seed=42)
    assert chosen == tuple(sorted(PERMUTATION[:count]))


def test_the_split_of_a_hundred_episodes_at_the_frameworks_share():
    assert held_out_episodes(Numbered(range(100)), fraction=0.03, seed=42) == (42, 62, 96)


def test_a_place_in_the_split_is_no_episode_number():
    """Numbers may have gaps; the split counts episodes."""
    chosen = held_out_episodes(Numbered([10 * index for index in range(20)]), fraction=0.1, seed=42)
    assert chosen == (20, 140)


def test_another_seed_draws_another_share():
    draws = {held_out_episodes(Numbered(range(20)), fraction=0.25, seed=seed) for seed in range(5)}
    assert len(draws) == 5


@pytest.mark.parametrize("fraction", [0.0, 0.02])
def test_a_share_of_less_than_one_episode_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"of 20 episodes is less than one.*--held_out_fraction.*--dataset\.episodes"):
        held_out_episodes(Numbered(range(20)), fraction=fraction, seed=42)


def test_named_episodes_are_taken_as_named_whatever_the_share(videos):
    chosen = held_out_episodes(open_dataset(videos), episodes=[3, 0, 3], fraction=0.0, seed=42)
    assert chosen == (3, 0)
    with pytest.raises(DatasetError, match="episode 9"):
        evaluation(videos, episodes=held_out_episodes(open_dataset(videos), episodes=[9], fraction=1.0, seed=42))


# --- tasks ---


def test_tasks_are_lines_each_once(tmp_path):
    path = tmp_path / "tasks.txt"
    path.write_text("  Lift the cup.  \n\nÖffne: die #1\nLift the cup.\n\t\nWave.", encoding="utf-8")
    assert read_tasks(path) == ["Lift the cup.", "Öffne: die #1", "Wave."]


def test_a_byte_order_mark_is_no_part_of_a_task(tmp_path):
    path = tmp_path / "tasks.txt"
    path.write_bytes("Lift.\r\nWave.\r\n".encode("utf-8-sig"))
    assert read_tasks(path) == ["Lift.", "Wave."]


@pytest.mark.parametrize("content", [b"", b"\n  \n\t\n"])
def test_a_file_without_a_task_is_refused(tmp_path, content):
    path = tmp_path / "tasks.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"tasks\.txt holds no instruction; expected one a line"):
        read_tasks(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "tasks.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="--tasks_path: expected a text file of instructions, one a line"):
        read_tasks(path)
