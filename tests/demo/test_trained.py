"""The checkpoint that is shipped: small, complete, in the public layout, and with what its answers' units need."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.actions import load_normalizer
from pipeline.cosmos3.config import read_checkpoint_config
from pipeline.demo import STATISTICS, TRAINED
from pipeline.demo.choreography import true_actions
from pipeline.demo.world import play_world


def test_it_takes_ten_megabytes_at_most():
    sizes = {path.relative_to(TRAINED): path.stat().st_size for path in TRAINED.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 10_000_000, sizes


def test_it_is_in_the_public_layout():
    about = json.loads((TRAINED / "model_index.json").read_text())
    assert about["_class_name"] == "Cosmos3OmniPipeline"
    assert read_checkpoint_config(TRAINED).transformer.action_dim == 64
    assert (TRAINED / "README.md").read_text().startswith("---\n"), "a model card, as the hub reads it"


@pytest.mark.parametrize("method", ["quantile", "meanstd", "minmax"])
def test_its_statistics_fit_the_world(method):
    normalizer = load_normalizer(method, STATISTICS, 10)
    actions = np.concatenate([true_actions(recording)[:-1] for recording in play_world(2, 20, held_out=True)])
    assert normalizer.share_clamped(actions) < 0.05
    assert np.abs(normalizer.normalize(actions)).mean() > 0.05
