"""Failures: what was written is read back as it was, whatever it says, and damage is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome_samples import OUTCOME as SAMPLE

from pipeline.errors import OutputError
from pipeline.outputs.failures import FailureStore

OUTCOME = replace(
    SAMPLE, kind="quarantined", error_type="ProcessDied", attempts=3, signal="SIGSEGV", last_words="Segmentation fault"
)
TEXTS = st.text(alphabet=st.characters(exclude_categories=()), max_size=50)  # lone surrogates, too


@pytest.fixture
def store(output_dir) -> FailureStore:
    return FailureStore(output_dir)


def test_what_was_written_is_read_back_and_removed(store):
    others = [replace(OUTCOME, key=f"{number:064x}", kind="failed", signal="", exit_code=number) for number in range(5)]
    assert store.keys() == set()
    for outcome in (OUTCOME, *others):
        store.write(outcome)
    assert store.keys() == {OUTCOME.key, *(outcome.key for outcome in others)}
    assert store.read([others[3].key, OUTCOME.key, others[0].key]) == [others[3], OUTCOME, others[0]]
    store.remove([OUTCOME.key, others[0].key, "never there"])
    assert store.keys() == {outcome.key for outcome in others[1:]}
    assert store.read([OUTCOME.key, others[1].key]) == [others[1]]


def test_the_newest_outcome_of_a_key_stays(store):
    store.write(OUTCOME)
    store.write(replace(OUTCOME, attempts=4))
    assert store.read(store.keys()) == [replace(OUTCOME, attempts=4)]


@given(error=TEXTS, last_words=TEXTS)
@settings(max_examples=50, deadline=None)
def test_texts_are_stored_as_they_are_and_in_ascii(tmp_path_factory, error, last_words):
    store = FailureStore(tmp_path_factory.mktemp("texts"))
    outcome = replace(OUTCOME, error=error, last_words=last_words)
    store.write(outcome)
    assert store.read([OUTCOME.key]) == [outcome]
    content = store.path(OUTCOME.key).read_text("ascii")
    assert all(letter.isprintable() or letter == "\n" for letter in content)


@pytest.mark.parametrize("letter", ["x", "é", "漢", "🤖", "\udc80", "\x1b"])
@pytest.mark.parametrize("shift", range(4))
def test_long_texts_lose_what_is_least_telling(tmp_path, letter, shift):
    store = FailureStore(tmp_path)
    text = "a" * shift + 5000 * letter + "z" * shift
    store.write(replace(OUTCOME, error=text, last_words=text))
    (found,) = store.read([OUTCOME.key])
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    assert text.startswith(found.error.removesuffix(f" … ({num_bytes} bytes in all)"))
    assert text.endswith(found.last_words)
    for kept in (found.error, found.last_words):
        assert 4090 <= len(kept.encode("utf-8", "surrogatepass")) <= 4096


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        *(
            json.dumps(vars(OUTCOME) | change).encode()
            for change in (
                {"key": "cd" * 32},
                {"kind": "lost"},
                {"positions": [1]},
                {"positions": "ab"},
                {"attempts": True},
                {"episode_index": "3"},
                {"exit_code": 1.5},
                {"last_words": None},
            )
        ),
    ],
)
def test_a_damaged_file_is_a_typed_error_that_names_it(tmp_path, content):
    store = FailureStore(tmp_path)
    store.write(OUTCOME)
    store.path(OUTCOME.key).write_bytes(content)
    with pytest.raises(OutputError, match=OUTCOME.key):
        store.read([OUTCOME.key])


def test_what_an_interrupted_write_leaves_is_no_outcome(tmp_path):
    store = FailureStore(tmp_path)
    store.write(OUTCOME)
    (store.folder / f".{OUTCOME.key}.json.1234.partial").write_text("{")
    (store.folder / ".hidden.json").write_text("{")
    assert store.keys() == {OUTCOME.key}
