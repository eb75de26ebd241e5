"""Plans on disk: what is written is what is read, and nothing else is taken for a plan."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.outputs.plans import plan_keys, plan_path, plan_table, planned_at, read_plan, write_plan
from pipeline.plan import Plan, Segment


def segment(number: int, *, num_windows: int = 2) -> Segment:
    return Segment(
        key=sha256(str(number).encode()).hexdigest(),
        input_digest="",
        episode_index=number // 3,
        task="Lift.\x1b[2J",
        num_positions=100,
        window_starts=tuple(range(num_windows)),
        label_start=32 * (number % 3),
        label_stop=32 * (number % 3) + 32,
    )


PLAN = Plan(tuple(segment(number, num_windows=1 + number % 4) for number in range(50)), 0)


@pytest.fixture(params=["disk", "s3"])
def output_dir(request, tmp_path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    return request.getfixturevalue("s3").url(f"plans/{tmp_path.name}")


def test_what_was_written_is_read_back_in_its_order(output_dir):
    assert read_plan(output_dir, "abc") is None
    write_plan(output_dir, "abc", PLAN)
    table = read_plan(output_dir, "abc")
    assert table.equals(plan_table(PLAN))
    assert plan_keys(table) == [each.key for each in PLAN.segments]
    for name in ("episode_index", "label_start", "label_stop"):
        assert table[name].to_pylist() == [getattr(each, name) for each in PLAN.segments]
    assert pa.compute.sum(table["num_windows"]).as_py() == PLAN.num_windows
    assert planned_at(table).endswith("+00:00")


def test_a_recipe_keeps_the_plan_of_its_newest_command(output_dir):
    write_plan(output_dir, "abc", PLAN)
    write_plan(output_dir, "def", PLAN)
    write_plan(output_dir, "abc", Plan(PLAN.segments[:2], 0))
    assert [read_plan(output_dir, run_id).num_rows for run_id in ("abc", "def")] == [2, 50]


def test_an_empty_plan_is_a_plan(output_dir):
    write_plan(output_dir, "abc", Plan((), 0))
    assert plan_keys(read_plan(output_dir, "abc")) == []


def test_keys_of_a_slice_are_those_of_its_rows():
    assert plan_keys(plan_table(PLAN)[7:9]) == [each.key for each in PLAN.segments[7:9]]
    several = pa.concat_tables([plan_table(PLAN)[:3], plan_table(PLAN)[10:]])
    assert plan_keys(several) == [each.key for each in (*PLAN.segments[:3], *PLAN.segments[10:])]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "other columns", "nulls"])
def test_what_is_no_plan_is_a_typed_error_that_names_the_file(tmp_path, damage):
    write_plan(tmp_path, "abc", PLAN)
    path = plan_path(tmp_path, "abc")
    content = path.read_bytes()
    match damage:
        case "other columns":
            pq.write_table(pa.table({"key": np.arange(3)}), path)
        case "nulls":
            pq.write_table(
                pa.table(
                    {
                        name: pa.nulls(3, plan_table(PLAN).schema.field(name).type)
                        for name in plan_table(PLAN).column_names
                    }
                ),
                path,
            )
        case _:
            path.write_bytes({"empty": b"", "text": b"key,episode_index", "cut": content[:-20]}[damage])
    with pytest.raises(OutputError, match=r"abc\.parquet"):
        read_plan(tmp_path, "abc")
