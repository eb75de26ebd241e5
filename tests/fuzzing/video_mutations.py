"""Damage to video files: promises in MP4 headers that the file does not keep, and files of quite another format."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# Boxes that only hold boxes, and how many bytes of their own come first.
_PARENTS = {b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"edts": 0, b"stsd": 8, b"avc1": 78}
_NUMBERS = (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def boxes(raw: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start of its content, end) of every box of an MP4 file, inner ones too."""
    end = len(raw) if end is None else end
    while start + 8 <= end:
        size, kind = int.from_bytes(raw[start : start + 4], "big"), raw[start + 4 : start + 8]
        if size < 8:
            return
        yield kind, start + 8, start + size
        if kind in _PARENTS:
            yield from boxes(raw, start + 8 + _PARENTS[kind], start + size)
        start += size


def with_frame_size(raw: bytes, width: int, height: int) -> bytes:
    """An MP4 whose track and codec headers promise this size (pixels, at most 65535)."""
    patched = bytearray(raw)
    for kind, start, end in boxes(raw):
        if kind == b"tkhd":
            patched[end - 8 : end - 4] = (width << 16).to_bytes(4, "big")
            patched[end - 4 : end] = (height << 16).to_bytes(4, "big")
        if kind == b"avc1":
            patched[start + 24 : start + 26] = width.to_bytes(2, "big")
            patched[start + 26 : start + 28] = height.to_bytes(2, "big")
    return bytes(patched)


@st.composite
def _patched_numbers(draw: st.DrawFn, raw: bytes) -> bytes:
    """Numbers in headers replaced: durations, counts, sizes, offsets, rates."""
    patched = bytearray(raw)
    headers = [(start, min(end, start + 120)) for kind, start, end in boxes(raw) if kind not in (*_PARENTS, b"mdat")]
    for _ in range(draw(st.integers(1, 4))):
        start, end = draw(st.sampled_from(headers))
        if end - start >= 4:
            at = start + 4 * draw(st.integers(0, (end - start) // 4 - 1))
            number = draw(st.sampled_from(_NUMBERS) | st.integers(0, 2**32 - 1))
            patched[at : at + 4] = number.to_bytes(4, "big")
    return bytes(patched)


def patched_headers(raw: bytes) -> SearchStrategy[bytes]:
    sides = st.sampled_from((0, 1, 2, 15, 16, 64, 4096, 8192, 16384, 32767, 65535))
    sizes = st.builds(lambda width, height: with_frame_size(raw, width, height), sides, sides)
    return st.one_of(sizes, _patched_numbers(raw), _patched_numbers(raw))


def other_containers(raw: bytes) -> SearchStrategy[bytes]:
    """Lists of other files and addresses, which FFmpeg's demuxers would follow, in a file that is named as a video."""
    names = ("../outside/file-000.mp4", "../../outside/file-000.mp4", "b.mp4", "http://127.0.0.1:9/a.ts", "/etc/passwd")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
    lists = (
        playlist,
        "ffconcat version 1.0\nfile {}\n",
        "ffconcat version 1.0\nfile 'file:{}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        "<Representation><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "P6\n60000 60000\n255\n",
        "RIFF\xff\xff\xff\x7fAVI LIST",
        "\x1aE\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
    )
    texts = st.builds(
        lambda text, name: text.format(name).encode("latin-1"), st.sampled_from(lists), st.sampled_from(names)
    )
    return st.one_of(texts, texts.map(lambda t: t + raw))
