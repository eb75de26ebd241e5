"""What damage and malice look like: strategies that turn valid inputs into nearly valid ones.

Whatever is drawn is bytes in the end, because files are what the readers get.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# Texts that lead somewhere else, that terminals, pages and templates take for more than text, and that no encoding has.
NASTY_TEXTS = (
    "",
    " ",
    ".",
    "..",
    "../outside",
    "../../outside",
    "../outside/file-000.mp4",
    "../outside/file-000.parquet",
    "/etc/passwd",
    "s3://bucket/key",
    "http://127.0.0.1:9/",
    "C:\\x",
    "a/../../outside/file-000.mp4",
    "\x00",
    "a\x00b",
    "\n",
    "\r\n--engine.seed\n5",
    "\x1b[2J\x1b]0;title\x07",
    "\u202edesrever",
    "\u2028",
    "\ud800",
    "\ud83d\ude00 \udfff",
    "{}",
    "{0}",
    "{video_key.__class__.__mro__}",
    "{episode_index:999999999}",
    "{episode_index:0>2147483648}",
    "{video_key!r:{video_key}}",
    "{chunk_index.real}",
    "{file_index!s:>99999999}",
    "%s%n",
    "{{ 7 * 7 }}",
    "<script>alert(1)</script>",
    "v3.0",
    "v2.1",
    "nan",
    "1e999",
    "x" * 300,
    "ab/" * 2000,
    "9" * 5000,
    "video",
    "float32",
)
NASTY_NUMBERS = (
    *(0, -1, 1, 2, 3, 255, 256, 65536, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30),
    *(10**400, -(10**400), 0.0, -0.0, 0.5, 1e-320, 1e-9, 1e9, 1e18, 1e300, -1e300, float("nan"), float("inf")),
    -float("inf"),
)
_NASTY_CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [{}], {"": None}, [None], [1, "a"], [[[[1]]]], {"a": {"b": {}}})
_DEEP = 100_000

scalars = st.one_of(
    st.sampled_from(NASTY_NUMBERS),
    st.sampled_from(NASTY_TEXTS),
    st.sampled_from((None, True, False)),
    st.integers(-100, 100),
    st.floats(),
    st.text(max_size=12),
)
values = st.one_of(
    scalars,
    st.sampled_from(_NASTY_CONTAINERS),
    st.lists(scalars, max_size=5),
    st.dictionaries(st.text(max_size=5), scalars, max_size=3),
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside `value`."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry)


@st.composite
def mutated_value(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value with one to three of its places replaced, removed, renamed, doubled or wrapped."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places or draw(st.integers(0, 30)) == 0:
            return draw(values)
        container, key = draw(st.sampled_from(places))
        _edit(draw, container, key)
    return value


def _edit(draw: st.DrawFn, container: Any, key: Any) -> None:
    match draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "double", "wrap", "swap"))):
        case "replace":
            container[key] = draw(values)
        case "remove":
            del container[key]
        case "rename" if isinstance(container, dict):
            container[draw(st.sampled_from(NASTY_TEXTS) | st.text(max_size=5))] = container.pop(key)
        case "double" if isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        case "wrap":
            container[key] = draw(st.sampled_from((lambda x: [x], lambda x: {"x": x}, lambda x: str(x))))(
                container[key]
            )
        case "swap" if isinstance(container, list):
            container.reverse()
        case _:
            container[key] = copy.deepcopy(container)


def to_json(value: Any) -> bytes:
    """As a program that knows no rules would write it: NaN as NaN, lone surrogates as escapes."""
    return json.dumps(value).encode()


@st.composite
def mutated_bytes(draw: st.DrawFn, valid: bytes, *, most: int = 6) -> bytes:
    """`valid` with some bytes overwritten, cut off, taken out or put in."""
    raw = bytearray(valid)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        match draw(st.sampled_from(("flip", "flip", "overwrite", "cut", "remove", "insert", "repeat"))):
            case "flip" if raw:
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                patch = draw(st.sampled_from((b"\x00" * 8, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"{", b'"')))
                raw[at : at + len(patch)] = patch
            case "cut":
                del raw[at:]
            case "remove":
                del raw[at : at + draw(st.integers(1, 64))]
            case "insert":
                raw[at:at] = draw(st.binary(max_size=16))
            case _:
                raw[at:at] = raw[at : at + draw(st.integers(1, 64))]
    return bytes(raw)


def rarities(valid: bytes) -> SearchStrategy[bytes]:
    """Whole files that are something else altogether; a parser's own limits are among them."""
    return st.sampled_from(
        (
            b"",
            b"\x00",
            b"\xef\xbb\xbf" + valid,
            valid.decode("utf-8", "replace").encode("utf-16"),
            b"[" * _DEEP,
            b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
            b"[" * 900 + b"]" * 900,
            b"1" * 5000,
            b"null",
            b"NaN",
            b'"text"',
            b"[]",
            b"{}",
            b'{"a": 1, "a": 2}',
            b"\xff\xfe\xfd",
            b"PAR1PAR1",
            valid + b"\n" + valid,
        )
    )


def json_files(valid: Any) -> SearchStrategy[bytes]:
    """Structured damage mostly; damage to the bytes, and other files altogether, now and then."""
    structured = mutated_value(valid).map(to_json)
    raw = to_json(valid)
    return st.one_of(structured, structured, structured, mutated_bytes(raw), rarities(raw), st.binary(max_size=64))


def json_lines_files(valid: Sequence[Any]) -> SearchStrategy[bytes]:
    def text(lines: Any) -> bytes:
        return b"\n".join(map(to_json, lines)) if isinstance(lines, list) else to_json(lines)

    raw = text(list(valid))
    structured = mutated_value(list(valid)).map(text)
    return st.one_of(structured, structured, structured, mutated_bytes(raw), rarities(raw), st.binary(max_size=64))


# ------------------------------------------------------------------------------------------------------ Parquet files


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def _columns(num_rows: int) -> SearchStrategy[pa.Array]:
    """Any column of so many rows, most of them of a type that nobody expects there."""

    def of(kind: pa.DataType, entries: SearchStrategy[Any]) -> SearchStrategy[pa.Array]:
        nullable = st.one_of(entries, entries, entries, st.none())
        column = st.lists(nullable, min_size=num_rows, max_size=num_rows)
        return column.map(lambda chosen: pa.array(chosen, type=kind))

    integers = st.sampled_from((-(2**63), -1, 0, 1, 2, 5, 2**31, 2**53, 2**63 - 1)) | st.integers(-3, 40)
    numbers = st.sampled_from((0.0, -1.0, 0.1, 1.0, 1e9, 1e300, float("nan"), float("inf"))) | st.floats(-5, 5)
    texts = st.sampled_from([text for text in NASTY_TEXTS if text.isprintable()]) | st.text(
        st.characters(exclude_categories=["Cs"]), max_size=6
    )
    return st.one_of(
        of(pa.int64(), integers),
        of(pa.float64(), numbers),
        of(pa.string(), texts),
        of(pa.binary(), st.binary(max_size=6)),
        of(pa.bool_(), st.booleans()),
        of(pa.null(), st.none()),
        of(pa.list_(pa.string()), st.lists(texts, max_size=3)),
        of(pa.list_(pa.int64()), st.lists(integers, max_size=3)),
        of(pa.list_(pa.float32(), 2), st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2)),
        of(pa.list_(pa.list_(pa.float64())), st.lists(st.lists(numbers, max_size=2), max_size=2)),
        of(pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": st.integers(0, 3)})),
        of(pa.timestamp("s"), st.integers(0, 2**33)),
        of(pa.duration("us"), st.integers(0, 2**33)),
        of(pa.decimal128(20, 2), st.integers(-9, 9)),
        of(pa.uint64(), st.sampled_from((0, 1, 2**64 - 1))),
        of(pa.dictionary(pa.int32(), pa.string()), texts),
        of(pa.map_(pa.string(), pa.int64()), st.just([("a", 1)])),
        of(pa.float16(), st.just(1.0)),
        of(pa.date32(), st.integers(0, 9)),
    )


@st.composite
def mutated_table(draw: st.DrawFn, valid: pa.Table) -> pa.Table:
    """A table with columns retyped, removed, renamed or doubled, and rows repeated, reordered or missing."""
    table = valid
    for _ in range(draw(st.integers(1, 3))):
        if not table.num_columns:
            break
        at = draw(st.integers(0, table.num_columns - 1))
        name = table.column_names[at]
        match draw(st.sampled_from(("retype", "retype", "retype", "remove", "rename", "double", "rows", "rows"))):
            case "retype":
                table = table.set_column(at, name, draw(_columns(table.num_rows)))
            case "remove":
                table = table.remove_column(at)
            case "rename":
                new = draw(st.sampled_from(table.column_names) | st.sampled_from(("", "x", "../outside")))
                table = table.rename_columns([new if i == at else old for i, old in enumerate(table.column_names)])
            case "double":
                table = table.append_column(name, table.column(at))
            case _:
                rows = draw(st.lists(st.integers(0, max(0, table.num_rows - 1)), max_size=table.num_rows + 2))
                table = table.take(pa.array(rows if table.num_rows else [], pa.int64()))
    return table


def parquet_files(valid: pa.Table) -> SearchStrategy[bytes]:
    def encoded(table: pa.Table) -> bytes:
        try:
            return to_parquet(table)
        except (pa.ArrowException, ValueError):  # what cannot be written at all is no input
            return to_parquet(valid.slice(0, 1))

    raw = to_parquet(valid)
    structured = mutated_table(valid).map(encoded)
    footer = mutated_bytes(raw[-1500:], most=3).map(lambda tail: raw[:-1500] + tail)
    return st.one_of(structured, structured, structured, footer, mutated_bytes(raw), rarities(raw))


# -------------------------------------------------------------------------------------------------------- whole inputs

Files = Mapping[str, bytes]


def with_file(valid: Files, name: str, changed: SearchStrategy[bytes]) -> SearchStrategy[dict[str, bytes]]:
    """All valid files, and one that was damaged."""
    return changed.map(lambda content: {**valid, name: content})
