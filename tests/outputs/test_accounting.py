"""Conservation: what is missing, there twice or nobody's is found, and its key is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetConfig, LabelConfig
from pipeline.datasets import open_dataset
from pipeline.errors import OutputError
from pipeline.evaluation.rows import evaluation_schema, evaluation_table
from pipeline.outputs.accounting import account, check_rows
from pipeline.outputs.labels import label_schema, label_table
from pipeline.outputs.merging import merge_records
from pipeline.outputs.plans import plan_table
from pipeline.outputs.records import RecordStore
from pipeline.outputs.rollouts import rollout_schema, rollout_table, video_path
from pipeline.plan import Plan, Segment, cut_windows, window_starts
from pipeline.recipe import Recipe, make_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from dataset_factory import write_video
from outcome_samples import OUTCOME

CHUNK, STRIDE = 4, 2
EPISODES = {0: 9, 3: 30, 4: 2, 7: 23}  # episode → positions
NO_STRIDE = json.dumps({"run_id": "abc", "recipe": {"frame_stride": 0}})


def key_of(*parts: object) -> str:
    return sha256(str(parts).encode()).hexdigest()


def segment(key: str, episode: int, num_positions: int, windows: tuple[int, ...], start: int, stop: int) -> Segment:
    return Segment(
        key=key,
        input_digest="",
        episode_index=episode,
        task="Lift.",
        num_positions=num_positions,
        window_starts=windows,
        label_start=start,
        label_stop=stop,
    )


def segments(episodes: dict[int, int] = EPISODES) -> list[Segment]:
    """Segments of two windows each."""
    return [
        segment(key_of(episode, windows), episode, num_positions, windows, start, stop)
        for episode, num_positions in episodes.items()
        for windows, start, stop in cut_windows(window_starts(num_positions, CHUNK), num_positions, CHUNK, 2)
    ]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("accounting")
    write_video(folder / "a.mp4", range(5), fps=30)
    settings = {"action_normalization": "none", "action_chunk_size": CHUNK, "raw_action_dim": 3, "fps": 15.0}
    config = LabelConfig(dataset=DatasetConfig(cameras=("video",)), **settings)
    recipe = make_recipe(config, open_dataset(folder), "weights")
    assert recipe.timebase.stride == STRIDE
    return recipe


def payload(segment: Segment) -> dict:
    """A segment as infer hands it on."""
    action = np.zeros((len(segment.window_starts), CHUNK, 3), np.float32)
    num_frames = segment.num_positions - segment.window_starts[0]
    return vars(segment) | {"action": action, "action_normalized": action, "timestamps": np.arange(num_frames)}


def labels_of(segment: Segment, recipe: Recipe) -> pa.Table:
    return label_table(payload(segment), recipe)


def rollout_of(segment: Segment, recipe: Recipe) -> pa.Table:
    row = payload(segment) | {"sample": 1, "seeds": np.zeros(len(segment.window_starts), np.int64)}
    return rollout_table(row | {"video": video_path(row).as_posix()}, recipe)


def evaluation_of(segment: Segment, recipe: Recipe) -> pa.Table:
    """Two samples of the recording; another episode's actions only where there are some."""
    variants = [("recorded", 0), ("recorded", 1), ("zero_motion", 0), ("copy", 0), ("ceiling", 0)]
    variants += [("other_actions", 0)] if segment.episode_index else []
    positions = np.arange(segment.label_start + 1, segment.label_stop + 1)
    parts = []
    for variant, sample in variants:
        numbers = dict.fromkeys(evaluation_schema(recipe.action_names).names, np.zeros(len(positions)))
        actions = dict.fromkeys(("action_given", "action_recovered"), np.zeros((len(positions), 3)))
        words = {"task": [segment.task] * len(positions), "variant": [variant] * len(positions)}
        places = {"frame_index": positions * STRIDE, "episode_index": np.full(len(positions), segment.episode_index)}
        row = numbers | actions | words | places | {"sample": np.full(len(positions), sample)}
        parts.append(evaluation_table({name: _whole(value) for name, value in row.items()}, recipe.action_names))
    return pa.concat_tables(parts)


def _whole(values: object) -> object:
    is_zeros = isinstance(values, np.ndarray) and values.ndim == 1 and not values.any()
    return values.astype(np.int64) if is_zeros else values


def rollout_segments() -> list[Segment]:
    return [
        segment(
            key_of(episode, sample),
            episode,
            num_positions,
            tuple(window_starts(num_positions, CHUNK)),
            0,
            num_positions - 1,
        )
        for episode, num_positions in EPISODES.items()
        for sample in range(2)
    ]


@dataclass(frozen=True)
class Merged:
    """A run whose records were merged."""

    plan: pa.Table
    keys: list[str]  # recorded
    folder: Path | str

    def problems(self) -> list[str]:
        return check_rows(self.plan, self.folder, set(self.keys))

    def change(self, change: Callable[[pa.Table], pa.Table]) -> Merged:
        """Writes the merged rows of the first file again."""
        path = sorted(Path(self.folder).glob("*.parquet"))[0]
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)
        return self


KINDS = {
    "labels": (segments, labels_of, lambda recipe: label_schema(recipe)),
    "rollouts": (rollout_segments, rollout_of, lambda recipe: rollout_schema(recipe)),
    "frames": (segments, evaluation_of, lambda recipe: evaluation_schema(recipe.action_names)),
}


def merge(output_dir: Path | str, recipe: Recipe, kind: str, *, without: int = 0) -> Merged:
    """A run with all but the last `without` segments recorded."""
    make, table_of, schema_of = KINDS[kind]
    planned, store = make(), RecordStore(output_dir)
    recorded = planned[: len(planned) - without]
    for segment in recorded:
        store.write(segment.key, table_of(segment, recipe))
    keys = [segment.key for segment in recorded]
    folder = store.folder.parent / kind
    manifest = {"run_id": recipe.run_id, "recipe": recipe.to_json()}
    merge_records(store, keys, schema_of(recipe), folder, manifest=manifest, look=lambda table: None)
    return Merged(plan_table(Plan(tuple(planned), 0)), keys, folder)


def without_row(table: pa.Table, number: int) -> pa.Table:
    return pa.concat_tables([table[:number], table[number + 1 :]])


def with_value(table: pa.Table, name: str, number: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[number] = value
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


# --- plan, records and failures ---


def test_a_run_that_ended_by_itself_is_conserved():
    outcomes = [replace(OUTCOME, key="c"), replace(OUTCOME, key="d", kind="quarantined")]
    found = account(["a", "b", "c", "d"], {"a", "b", "of another run"}, outcomes)
    assert (found.planned, found.recorded, found.failed, found.quarantined, found.unfinished) == (4, 2, 1, 1, 0)
    assert found.is_conserved
    assert not found.is_complete()
    assert found.problems() == ["1 segments failed and 1 were quarantined: 50.00% of the plan, 0.00% tolerated"]
    assert found.is_complete(max_failed_fraction=0.5)
    assert found.problems(max_failed_fraction=0.5) == []
    assert not found.is_complete(max_failed_fraction=0.49)


def test_what_has_neither_record_nor_failure_is_named_in_the_plans_order():
    found = account([f"key-{number}" for number in range(20)], {"key-3"}, [])
    assert found.unfinished_keys == tuple(f"key-{number}" for number in range(20) if number != 3)
    assert not found.is_conserved
    assert found.problems() == [
        "19 planned segments have neither record nor failure: key-0, key-1, key-2, key-4, key-5, key-6, key-7, key-8, "
        "key-9, key-10 and 9 more"
    ]


def test_a_record_wins_over_a_failure_of_an_earlier_attempt():
    found = account(["a", "b"], {"a", "b"}, [replace(OUTCOME, key="b")])
    assert (found.recorded, found.failed, found.overtaken_failures) == (2, 0, ("b",))
    assert found.is_complete()


def test_a_key_that_is_planned_twice_is_never_complete():
    found = account(["a", "b", "a", "a"], {"a", "b"}, [])
    assert (found.planned, found.recorded, found.planned_twice) == (4, 2, ("a",))
    assert not found.is_complete(max_failed_fraction=1)
    assert found.problems(max_failed_fraction=1) == ["1 keys are planned more than once: a"]


def test_failures_of_other_plans_do_not_count():
    assert account(["a"], {"a"}, [replace(OUTCOME, key="z")]).is_complete()
    assert account([], {"a"}, []).is_complete()


# --- rows ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("without", [0, 3])
def test_rows_of_a_real_merge_belong_to_one_record_each(tmp_path, recipe, kind, without):
    assert merge(tmp_path, recipe, kind, without=without).problems() == []


@pytest.mark.parametrize("kind", KINDS)
def test_rows_on_an_object_store_are_checked_as_well(tmp_path, recipe, kind, s3):
    merged = merge(s3.url(f"accounting/{tmp_path.name}"), recipe, kind)
    assert merged.problems() == []
    assert len(replace(merged, keys=merged.keys[1:]).problems()) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_missing_is_told_with_its_key(tmp_path, recipe, kind):
    merged = merge(tmp_path, recipe, kind).change(lambda table: without_row(table, 0))
    (problem,) = merged.problems()
    assert "1 records lack rows (1 rows)" in problem
    assert merged.keys[0] in problem


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_there_twice_is_told_with_its_key(tmp_path, recipe, kind):
    merged = merge(tmp_path, recipe, kind).change(lambda table: pa.concat_tables([table, table[:1]]))
    (problem,) = merged.problems()
    assert "1 records have rows twice (1 rows)" in problem
    assert merged.keys[0] in problem


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_segment_without_a_record_are_told_with_its_key(tmp_path, recipe, kind):
    merged = merge(tmp_path, recipe, kind)
    problems = replace(merged, keys=merged.keys[:-1]).problems()
    assert problems
    assert all("belong to no record" in problem and merged.keys[-1] in problem for problem in problems)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_is_not_among_the_rows_is_told_with_its_key(tmp_path, recipe, kind):
    merged = merge(tmp_path, recipe, kind, without=1)
    last = KINDS[kind][0]()[-1].key
    problems = replace(merged, keys=[*merged.keys, last]).problems()
    assert problems
    assert all("1 records lack rows" in problem and last in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "value"),
    [("episode_index", 99), ("episode_index", -1), ("frame_index", 1), ("frame_index", -2), ("frame_index", 2**60)],
)
@pytest.mark.parametrize("kind", ["labels", "frames"])
def test_a_row_that_nobody_can_have_written_is_told(tmp_path, recipe, kind, name, value):
    merged = merge(tmp_path, recipe, kind).change(lambda table: with_value(table, name, 0, value))
    problems = merged.problems()
    assert ["lack rows" in problems[0], "belong to no record of the plan" in problems[1]] == [True, True]


@pytest.mark.parametrize(("name", "value"), [("video", "videos/x-0.mp4"), ("video_frame", 99), ("video_frame", -1)])
def test_a_frame_of_a_video_that_nobody_drew_is_told(tmp_path, recipe, name, value):
    problems = merge(tmp_path, recipe, "rollouts").change(lambda table: with_value(table, name, 0, value)).problems()
    assert ["lack rows" in problems[0], "belong to no record of the plan" in problems[1]] == [True, True]


def test_an_evaluation_without_one_of_its_variants_is_told(tmp_path, recipe):
    merged = merge(tmp_path, recipe, "frames")
    merged.change(lambda table: table.filter(pa.compute.field("variant") != "ceiling"))
    (problem,) = merged.problems()
    assert problem.startswith(f"ceiling, sample 0: {len(merged.keys)} records lack rows")


def test_segments_that_answer_for_the_same_positions_are_told(tmp_path, recipe):
    merged = merge(tmp_path, recipe, "labels")
    other = replace(segments()[1], key=key_of("other"), label_start=segments()[1].label_start + 1)
    plan = plan_table(Plan((*segments(), other), 0))
    (problem,) = check_rows(plan, merged.folder, set(merged.keys))
    assert other.key in problem


def test_an_empty_plan_has_no_rows(tmp_path, recipe):
    merged = merge(tmp_path, recipe, "labels")
    (problem,) = check_rows(plan_table(Plan((), 0)), merged.folder, set())
    assert problem.endswith("rows belong to no record of the plan")


@pytest.mark.parametrize("damage", ["none", "cut", "no manifest", "no stride"])
def test_a_folder_that_holds_no_merged_rows_is_a_typed_error(tmp_path, recipe, damage):
    merged = merge(tmp_path, recipe, "labels")
    (path,) = Path(merged.folder).glob("*.parquet")
    table = pq.read_table(path)
    match damage:
        case "none":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "no manifest":
            pq.write_table(table.replace_schema_metadata(None), path)
        case _:
            pq.write_table(table.replace_schema_metadata({"manifest": NO_STRIDE}), path)
    with pytest.raises(OutputError, match="labels"):
        merged.problems()
