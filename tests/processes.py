"""Start of processes that need not import torch and the package anew."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def forkserver() -> ForkServerContext:
    """Return a context; its processes are forked by a server that has imported everything.

    The server, one per process of a test run, has started no threads.
    """
    multiprocessing.set_forkserver_preload(["isanet_zoo.learning.run", "pytest"])
    return multiprocessing.get_context("forkserver")
