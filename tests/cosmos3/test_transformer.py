"""The transformer's pieces against closed forms; that they add up is what `test_parity.py` shows."""

from __future__ import annotations

import math

import pytest
import torch
from checkpoint_edits import WEIGHTS
from request_factory import make_request, relative_error
from safetensors import safe_open

from pipeline.cosmos3.transformer import DomainLinear, PackedSequences


@pytest.fixture(scope="module")
def model(engine):
    return engine.transformer


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def test_parameter_names_are_the_checkpoints(model, tiny_checkpoint):
    with safe_open(tiny_checkpoint / "transformer" / WEIGHTS, "pt") as file:
        assert dict(model.named_parameters()).keys() == {*file.keys()} - {"lm_head.weight", "norm.weight"}


def test_frequency_slots_turn_with_time_row_and_column_in_turn(model):
    """head_dim 32 has 16 slots; with axes (8, 4, 4), 1, 4, 7, 10 are the row's, 2, 5, 8, 11 the column's."""
    t, row, column = 15042.4, 3.0, 7.0
    rotary = model.rotary(torch.tensor([[t], [row], [column]]))
    position = [row if j in (1, 4, 7, 10) else column if j in (2, 5, 8, 11) else t for j in range(16)]
    fp32 = torch.tensor(position) / 5e6 ** (torch.arange(0, 32, 2, dtype=torch.float32) / 32)
    exact = torch.tensor([p * 5e6 ** (-2 * j / 32) for j, p in enumerate(position)], dtype=torch.float64)
    angles = torch.cat((fp32, fp32))
    assert rotary.cos.shape == rotary.sin.shape == (1, 1, 32)
    assert torch.allclose(angles[:16].double(), exact, rtol=1e-5)
    # At 15,000 rad one rounding of the angle is 1e-3.
    assert torch.allclose(rotary.cos[0, 0], angles.cos(), atol=3e-3)
    assert torch.allclose(rotary.sin[0, 0], angles.sin(), atol=3e-3)


def test_rotation_pairs_the_two_halves(model):
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), which keeps lengths and depends on distances only."""
    q, k = torch.randn(2, 1, 1, 32, generator=torch.Generator().manual_seed(0))

    def rotate(x, position):
        return model.rotary(torch.full((3, 1), position)).rotate(x)

    angle = (5.0 / 5e6 ** (torch.arange(16) / 16)).view(1, 1, 16)
    x1, x2 = q.chunk(2, dim=-1)
    expected = torch.cat((x1 * angle.cos() - x2 * angle.sin(), x2 * angle.cos() + x1 * angle.sin()), dim=-1)
    assert torch.allclose(rotate(q, 5.0), expected, atol=1e-5)
    assert torch.allclose((rotate(q, 9.0) * rotate(k, 4.0)).sum(), (rotate(q, 6.0) * rotate(k, 1.0)).sum(), atol=1e-4)


@pytest.mark.parametrize("timestep", [0, 1, 624, 999])
def test_timestep_embedding_is_the_mlp_of_cosines_then_sines(model, timestep):
    embedder = model.time_embedder
    angles = torch.tensor([0.001 * timestep * math.exp(-math.log(10000) * j / 128) for j in range(128)])
    hidden = torch.nn.functional.silu(embedder.linear_1(torch.cat((angles.cos(), angles.sin()))))
    assert torch.allclose(model.embed_timestep(torch.tensor(timestep)), embedder.linear_2(hidden), atol=1e-5)


def test_domain_rows_are_matrices_of_in_by_out():
    """fc.weight[domain] is [in, out], in-major; each row goes through its own domain's, and order is kept."""
    linear = DomainLinear(2, 3, num_domains=4)
    torch.nn.init.normal_(linear.fc.weight)
    torch.nn.init.normal_(linear.bias.weight)
    x, domains = torch.randn(5, 2), [3, 0, 3, 1, 0]
    rows = {d: torch.tensor([i for i, other in enumerate(domains) if other == d]) for d in set(domains)}
    expected = [
        [sum(x[i, a] * linear.fc.weight[d, 3 * a + b] for a in range(2)) + linear.bias.weight[d, b] for b in range(3)]
        for i, d in enumerate(domains)
    ]
    assert torch.allclose(linear(x, rows), torch.tensor(expected), atol=1e-6)


def test_text_is_causal_so_a_prefix_has_the_same_keys_and_values(model):
    ids = make_request(1, num_text_tokens=30).text_ids
    whole, prefix = model.encode_text(ids), model.encode_text(ids[:11])
    assert (whole.num_tokens, prefix.num_tokens, len(whole.keys)) == (30, 11, 3)
    for part, full in zip((*prefix.keys, *prefix.values), (*whole.keys, *whole.values), strict=True):
        assert relative_error(part, full[:11]) < 1e-5
    assert whole.num_bytes == 3 * 2 * 30 * 2 * 32 * 4  # layers, keys and values, tokens, heads, head dim, fp32


def _random_pack(model, lengths, read_lengths):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    tokens = torch.randn(total, 64, generator=generator)
    reads, start = [], 0
    for length, count in zip(lengths, read_lengths, strict=True):
        reads.append(start + torch.randperm(length, generator=generator)[:count].sort().values)
        start += length
    texts = [model.encode_text(range(10 + index, 20 + 3 * index)) for index in range(len(lengths))]
    rotary = model.rotary(torch.rand(3, total, generator=generator) * 50)
    return tokens, PackedSequences(texts, rotary, lengths, torch.cat(reads), read_lengths)


@pytest.mark.parametrize("read_lengths", [[3, 1, 4], [9, 5, 12], [1, 0, 2]])
def test_reading_some_rows_equals_reading_them_all(model, read_lengths):
    """The last layer is computed for the rows that are read only; the others still serve as keys and values."""
    tokens, packed = _random_pack(model, [9, 5, 12], read_lengths)
    everything = PackedSequences(packed.text, packed.rotary, packed.lengths, torch.arange(26), packed.lengths)
    assert relative_error(model(tokens, packed), model(tokens, everything)[packed.read_rows_M]) < 1e-5


def test_sequences_of_a_pack_do_not_see_each_other(model):
    """Changing every token and the text of one sequence leaves the others' states alone, and changes its own."""
    tokens, packed = _random_pack(model, [9, 5, 12], [9, 5, 12])
    before = model(tokens, packed)
    changed = tokens.clone()
    changed[9:14] += 1
    texts = [packed.text[0], model.encode_text([1, 2, 3]), packed.text[2]]
    after = model(changed, PackedSequences(texts, packed.rotary, packed.lengths, torch.arange(26), packed.lengths))
    others = torch.cat((torch.arange(9), torch.arange(14, 26)))
    assert relative_error(after[others], before[others]) < 1e-5
    assert relative_error(after[9:14], before[9:14]) > 0.1


def test_every_token_of_a_sequence_sees_every_other(model):
    """Generation is bidirectional: the last token moves the first."""
    tokens, packed = _random_pack(model, [9, 5, 12], [9, 5, 12])
    changed = tokens.clone()
    changed[8] += 1
    assert relative_error(model(changed, packed)[:1], model(tokens, packed)[:1]) > 1e-3
