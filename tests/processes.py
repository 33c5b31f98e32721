"""Processes that need not import torch and the package anew."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def forkserver() -> Any:
    """Return a context; its processes are forked by a server that has imported everything.

    The server, one per process of a test run, has started no threads. Windows has no `fork`: there
    each process imports everything.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload(["isanet_zoo.learning.run", "pytest"])
    return multiprocessing.get_context("forkserver")


def call(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in another process; return its result, or raise its error."""
    with ProcessPoolExecutor(1, forkserver()) as pool:
        return pool.submit(_call, dict(os.environ), function, *arguments).result()


def _call(
    variables: Mapping[str, str], function: Callable[..., Result], *arguments: object
) -> Result:
    os.environ.update(variables)  # the server has those of the test that started it
    torch.set_num_threads(1)
    return function(*arguments)


def run_script(path: Path, arguments: Sequence[str]) -> str:
    """Run a script in this process, and return what it prints."""
    sys.argv = [str(path), *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(path), run_name="__main__")
    return printed.getvalue()
