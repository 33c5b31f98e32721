"""Small hostile weight files, and a function that reads them with bounded time and memory."""

from __future__ import annotations

import functools
import io
import os
import pickle
import resource
import signal
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from isanet_zoo.weights.checkpoints import load_checkpoint, structure
from isanet_zoo.weights.containers import read_safetensors, read_state
from tests.conftest import TINY_NETWORK

MEMORY = 1 << 30  # bytes beyond those of the process after its imports
LARGE = 1 << 18  # bytes; larger files are read once
SECONDS = 20  # of CPU time for each file, on a busy machine
PATIENCE = 120  # seconds, after which a file that waits for something ends this process

SOME_KEY = b"X\x0e\0\0\0backbone_net.a"  # the pickle of a key


def archive(
    pickled: bytes, method: int = zipfile.ZIP_STORED, names: tuple[str, ...] = ("x/data.pkl",)
) -> bytes:
    """Return a file of torch with this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        for name in names:
            target.writestr(name, pickled)
    return file.getvalue()


def legacy(pickled: bytes) -> bytes:
    """Return a file of torch before 1.6 with this pickle."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    return magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + pickled + pickle.dumps([], 2)


def number(value: int) -> bytes:
    """Return the pickle of an integer of eight bytes."""
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def view(shape: bytes, strides: bytes, offset: int, size: int) -> bytes:
    """Return the pickle of a tensor, as a view of a storage of `size` floats."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + number(size)
    place = b"tQ" + number(offset) + shape + strides + b"\x89}tR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place


def with_storage(pickled: bytes) -> bytes:
    """Return a file of torch with this pickle and a storage of four floats."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("x/data.pkl", pickled)
        target.writestr("x/data/0", bytes(16))
    return file.getvalue()


def tensor_file(shape: bytes, strides: bytes, offset: int = 0, size: int = 4) -> bytes:
    """Return a file of torch with one view of a storage of four floats."""
    return with_storage(b"\x80\x02}" + SOME_KEY + view(shape, strides, offset, size) + b"s.")


def pickles() -> Iterator[tuple[str, bytes]]:
    """Yield pickles that hang or swell where they are unpickled the ordinary way."""
    deep = b"K\1" + b"q\0h\0\x86" * 200  # tuples, of which a hash takes 2^200 steps
    yield "nested tuple as a key", b"\x80\x02}" + deep + b"K\2s."
    yield "nested tuple in a set", b"\x80\x04\x8f(" + deep + b"\x90."
    yield "nested tuple in a frozenset", b"\x80\x04(" + deep + b"\x91."
    yield "nested tuple as the content", b"\x80\x02" + deep + b"."
    yield "nested tuple as a function", b"\x80\x02" + deep + b")R."
    yield "nested tuple as a persistent id", b"\x80\x02" + deep + b"Q."
    yield "nested lists", b"\x80\x02]" + b"q\0](h\0h\0h\0h\0e" * 200 + b"."
    yield (
        "long text many times",
        b"\x80\x02](X\0\x60\0\0" + b"a" * 0x6000 + b"q\0" + (b"h\0" * 400_000 + b"e."),
    )
    yield "deep lists", b"\x80\x02" + b"]" * 300_000 + b"a" * 30_000 + b"."
    yield "millions of dicts", b"\x80\x02(" + b"}" * 5_000_000 + b"t."
    yield "millions of functions", b"\x80\x02(" + b"ca\nb\n" * 1_100_000 + b"t."
    yield (
        "dict of millions",
        b"\x80\x02}("
        + b"".join(b"J" + struct.pack("<i", key) + b"N" for key in range(600_000))
        + b"u.",
    )
    collisions = (b"\x8a\x10" + ((1 << 61) - 1 << k).to_bytes(16, "little") for k in range(60))
    yield "keys of one hash", b"\x80\x02}(" + b"N".join([*collisions, b""]) * 1000 + b"u."
    yield "large integer", b"\x80\x02\x8b" + struct.pack("<i", 1 << 24) + bytes(1 << 24) + b"."
    for code in (b"X", b"B", b"T"):
        yield f"text of 2 GiB {code!r}", b"\x80\x02" + code + b"\xff\xff\xff\x7f."
    for code in (b"\x8d", b"\x8e", b"\x96", b"\x95"):
        yield f"content of 2^62 bytes {code!r}", b"\x80\x05" + code + struct.pack("<Q", 1 << 62)
    yield "buffer outside", b"\x80\x05\x97\x98."
    yield "extension", b"\x80\x02\x82\1."
    yield (
        "build of a function",
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__)s\x86b."),
    )
    yield (
        "one list for many dicts",
        b"\x80\x02]("
        + b"](K\1K\2e" * 100_000
        + b"eq\0"
        + (b"ccollections\nOrderedDict\nh\0\x85R" * 200)
        + b".",
    )
    yield "recursive", b"\x80\x02}q\0(X\1\0\0\0aq\1h\0X\1\0\0\0bh\0u."
    yield (
        "recursive module",
        (
            b"\x80\x02ca\nb\n)\x81q\0}X\x08\0\0\0_modules}("
            + b"".join(b"X\x04\0\0\0" + f"{n:04}".encode() + b"h\0" for n in range(5000))
            + b"usb."
        ),
    )
    for shape in (b"]", b"K\1", b"()", b"N", deep):
        yield f"array of shape {shape[:3]!r}", (
            b"\x80\x02}" + SOME_KEY + b"cnumpy.core.multiarray\n_reconstruct\n)R(K\1" + shape
            + b"cnumpy\ndtype\nX\2\0\0\0f4\x85R(K\3X\1\0\0\0<tb\x89C\4aaaatbs."
        )  # fmt: skip


def archives() -> Iterator[tuple[str, bytes]]:
    """Yield archives whose directory does not match the file, or that swell."""
    good = archive(pickle.dumps({"backbone_net.a": 1}, 2))
    yield "deflated", archive(b"\x80\x02](" + b"N" * (1 << 26) + b"e.", zipfile.ZIP_DEFLATED)
    yield "many names", _many_names(100_000)
    yield "longer than the file", _patched(good, 20, struct.pack("<LL", 1 << 30, 1 << 30))
    yield "sizes that differ", _patched(good, 24, struct.pack("<L", 1 << 30))
    yield "64-bit size without a field", _patched(good, 20, b"\xff" * 8)
    yield "encrypted", _patched(good, 8, b"\1\0")
    yield "entry at the end", _patched(good, 42, struct.pack("<L", len(good) - 1))
    yield "entry beyond the end", _patched(good, 42, b"\xfe\xff\xff\xff")
    yield "overlapping", _overlapping(1000)
    end = good.rindex(b"PK\5\6")
    yield "directory of 4 GiB", good[: end + 12] + b"\xfe\xff\xff\xff" + good[end + 16 :]
    yield "directory beyond the end", good[: end + 16] + b"\xfe\xff\xff\xff" + good[end + 20 :]
    yield "two entries of one name", archive(b"\x80\x02}.", names=("x/data.pkl", "x/data.pkl"))
    end_64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    yield "64-bit directory of 1 TiB", good[:end] + end_64 + locator + good[end:]
    yield (
        "64-bit directory elsewhere",
        good[:end] + locator.replace(struct.pack("<Q", end), b"\xff" * 8) + good[end:],
    )


def _patched(file: bytes, offset: int, content: bytes) -> bytes:
    """Change the directory's first entry."""
    at = file.index(b"PK\1\2") + offset
    return file[:at] + content + file[at + len(content) :]


def _many_names(count: int) -> bytes:
    """Return an archive whose directory has many entries of one place."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 6, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + f"{n:08}".encode() for n in range(count))
    start = struct.pack("<4s5H3L2H", b"PK\3\4", *[0] * 5, 0, 0, 0, 8, 0) + b"00000000"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(start), 0)
    return start + directory + end


def _overlapping(count: int) -> bytes:
    """Return an archive of many storages that are the same 3 MiB."""
    content = bytes(3 << 20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("x/data.pkl", b"\x80\x02}.")
        target.writestr("x/data/0", content)
        info = target.getinfo("x/data/0")
        for number in range(1, count):
            other = zipfile.ZipInfo(f"x/data/{number}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, field, getattr(info, field))
            target.filelist.append(other)
            target.NameToInfo[other.filename] = other
    return file.getvalue()


def tensors() -> Iterator[tuple[str, bytes]]:
    """Yield files with tensors that exceed their storage or the memory."""
    one, huge = b"K\1\x85", 1 << 59
    yield "expanded to 10^12 elements", tensor_file(number(10**12) + b"\x85", b"K\0\x85")
    yield "expanded to 2^59 elements", tensor_file(number(huge) + b"\x85", b"K\0\x85")
    yield "storage of 2^59 elements", tensor_file(b"K\1\x85", one, 0, huge)
    yield "offset beyond", tensor_file(b"K\4\x85", one, 1)
    yield "offset before", tensor_file(b"K\4\x85", one, -1)
    yield "stride beyond", tensor_file(b"K\2\x85", number(huge) + b"\x85")
    yield "stride below zero", tensor_file(b"K\2\x85", number(-1) + b"\x85", 3)
    yield "a thousand axes", tensor_file(b"(" + b"K\1" * 1000 + b"t", b"(" + b"K\1" * 1000 + b"t")
    yield "size below zero", tensor_file(b"K\1\x85", one, 0, -4)
    names = (f"X\x15\0\0\0{n:06}.backbone_net.a".encode() for n in range(30_000))
    first = view(one, one, 0, 4)
    yield (
        "many prefixes",
        with_storage(
            b"\x80\x02}(" + SOME_KEY + first + b"q\0" + b"h\0".join([*names, b""]) + b"u."
        ),
    )
    for name, target in {
        "number": b"K\1", "text": b"X\1\0\0\0a", "module": b"(X\6\0\0\0moduleca\nb\nNNt",
        "short": b"(X\7\0\0\0storaget", "none": b"N", "path": b"X\x0b\0\0\0/etc/passwd",
    }.items():  # fmt: skip
        rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + target + b"QK\0K\1\x85K\1\x85\x89}tR"
        yield f"persistent id: {name}", archive(b"\x80\x02}" + SOME_KEY + rebuild + b"s.")


def safetensors() -> Iterator[tuple[str, bytes]]:
    """Yield safetensors files with hostile headers."""

    def file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + data

    yield "header of 2^62 bytes", file(b"{}", length=1 << 62)
    yield "header of 1 GiB", file(b"{}", length=1 << 30)
    yield "deep header", file(b'{"a":' + b"[" * (1 << 20))
    yield "deep dicts", file(b'{"a":' * (1 << 18))
    yield "long integer", file(b'{"a":' + b"9" * (1 << 20) + b"}")
    yield "many lists", file(b'{"a":[' + b"[]," * (1 << 18) + b"[]]}")
    yield "many keys", file(b"{" + b",".join(b'"%d":{}' % n for n in range(50_000)) + b"}")
    entry = b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,%b]}}'
    yield "tensor of 2^62 bytes", file(entry % (b"1152921504606846976", b"4611686018427387904"))
    yield "product of sides beyond 2^64", file(entry % (b"4294967296,4294967296,4294967296", b"0"))
    yield "many axes", file(entry % (b",".join([b"0"] * 100_000), b"0"))


def files() -> Iterator[tuple[str, bytes]]:
    """Yield all files by name."""
    for name, content in pickles():
        yield f"paddle: {name}", content
        if len(content) < LARGE:
            yield f"zip: {name}", archive(content)
            yield f"legacy: {name}", legacy(content)
    for group in (archives, tensors, safetensors):
        for name, content in group():
            yield f"{group.__name__}: {name}", content


def special_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield paths that are not regular files."""
    os.mkfifo(folder / "fifo.pth")
    (folder / "loop.pth").symlink_to(folder / "loop.pth")
    (folder / "folder.pth").mkdir()
    with (folder / "sparse.safetensors").open("wb") as file:
        header = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (1 << 40, 1 << 42)
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (1 << 42))
    names = ("fifo.pth", "loop.pth", "folder.pth", "sparse.safetensors", "a" * 300, "a\0b", "none")
    for name in names:
        yield f"path: {name[:20]!r}", f"{folder}/{name}"
    for path in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "~nosuchuser/a.pth", ""):
        yield f"path: {path!r}", path


def run(read: Callable[[], object]) -> str:
    """Return the outcome of reading, or its time if that is too long."""
    start = time.process_time()
    signal.alarm(PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    try:
        read()
        outcome = "loaded"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    spent = time.process_time() - start
    return outcome if spent < SECONDS else f"{spent} seconds"


def read_all(folder: Path) -> dict[str, str]:
    """Write and read all files, with a limit of memory for this process and a clock.

    Return name -> name and message of the exception, or "loaded".
    """
    structure(TINY_NETWORK, aux_loss=True)  # imports what reading needs
    paths, large = {name: Path(path) for name, path in special_files(folder)}, set()
    for position, (name, content) in enumerate(files()):
        paths[name] = folder / str(position)
        if paths[name].write_bytes(content) >= LARGE:
            large.add(name)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    outcomes = {}
    for name, path in paths.items():
        outcomes[name] = run(functools.partial(load_checkpoint, path, TINY_NETWORK))
        if name not in large:
            outcomes[f"{name} (state)"] = run(functools.partial(read_state, path, "x"))
        if name.startswith(("path", "safetensors")):
            outcomes[f"{name} (all)"] = run(functools.partial(read_safetensors, path, "x"))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults
    return outcomes
