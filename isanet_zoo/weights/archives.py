"""The uncompressed zip archives of `torch.save`: names of the entries, and their place in the file.

Nothing is extracted. An archive is refused if its entries are compressed, overlap, exceed the file
or share a name, so that no more can be read from it than the file has bytes.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.pickles import Span

MAX_DIRECTORY = 1 << 24  # bytes; enough for some 100,000 entries

END = struct.Struct("<4s4H2LH")  # of the archive: its directory's number of entries, size, position
LOCATOR = struct.Struct("<4sLQL")  # of the same record with 64-bit numbers
END_64 = struct.Struct("<4sQ2H2L4Q")
ENTRY = struct.Struct("<4s6H3L5H2L")  # in the directory
LOCAL = struct.Struct("<4s5H3L2H")  # before the content of an entry
LARGE = 0xFFFFFFFF  # stands for a number that is among the extra fields


def read_directory(file: BinaryIO, name: str) -> dict[str, Span]:
    """Return the place of each entry's content in a zip archive.

    Raises:
        CheckpointError: the archive is truncated or damaged, or is not as torch writes it.
    """
    size = file.seek(0, os.SEEK_END)
    try:
        start, length = _find_directory(file, size)
        if length > min(MAX_DIRECTORY, size - start):
            raise ValueError("its table of contents is too long")
        file.seek(start)
        entries = _parse(file.read(length))
        return _locate(file, entries, start)
    except (ValueError, struct.error) as error:
        reason = str(error) if type(error) is ValueError else "its table of contents is damaged"
        raise CheckpointError(f"{name} is truncated or damaged: {reason}; fetch it again") from (
            error
        )


class _Entry(NamedTuple):
    name: str
    position: int
    size: int


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return position and length of the table of contents."""
    file.seek(max(0, size - END.size - 0xFFFF))  # a comment may follow
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("its table of contents is missing")
    _, disk, _, _, _, length, start, _ = END.unpack_from(tail, at)
    parts = 1
    if at >= LOCATOR.size and tail[at - LOCATOR.size :].startswith(b"PK\6\7"):
        _, _, position, parts = LOCATOR.unpack_from(tail, at - LOCATOR.size)
        file.seek(min(position, size))
        magic, *_, length, start = END_64.unpack(file.read(END_64.size))
        if magic != b"PK\6\6":
            raise ValueError("its table of contents is missing")
    if disk != 0 or parts != 1:
        raise ValueError("it is one of several parts")
    return start, length


def _parse(directory: bytes) -> list[_Entry]:
    """Return the entries of a table of contents, in the order of their positions."""
    entries, at = [], 0
    while at < len(directory):
        magic, _, _, flags, method, _, _, _, packed, size, named, extra, comment, *_, position = (
            ENTRY.unpack_from(directory, at)
        )
        if magic != b"PK\1\2":
            raise ValueError("its table of contents is damaged")
        at += ENTRY.size
        name = directory[at : at + named].decode("utf-8", "replace")
        at += named
        size, packed, position = _widen([size, packed, position], directory[at : at + extra])
        if flags & 1 or method != 0 or packed != size:
            raise ValueError("its entries are compressed or encrypted, which torch never does")
        entries.append(_Entry(name, position, size))
        at += extra + comment
    return sorted(entries, key=lambda entry: entry.position)


def _widen(numbers: list[int], extra: bytes) -> list[int]:
    """Return the numbers with those that need 64 bits taken from the extra fields."""
    while LARGE in numbers and extra:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = struct.unpack_from(f"<{numbers.count(LARGE)}Q", extra, 4)
            for number in wide:
                numbers[numbers.index(LARGE)] = number
            break
        extra = extra[4 + length :]
    return numbers


def _locate(file: BinaryIO, entries: list[_Entry], end: int) -> dict[str, Span]:
    """Return the place of each entry's content, which must be before the next entry."""
    spans: dict[str, Span] = {}
    ends = [*(entry.position for entry in entries), end][1:]
    for entry, following in zip(entries, ends, strict=True):
        file.seek(entry.position)
        magic, *_, named, extra = LOCAL.unpack(file.read(LOCAL.size))
        position = entry.position + LOCAL.size + named + extra
        if magic != b"PK\3\4" or position + entry.size > following or entry.name in spans:
            raise ValueError("its entries overlap or exceed the file")
        spans[entry.name] = Span(position, entry.size, is_text=False)
    return spans
