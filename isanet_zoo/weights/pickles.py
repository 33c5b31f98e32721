"""Pickled data as inert records, of which nothing is imported, called or run.

A pickle is a program that calls functions by name. The reader here records each call as an `Inert`
instead: the function's name and its arguments. Its work is bounded by the length of the pickle,
because no container is copied, hashed or compared.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from isanet_zoo.errors import CheckpointError, printable

MAX_STEPS = 1_000_000  # operations of one pickle; a ResNet-101 with its optimizer needs 60,000
MAX_TEXT = 1 << 26  # bytes of all short texts of one pickle
LONG = 1 << 16  # bytes; text of at least this length stays in the file

RUNS_CODE = {  # modules that no checkpoint needs
    "ctypes", "importlib", "marshal", "nt", "os", "pdb", "pickle", "posix", "pty", "runpy",
    "shutil", "socket", "subprocess", "sys", "webbrowser",
}  # fmt: skip
OPENS = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open"}

RESAVE = "torch.save(model.state_dict(), path)"  # the way out of most refusals


class Global(NamedTuple):
    """A class or function that a pickle refers to."""

    name: str


class Reference(NamedTuple):
    """A persistent id, which refers to content outside the pickle."""

    target: object


class Inert(dict[object, object]):
    """Record of a call; as a dict it has the entries that the pickle sets on the result.

    Attributes:
        function: name of the class or function.
        args: its arguments.
        state: the state that the pickle sets on the result, or None.
    """

    __slots__ = ("args", "function", "state")
    __match_args__ = ("function", "args")
    __hash__ = object.__hash__  # type: ignore[assignment]  # by identity
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(self, function: str, args: object = ()) -> None:
        super().__init__()
        self.function = function
        self.args = args if isinstance(args, tuple) else ()
        self.state: object = None


class Span(NamedTuple):
    """Bytes that stay in the file, or text as UTF-8."""

    position: int
    length: int
    is_text: bool


def read_pickle(file: BinaryIO, end: int, name: str) -> tuple[Any, list[Reference]]:
    """Read the pickle at a file's position, and leave the position after it.

    Dicts, lists, tuples, numbers, bytes and text become what they are, or a `Span` if they have at
    least `LONG` bytes; every other object becomes an `Inert`.

    Args:
        file: the file.
        end: position in the file that the pickle must not exceed.
        name: name of the file in error messages.

    Returns:
        The object, and the persistent ids in it.

    Raises:
        CheckpointError: the pickle is damaged or too large, has operations that no checkpoint
            needs, or refers to functions that run code.
    """
    try:
        reader = _Reader(file, end, name)
        return reader.read(), reader.references
    except (AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"{name} is truncated or damaged: its pickle is invalid; fetch it again"
        ) from error


class _Reader:
    """A pickle that is being read: the stack, the stacks below each mark, and the memo."""

    def __init__(self, file: BinaryIO, end: int, name: str) -> None:
        self.file, self.name = file, name
        self.left = end - file.tell()
        self.steps, self.short = MAX_STEPS, MAX_TEXT
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, object] = {}
        self.references: list[Reference] = []

    def read(self) -> object:
        while (code := self.take(1)) != pickle.STOP:
            self.count(1)
            if code not in STEPS:
                raise CheckpointError(
                    f"{self.name} is damaged or not safe: its pickle has an operation "
                    f"(0x{code.hex()}) that no checkpoint needs"
                )
            STEPS[code](self)
        return self.stack.pop()

    def count(self, steps: int) -> None:
        """Count operations."""
        self.steps -= steps
        if self.steps < 0:
            raise CheckpointError(
                f"{self.name} has more than {MAX_STEPS:,} objects beside its tensors; save the "
                f"state dict alone: {RESAVE}"
            )

    def skip(self, length: int) -> int:
        """Count bytes as read; return their number."""
        if not 0 <= length <= self.left:
            raise ValueError("the pickle ends too early")
        self.left -= length
        return length

    def take(self, length: int) -> bytes:
        """Read so many bytes."""
        content = self.file.read(self.skip(length))
        if len(content) != length:
            raise ValueError("the file ends too early")
        return content

    def number(self, form: str) -> Any:
        """Read one number in a format of `struct`."""
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return number

    def content(self, form: str) -> Any:
        """Read bytes after their length; long ones stay in the file."""
        length = self.number(form)
        if length >= LONG:
            span = Span(self.file.tell(), self.skip(length), is_text=False)
            self.file.seek(length, 1)
            return span
        self.short -= length
        if self.short < 0:
            raise ValueError("the pickle has too much text")
        return self.take(length)

    def text(self, form: str, encoding: str = "utf-8") -> object:
        """Read text after its length."""
        content = self.content(form)
        if isinstance(content, Span):
            return content._replace(is_text=encoding == "utf-8")
        return content.decode(encoding, "surrogatepass")

    def integer(self, form: str) -> int:
        """Read an integer of at most 255 bytes after its length."""
        length = self.number(form)
        return int.from_bytes(self.take(length if length < 256 else -1), "little", signed=True)

    def line(self) -> str:
        """Read a line of text."""
        line = self.file.readline(min(self.left, LONG))
        self.skip(len(line))
        return line.removesuffix(b"\n").decode("utf-8")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """Return the objects above the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def group(self, count: int) -> None:
        """Make a tuple of the topmost objects."""
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(self.stack[-1], key, value)

    def refer(self, module: str, attribute: str) -> None:
        """Record a class or function, unless it is one that runs code."""
        package = module.partition(".")[0].strip("_")
        opens = package in ("builtin", "builtins", "io") and attribute in OPENS
        if package in RUNS_CODE or opens:
            function = printable(f"{module}.{attribute}", 80)
            raise CheckpointError(
                f"{self.name} is not safe: its pickle refers to {function}, which no checkpoint "
                "needs; nothing of it was run. Do not load it with other tools either"
            )
        self.push(Global(f"{module}.{attribute}"))

    def refer_outside(self) -> None:
        """Record a persistent id."""
        self.push(Reference(self.stack.pop()))
        self.references.append(self.stack[-1])

    def call(self, function: object, args: Any, _keywords: object = None) -> None:
        """Record a call."""
        name = function.name if isinstance(function, Global) else f"a {type(function).__name__}"
        record = Inert(name, args)
        if record.function == "collections.OrderedDict" and record.args:  # as Python 2 wrote it
            self.count(len(args[0]))
            for key, value in args[0]:
                set_item(record, key, value)
        self.push(record)

    def build(self, state: object) -> None:
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state


def set_item(mapping: object, key: object, value: object) -> None:
    """Set an entry of a dict; keys that are slow to hash are replaced by an `Inert`."""
    if not isinstance(mapping, dict):
        raise TypeError("only dicts have entries")
    simple = isinstance(key, str) or (type(key) is int and abs(key) < 1 << 60)
    mapping[key if simple else Inert(f"a key of type {type(key).__name__}")] = value


STEPS: dict[bytes, Callable[[_Reader], object]] = {
    pickle.PROTO: lambda reader: reader.take(1),
    pickle.FRAME: lambda reader: reader.take(8),
    pickle.NONE: lambda reader: reader.push(None),
    pickle.NEWTRUE: lambda reader: reader.push(True),
    pickle.NEWFALSE: lambda reader: reader.push(False),
    pickle.BININT: lambda reader: reader.push(reader.number("<i")),
    pickle.BININT1: lambda reader: reader.push(reader.number("<B")),
    pickle.BININT2: lambda reader: reader.push(reader.number("<H")),
    pickle.BINFLOAT: lambda reader: reader.push(reader.number(">d")),
    pickle.LONG1: lambda reader: reader.push(reader.integer("<B")),
    pickle.LONG4: lambda reader: reader.push(reader.integer("<i")),
    pickle.SHORT_BINUNICODE: lambda reader: reader.push(reader.text("<B")),
    pickle.BINUNICODE: lambda reader: reader.push(reader.text("<I")),
    pickle.BINUNICODE8: lambda reader: reader.push(reader.text("<Q")),
    pickle.SHORT_BINSTRING: lambda reader: reader.push(reader.text("<B", "latin-1")),
    pickle.BINSTRING: lambda reader: reader.push(reader.text("<i", "latin-1")),
    pickle.SHORT_BINBYTES: lambda reader: reader.push(reader.content("<B")),
    pickle.BINBYTES: lambda reader: reader.push(reader.content("<I")),
    pickle.BINBYTES8: lambda reader: reader.push(reader.content("<Q")),
    pickle.BYTEARRAY8: lambda reader: reader.push(reader.content("<Q")),
    pickle.MARK: _Reader.mark,
    pickle.POP: lambda reader: reader.stack.pop(),
    pickle.POP_MARK: _Reader.items,
    pickle.BINPUT: lambda reader: reader.put(reader.number("<B")),
    pickle.LONG_BINPUT: lambda reader: reader.put(reader.number("<I")),
    pickle.MEMOIZE: lambda reader: reader.put(len(reader.memo)),
    pickle.BINGET: lambda reader: reader.push(reader.memo[reader.number("<B")]),
    pickle.LONG_BINGET: lambda reader: reader.push(reader.memo[reader.number("<I")]),
    pickle.EMPTY_TUPLE: lambda reader: reader.push(()),
    pickle.TUPLE1: lambda reader: reader.group(1),
    pickle.TUPLE2: lambda reader: reader.group(2),
    pickle.TUPLE3: lambda reader: reader.group(3),
    pickle.TUPLE: lambda reader: reader.push(tuple(reader.items())),
    pickle.EMPTY_LIST: lambda reader: reader.push([]),
    pickle.APPEND: lambda reader: reader.append([reader.stack.pop()]),
    pickle.APPENDS: lambda reader: reader.append(reader.items()),
    pickle.EMPTY_DICT: lambda reader: reader.push({}),
    pickle.SETITEM: lambda reader: reader.set_items([reader.stack.pop(-2), reader.stack.pop()]),
    pickle.SETITEMS: lambda reader: reader.set_items(reader.items()),
    pickle.EMPTY_SET: lambda reader: reader.push(Inert("builtins.set")),
    pickle.ADDITEMS: _Reader.items,
    pickle.FROZENSET: lambda reader: reader.call(Global("builtins.frozenset"), (reader.items(),)),
    pickle.GLOBAL: lambda reader: reader.refer(reader.line(), reader.line()),
    pickle.STACK_GLOBAL: lambda reader: reader.refer(reader.stack.pop(-2), reader.stack.pop()),
    pickle.REDUCE: lambda reader: reader.call(reader.stack.pop(-2), reader.stack.pop()),
    pickle.NEWOBJ: lambda reader: reader.call(reader.stack.pop(-2), reader.stack.pop()),
    pickle.NEWOBJ_EX: lambda reader: reader.call(*[reader.stack.pop(-n) for n in (3, 2, 1)]),
    pickle.BUILD: lambda reader: reader.build(reader.stack.pop()),
    pickle.BINPERSID: _Reader.refer_outside,
}
