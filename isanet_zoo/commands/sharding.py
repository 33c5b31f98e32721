"""Shards of a job, and the processes of `torchrun`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time

SECONDS_BETWEEN_CHECKS = 1.0  # whether the other processes are done
SECONDS_TO_CONNECT = 30.0  # to the store of `torchrun`


def shard(text: str) -> tuple[int, int]:
    """Return (index, count) from text such as `3/100`."""
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shard such as 0/4, the first of four; the last one is 3/4"
        )
    return index, count


def torchrun_process() -> tuple[int, int]:
    """Return this process's number and the number of processes under `torchrun`."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def wait_for_others(processes: int) -> None:
    """Wait for the other processes: `torchrun` ends all once one exits with an error."""
    import datetime

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    key = f"isanet-zoo predict {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    timeout = datetime.timedelta(seconds=SECONDS_TO_CONNECT)
    with contextlib.suppress(RuntimeError):  # that `torchrun` itself has ended
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timeout)
        finished = store.add(key, 1)
        while finished < processes:
            time.sleep(SECONDS_BETWEEN_CHECKS)
            finished = store.add(key, 0)
