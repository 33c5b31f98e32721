"""Pickles as inert records: plain data is equal, calls are recorded, nothing runs."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import functools
import io
import os
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights import pickles
from isanet_zoo.weights.pickles import Global, Inert, Span, read_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(1 << 59), 1 << 59), inner)
    ),
    max_leaves=10,
)


def read(content: bytes) -> Any:
    """Read a pickle from memory, up to its end."""
    file = io.BytesIO(content)
    found, _ = read_pickle(file, len(content), "x.pth")
    assert file.tell() == len(content)
    return found


class Runs:
    """Unpickled the ordinary way, it calls a function."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@given(content=PLAIN, protocol=st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_read_pickle_of_plain_data_equals_pickle(content: object, protocol: int) -> None:
    assert read(pickle.dumps(content, protocol)) == content


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_read_pickle_keeps_shared_and_recursive_objects(protocol: int) -> None:
    shared: list[object] = [1]
    content = {"a": shared, "b": (shared, shared)}
    shared.append(content)
    found = read(pickle.dumps(content, protocol))
    assert found["a"] is found["b"][0] is found["b"][1]
    assert found["a"][1] is found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        np.float64(1.5),
        np.arange(5),
        argparse.Namespace(lr=0.1),
        pathlib.PurePosixPath("a", "b"),
        datetime.datetime(2024, 1, 1),
        collections.defaultdict(int, a=1),
        collections.deque([1, 2]),
        functools.partial(print, 1),
        {1, 2},
        frozenset({1}),
        complex(1, 2),
        range(3),
    ],
    ids=lambda content: type(content).__name__,
)
def test_read_pickle_of_other_objects_records_calls(content: object, protocol: int) -> None:
    assert isinstance(read(pickle.dumps({"it": content}, protocol))["it"], Inert)


class Keyword:
    """An object that is made with keyword arguments."""

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, int]]:
        return (1,), {"size": 2}


@pytest.mark.parametrize("protocol", [2, 4])
def test_read_pickle_of_object_with_keywords_keeps_what_follows(protocol: int) -> None:
    found = read(pickle.dumps([0, Keyword(), 3], protocol))
    assert (found[0], found[2], len(found)) == (0, 3, 3)
    assert isinstance(found[1], Inert)


def test_read_pickle_records_arguments_state_and_entries() -> None:
    space = read(pickle.dumps(argparse.Namespace(lr=0.1)))
    assert (space.function, space.args, space.state) == ("argparse.Namespace", (), {"lr": 0.1})
    default = read(pickle.dumps(collections.defaultdict(int, a=1)))
    assert (dict(default), default.args) == ({"a": 1}, (Global("builtins.int"),))


def test_read_pickle_of_ordered_dict_as_python_2_wrote_it() -> None:
    pairs = b"](](U\x01aK\x01e](U\x01bK\x02ee"  # [["a", 1], ["b", 2]]
    found = read(b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R.")
    assert dict(found) == {"a": 1, "b": 2}


def test_read_pickle_leaves_long_content_in_the_file() -> None:
    for content, is_text in ((b"\xff" * pickles.LONG, False), ("\xff" * pickles.LONG, True)):
        pickled = pickle.dumps({"a": content}, 4)
        span = read(pickled)["a"]
        assert isinstance(span, Span)
        assert span.is_text == is_text
        found = pickled[span.position : span.position + span.length]
        assert (found.decode() if is_text else found) == content


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("content", "function"),
    [
        (Runs(os.system, "touch x"), "posix.system"),
        ({"a": [Runs(os.system, "touch x")]}, "posix.system"),
        (Runs(eval, "1"), "eval"),
        (Runs(exec, "1"), "exec"),
        (Runs(open, "x", "w"), "open"),
        (Runs(__import__, "this"), "__import__"),
        (Runs(pickle.loads, b"N."), "pickle.loads"),
    ],
)
def test_read_pickle_with_function_that_runs_code_is_refused(
    content: object, function: str, protocol: int
) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.pth is not safe: .*{function}"):
        read(pickle.dumps(content, protocol))


@pytest.mark.parametrize(
    "operation",
    [
        *(pickle.EXT1 + b"\1", pickle.EXT2 + b"\1\0", pickle.EXT4 + b"\1\0\0\0"),
        *(pickle.NEXT_BUFFER, pickle.NEXT_BUFFER + pickle.READONLY_BUFFER),
        *(pickle.PERSID + b"1\n", pickle.INT + b"1\n", pickle.LONG + b"1L\n"),
        *(pickle.INST + b"os\nsystem\n", pickle.GET + b"1\n", pickle.STRING + b"'a'\n"),
        *(pickle.OBJ, b"\xff"),
    ],
)
def test_read_pickle_with_operation_of_no_checkpoint_is_refused(operation: bytes) -> None:
    with pytest.raises(CheckpointError, match="that no checkpoint needs"):
        read(b"\x80\x02" + operation + b".")


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"\x80", b"\x80\x02", b"N", b"h\x00.", b"t.", b"e.", b"(N", b"Nu.", b"K\1K\2s.",
        b"}(NNNu.", b"R.", b")R", b"X\xff\xff\xff\xff.", b"T\xff\xff\xff\xff.",
        b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"\x96" + b"\xff" * 8,
        b"B\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f.", b"\x8b\0\1\0\0" + b"\1" * 256 + b".",
        b"X\1\0\0\0\xff.", b"NN\x93.", b"ca", b"c\xff\n\n.", b"]K\0K\0s.",
        b"ccollections\nOrderedDict\nK\1\x85R.", b"ccollections\nOrderedDict\n](Ne\x85R.",
    ],
)  # fmt: skip
def test_read_pickle_that_is_damaged_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read(content)


@given(content=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_read_pickle_of_any_bytes_returns_or_raises_checkpoint_error(content: bytes) -> None:
    for start in (b"", b"\x80\x02", b"}(", b"](((NNN"):
        with contextlib.suppress(CheckpointError):
            read_pickle(io.BytesIO(start + content), len(start + content), "x")


def test_read_pickle_with_too_many_objects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    assert read(b"(" + b"N" * 990 + b"t.") == (None,) * 990
    with pytest.raises(CheckpointError, match=r"more than 1,000 objects.*torch\.save\(model"):
        read(b"(" + b"N" * 1000 + b"t.")
    pairs = b"](" + b"](K\1K\2e" * 90 + b"eq\0"  # one list for several dicts
    dicts = b"ccollections\nOrderedDict\nh\0\x85R" * 6
    with pytest.raises(CheckpointError, match="more than 1,000 objects"):
        read(b"\x80\x02" + pairs + dicts + b".")


def test_read_pickle_with_too_much_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_TEXT", 1000)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read(pickle.dumps(["a" * 200 + str(number) for number in range(10)]))


def test_read_pickle_replaces_keys_that_are_slow_to_hash() -> None:
    nested = b"K\1" + b"q\0h\0\x86" * 200  # a hash of these tuples takes 2^200 steps
    (key,) = read(b"\x80\x02}" + nested + b"K\2s.")
    assert isinstance(key, Inert)
    (key,) = read(pickle.dumps({(1 << 61) - 1: 2}))  # has the hash of 0, as do its multiples
    assert isinstance(key, Inert)
