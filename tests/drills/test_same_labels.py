"""The same labels, bit for bit, however the work is cut, ordered and placed, and wherever its data lies."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import ray
from drill import TEN, Drill, assert_conserved, assert_equal_labels
from stage_by_stage import run_without_ray

from pipeline.labelling import label
from pipeline.plan import Plan

pytestmark = pytest.mark.drill


@pytest.mark.parametrize("num_engines", [1, 2, 3])
def test_actors_and_batches_and_order_change_nothing(cluster, undisturbed, tmp_path, num_engines):
    """Each number of engines with another batch size and another order of the same segments."""
    drill = Drill(undisturbed.dataset, undisturbed.checkpoint, tmp_path / "out", TEN)
    batch_size = {1: 1, 2: 4, 3: 7}[num_engines]
    more = ("--ray.num_engines", str(num_engines), "--ray.num_loaders", "1", "--engine.batch_size", str(batch_size))
    with ray.init(address=cluster.address, log_to_driver=False):
        prepared = drill.prepare(*more)
        summary = label(replace(prepared, plan=_shuffled(prepared.plan, num_engines)))
    assert summary.exit_code == 0, summary.render()
    again = label(drill.prepare(*more))
    assert again.segments["recorded_earlier"] == again.segments["planned"], "the plan's own order, nothing done again"
    assert_equal_labels(drill.merged(), undisturbed.labels)


def test_a_store_that_fails_one_request_in_ten_gives_the_same_labels(cluster, undisturbed, s3, tmp_path):
    dataset = s3.upload(undisturbed.dataset, "drill/videos")
    drill = Drill(dataset, undisturbed.checkpoint, s3.url("drill/out"), TEN)
    with ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": s3.environment}):
        failed_before = s3.failures
        with s3.fail(every=10):
            summary = label(drill.prepare())
        assert s3.failures > failed_before + 10
    assert summary.exit_code == 0, summary.render()
    assert_equal_labels(drill.merged(), undisturbed.labels)
    assert_conserved(drill, s3.environment)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batch_sizes_change_nothing_in_one_process(undisturbed, tmp_path, batch_size):
    drill = Drill(undisturbed.dataset, undisturbed.checkpoint, tmp_path / "out", TEN)
    prepared = drill.prepare()
    run_without_ray(replace(prepared, missing=list(reversed(prepared.missing))), batch_size=batch_size)
    assert_equal_labels(drill.merged(), undisturbed.labels)


def _shuffled(plan: Plan, seed: int) -> Plan:
    segments = list(plan.segments)
    random.Random(seed).shuffle(segments)
    return replace(plan, segments=tuple(segments))
