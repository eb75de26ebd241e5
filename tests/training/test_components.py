"""A cell's components: unit variance, uncorrelated, and the same whether a still cell is one frame or four."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.components import Components


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """A few patterns that come and go, and a little noise: [6, 3, 9, 32, 48]."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(5, 3, 1, 32, 48, generator=generator)
    strengths = torch.randn(6, 5, 1, 9, 1, 1, generator=generator)
    return (strengths * patterns).sum(1) + 0.1 * torch.randn(6, 3, 9, 32, 48, generator=generator)


def test_components_have_unit_variance_and_are_uncorrelated(clips):
    later = Components.of([clips], 4).code(clips)
    assert later.shape == (6, 4, 3, 2, 3)
    values = later.movedim(1, -1).flatten(0, 3)
    torch.testing.assert_close(values.T @ values / len(values), torch.eye(4), atol=2e-3, rtol=0)


def test_the_largest_come_first_and_keep_the_most(clips):
    few, many = (Components.of([clips], count) for count in (2, 4))
    torch.testing.assert_close(few.code(clips), many.code(clips)[:, :2], atol=1e-4, rtol=1e-4)


def test_what_stands_still_has_one_code_at_all_times(clips):
    still = clips[:, :, :1].expand(-1, -1, 9, -1, -1)
    code = Components.of([clips], 4).code(still)
    torch.testing.assert_close(code, code[:, :, :1].expand_as(code))


def test_a_code_belongs_to_its_cell(clips):
    components = Components.of([clips], 4)
    moved = clips.clone()
    moved[:, :, 5:, 16:, :16] += 1.0  # the last latent frame's cell in the second row
    changed = (components.code(moved) - components.code(clips)).abs().amax((0, 1)) > 1e-3
    assert changed.nonzero().tolist() == [[2, 1, 0]]
