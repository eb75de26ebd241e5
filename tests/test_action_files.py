"""Action files: what is written comes back bit for bit, and whatever is no action is refused by name and place."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.action_files import read_action_file, write_action_file
from pipeline.errors import ActionFileError

ROWS = [[0.5, -1.0], [0.25, 2.0], [1e-3, 0.0]]


def written(tmp_path, content) -> str:
    """A file with this text, or with this value as JSON."""
    path = tmp_path / "actions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_float32_comes_back_bit_for_bit(tmp_path):
    """Any bit pattern that is a finite number: signed zeros, subnormals and the largest ones among them."""
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint32)
    values = np.append(bits.view(np.float32), np.float32([0.0, -0.0, 1e-45, 3.4028235e38, 0.1]))
    values = values[np.isfinite(values)]
    actions = values[: values.size // 7 * 7].reshape(-1, 7)
    write_action_file(tmp_path / "a.json", actions)
    again = read_action_file(tmp_path / "a.json", raw_action_dim=7)
    assert again.dtype == np.float32
    assert np.array_equal(again.view(np.uint32), actions.view(np.uint32))


def test_the_file_is_the_format_that_others_read(tmp_path):
    write_action_file(tmp_path / "a.json", np.array(ROWS), about={"names": ["x", "grün"], "units": "metres"})
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (content["shape"], content["dtype"]) == ([3, 2], "float32")
    assert content["names"] == ["x", "grün"]
    np.testing.assert_array_equal(np.array(content["data"], np.float32), np.array(ROWS, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_writing_replaces_a_file_at_once_and_a_refusal_leaves_it(tmp_path):
    write_action_file(tmp_path / "a.json", np.ones((2, 2)))
    before = (tmp_path / "a.json").read_text()
    for bad in (np.full((2, 2), np.nan), np.full((2, 2), 1e39), np.ones(2), np.ones((0, 2)), np.ones((2, 0))):
        with pytest.raises(ActionFileError, match="nothing is written"):
            write_action_file(tmp_path / "a.json", bad)
    assert (tmp_path / "a.json").read_text() == before
    write_action_file(tmp_path / "a.json", np.zeros((1, 3)))
    assert read_action_file(tmp_path / "a.json", raw_action_dim=3).tolist() == [[0, 0, 0]]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content",
    [
        {"shape": [3, 2], "dtype": "float32", "data": ROWS},
        {"shape": [3, 2], "dtype": "float32", "data": ROWS, "names": ["x", "y"], "units": 7},
        {"data": ROWS},
        {"action_chunks": [ROWS]},
        {"action_chunks": [ROWS[:1], ROWS[1:]]},
        {"action_chunks": [[row] for row in ROWS], "fps": 15},
    ],
)
def test_both_formats_are_read_and_chunks_follow_each_other(tmp_path, content):
    actions = read_action_file(written(tmp_path, content), raw_action_dim=2)
    assert (actions.dtype, actions.shape) == (np.float32, (3, 2))
    np.testing.assert_array_equal(actions, np.array(ROWS, np.float32))


def test_whole_numbers_are_numbers(tmp_path):
    actions = read_action_file(written(tmp_path, {"data": [[1, -2], [3, 4.5]]}), raw_action_dim=2)
    assert actions.tolist() == [[1, -2], [3, 4.5]]


MALFORMED = {
    "empty file": ("", "must be JSON"),
    "cut off": ('{"data": [[0.5, 1.0], [0.2', "must be JSON"),
    "not text": ("\x00\x01", "must be JSON"),
    "nested too deeply": ("[" * 200_000, "must be JSON"),
    "a list": (ROWS, "found a JSON list"),
    "a number": (3, "found a JSON int"),
    "neither format": ({"actions": ROWS}, "has neither 'data' nor 'action_chunks', but 'actions'"),
    "empty object": ({}, "has neither 'data' nor 'action_chunks', but no key"),
    "both formats": ({"data": ROWS, "action_chunks": [ROWS]}, "has both 'data' and 'action_chunks'"),
    "no rows": ({"shape": [0, 2], "data": []}, "data must be a list of rows, found an empty one"),
    "empty rows": ({"data": [[], []]}, r"data\[0\] must be a list of numbers, found an empty one"),
    "no chunks": ({"action_chunks": []}, "action_chunks must be a list of chunks, found an empty one"),
    "empty chunk": ({"action_chunks": [ROWS, []]}, r"action_chunks\[1\] must be a list of rows, found an empty one"),
    "flat data": ({"shape": [1, 2], "data": [1.0, 2.0]}, r"data\[0\] must be a list of numbers, found a float"),
    "rows without chunks": (
        {"action_chunks": ROWS},
        r"action_chunks\[0\]\[0\] must be a list of numbers, found a float",
    ),
    "data is text": ({"data": "[[1, 2]]"}, "data must be a list of rows, found a str"),
    "data is null": ({"data": None}, "data must be a list of rows, found a NoneType"),
    "other shape": ({"shape": [2, 3], "data": ROWS}, r"shape says \[2, 3\], data has \[3, 2\]"),
    "rows lost": ({"shape": [4, 2], "data": ROWS}, r"shape says \[4, 2\], data has \[3, 2\]"),
    "shape is none": ({"shape": "3x2", "data": ROWS}, "shape says 3x2"),
    "another dtype": ({"dtype": "int32", "data": ROWS}, "dtype must be one of .* found 'int32'"),
    "dtype is a list": ({"dtype": ["float32"], "data": ROWS}, "dtype must be one of"),
    "ragged": ({"data": [[1, 2], [1, 2], [1]]}, r"found 2 numbers in the first and 1 in data\[2\]"),
    "ragged chunks": (
        {"action_chunks": [ROWS, [[1, 2, 3]]]},
        r"2 numbers in the first and 3 in action_chunks\[1\]\[0\]",
    ),
    "too wide": ({"data": [[1, 2, 3]]}, "expected actions of width 2, found 3"),
    "too narrow": ({"action_chunks": [[[1]]]}, "expected actions of width 2, found 1"),
    "nan": ('{"data": [[1, 2], [3, NaN]]}', r"data\[1\]\[1\] \(row 1, column 1\) is nan"),
    "nan in a chunk": (
        '{"action_chunks": [[[1, 2]], [[3, 4], [NaN, NaN]]]}',
        r"action_chunks\[1\]\[1\]\[0\] \(row 2, column 0\) is nan.* 2 such values",
    ),
    "infinity": ('{"data": [[-Infinity, 2]]}', r"\(row 0, column 0\) is -inf"),
    "too large for a double": ('{"data": [[1e999, 2]]}', r"\(row 0, column 0\) is inf"),
    "too large for float32": ('{"data": [[2, 1e39]]}', r"\(row 0, column 1\) is 1e\+39"),
    "an integer too large": ('{"data": [[2, ' + "9" * 400 + "]]}", r"\(row 0, column 1\) is 9999"),
    "booleans": ({"data": [[1, True]]}, r"data\[0\]\[1\] must be a number, found true"),
    "strings": ({"data": [["1", 2]]}, r"data\[0\]\[0\] must be a number, found \"1\""),
    "null": ({"data": [[1, 2], [None, 2]]}, r"data\[1\]\[0\] must be a number, found null"),
    "deeper": ({"data": [[[1], 2]]}, r"data\[0\]\[0\] must be a number, found \[1\]"),
}


@pytest.mark.parametrize(("content", "message"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_action_file_is_refused(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(ActionFileError, match=message) as refusal:
        read_action_file(path, raw_action_dim=2)
    assert str(refusal.value).startswith(path), "the file is named"


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"data": [[1.0, 2.0]], "by": "\xff"}')
    with pytest.raises(ActionFileError, match="must be JSON"):
        read_action_file(tmp_path / "a.json", raw_action_dim=2)


@pytest.mark.parametrize("name", ["nothing.json", "."])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ActionFileError, match="cannot read the action file"):
        read_action_file(tmp_path / name, raw_action_dim=2)
