"""Digests: the same content is the same name, any other content another one."""

from __future__ import annotations

import pytest

from pipeline.fingerprint import digest, digest_file

BLOCK_BYTES = 64 * 1024
NUM_BLOCKS_READ_WHOLE = 65


def test_digest_ignores_key_order_and_nothing_else():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    others = [{"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": "1"}, {"a": None}, {}]
    assert len({digest(value) for value in others}) == len(others)


def test_digest_is_the_same_in_every_version():
    """Keys of records are made of it: this value must never change."""
    assert digest({"b": [1, 2.5], "a": "x"}) == "66efddae6a97500318e4c6cdc4bc04149f340a165a7ef2d830393048b67b7a31"


def test_digest_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="JSON"):
        digest({"fps": float("nan")})


@pytest.mark.parametrize("num_bytes", [0, 1, 1000, NUM_BLOCKS_READ_WHOLE * BLOCK_BYTES])
def test_of_a_small_file_every_byte_counts(tmp_path, num_bytes):
    path = tmp_path / "file"
    content = bytearray(num_bytes)
    path.write_bytes(content)
    seen = {digest_file(path)}
    for position in {0, num_bytes // 3, num_bytes - 1} - {-1} if num_bytes else set():
        changed = content.copy()
        changed[position] ^= 1
        path.write_bytes(changed)
        seen.add(digest_file(path))
    path.write_bytes(content + b"\0")
    seen.add(digest_file(path))
    assert len(seen) == 2 + len({0, num_bytes // 3, num_bytes - 1} if num_bytes else ())
    path.write_bytes(content)
    assert digest_file(path) in seen


def test_of_a_large_file_size_ends_and_every_long_stretch_count(tmp_path):
    path = tmp_path / "file"
    size = 130 * BLOCK_BYTES + 77
    content = bytearray(size)

    def digest_with(stretch: slice | None = None, extra: bytes = b"") -> str:
        changed = content.copy()
        if stretch is not None:
            changed[stretch] = b"\1" * len(changed[stretch])
        path.write_bytes(bytes(changed) + extra)
        return digest_file(path)

    original = digest_with()
    assert digest_with() == original
    variants = {
        "longer": digest_with(extra=b"\0"),
        "first byte": digest_with(slice(0, 1)),
        "last byte": digest_with(slice(size - 1, size)),
    }
    gap = -(-(size - BLOCK_BYTES) // 64)  # between the starts of two sampled blocks
    for number, start in enumerate(range(gap, size - gap, size // 9)):
        variants[f"stretch {number}"] = digest_with(slice(start, start + gap))
    assert original not in variants.values()
    assert len(set(variants.values())) == len(variants)


def test_a_file_is_known_by_content_and_not_by_name(tmp_path):
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "b")
