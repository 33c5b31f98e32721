"""Directories of zip archives: places of the entries equal those of `zipfile`."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest
from hypothesis import given, settings, strategies as st

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.archives import read_directory

CONTENT = bytes(range(100))


def archive(entries: dict[str, bytes], comment: bytes = b"", *, wide: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.comment = comment
        for name, content in entries.items():
            with target.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as entry:
                entry.write(content)
    return file.getvalue()


def read(content: bytes) -> dict[str, bytes]:
    places = read_directory(io.BytesIO(content), "x.pth")
    return {n: content[p.position : p.position + p.length] for n, p in places.items()}


@given(
    entries=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\\:"), min_size=1, max_size=9),
        st.binary(max_size=50),
        max_size=5,
    ),
    # zipfile takes the last signature of an end record for one, even inside a comment.
    comment=st.binary(max_size=30).filter(lambda comment: b"PK\5\6" not in comment),
    wide=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_entries_equal_those_of_zipfile(
    entries: dict[str, bytes], comment: bytes, wide: bool
) -> None:
    content = archive(entries, comment, wide=wide)
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        expected = {info.filename: source.read(info) for info in source.infolist()}
    assert read(content) == expected


def test_numbers_of_64_bits_are_read_from_the_extra_fields() -> None:
    """As in archives of more than 4 GiB."""
    content = archive({"a": CONTENT, "b": CONTENT})
    start, end = content.index(b"PK\1\2"), content.rindex(b"PK\5\6")
    second = content.index(b"PK\1\2", start + 1)
    position = struct.unpack_from("<L", content, second + 42)[0]
    entry = bytearray(content[second:end])
    entry[20:28] = b"\xff" * 8  # sizes
    entry[42:46] = b"\xff" * 4  # position
    extra = struct.pack("<2HQ", 9, 8, 0) + struct.pack("<2H3Q", 1, 24, 100, 100, position)
    entry[30:32] = struct.pack("<H", len(extra))
    directory = content[start:second] + bytes(entry) + extra
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    found = read(content[:start] + directory + record + locator + last)
    assert found == {"a": CONTENT, "b": CONTENT}


@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_damaged_archive_is_read_within_the_file_or_refused(position: float, byte: int) -> None:
    content = bytearray(archive({"x/data.pkl": CONTENT, "x/data/0": CONTENT}))
    content[int(position * len(content))] = byte
    try:
        places = read_directory(io.BytesIO(content), "x.pth")
    except CheckpointError:
        return
    assert sum(place.length for place in places.values()) <= len(content)
    assert all(place.position + place.length <= len(content) for place in places.values())


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PK" + bytes(100), archive({"a": b"b"})[:-9]])
def test_archive_without_directory_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth is truncated or damaged"):
        read_directory(io.BytesIO(content), "x.pth")
