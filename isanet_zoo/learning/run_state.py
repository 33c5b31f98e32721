"""The file `state.pt`: everything that a resumed run needs, as one flat dict of tensors.

Beside the tensors of `Trainer.state_dict` it contains ``history``, the JSON of `History` as bytes,
and ``digest``, the hash of all other entries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from isanet_zoo import records
from isanet_zoo.errors import CheckpointError, ManifestError
from isanet_zoo.records import MOST_CLASSES, Range, Record, Text
from isanet_zoo.weights.containers import read_state
from isanet_zoo.weights.stored import State
from isanet_zoo.weights.tensors import state_digest

VERSION = 3  # 1 was a pickle of nested dicts, 2 had no IoU of classes
LONGEST = 1 << 24  # bytes of the history

Count = Annotated[int, Range(1, 2**53)]
Term = Annotated[str, Text(LONGEST)]


@dataclass(frozen=True)
class Epoch(Record):
    """A row of `log.csv`."""

    epoch: Count  # number of finished epochs
    step: Count  # number of finished steps
    loss: float  # mean over the steps of the epoch
    lr: float  # learning rate of the encoder in the next step
    seconds: float  # time since the start of the run, without pauses, when the epoch was trained
    miou: float | None  # of the validation images; None if they were not evaluated
    pixel_accuracy: float | None  # likewise
    classes: int | None  # number of classes that `miou` is the mean of
    # of each class, None where it is in neither masks nor predictions; () if not evaluated
    iou: Annotated[tuple[float | None, ...], Range(0, MOST_CLASSES)]


@dataclass(frozen=True)
class History(Record):
    """What a run was started with, and its finished epochs."""

    version: int
    terms: Annotated[tuple[Term, ...], Range(1, 100)]  # "name=JSON", equal in a resumed run
    planned: Count  # epochs of the whole run
    epochs: Annotated[tuple[Epoch, ...], Range(1, 10**6)]  # the last one is without scores
    due: bool  # the last epoch is evaluated


def best_of(epochs: Sequence[Epoch]) -> Epoch:
    """Return the first epoch with the highest mIoU; the last one if none was evaluated."""
    scored = [epoch for epoch in epochs if epoch.miou is not None]
    return max(scored, key=lambda epoch: epoch.miou or 0.0) if scored else epochs[-1]


def has_stalled(epochs: Sequence[Epoch], patience: int | None) -> bool:
    """Return whether the last epoch was evaluated and the best one is `patience` epochs ago."""
    last, best = epochs[-1], best_of(epochs)
    return patience is not None and last.miou is not None and last.epoch - best.epoch >= patience


def write_run_state(tensors: State, history: History, path: Path) -> None:
    """Write the state of a run."""
    state = {key: tensor.cpu() for key, tensor in tensors.items()}
    state["history"] = _as_bytes(json.dumps(records.write(history)))
    state["digest"] = _as_bytes(state_digest(state))
    torch.save(state, path)


def read_run_state(path: Path) -> tuple[State, History]:
    """Read the state of a run.

    Raises:
        CheckpointError: the state is damaged, altered, not safe to read, or of another version.
    """
    state = read_state(path, str(path))
    if not {"history", "digest", "step"} <= state.keys():
        raise CheckpointError(
            f"{path} is not a training state of this version of isanet_zoo; start a new run from "
            "the weights beside it"
        )
    if _as_text(state.pop("digest")) != state_digest(state):
        raise CheckpointError(f"{path} was altered: its digest is another")
    try:
        content = records.parse(_as_text(state.pop("history")), str(path), longest=LONGEST)
        history = records.read(History, content, str(path))
    except ManifestError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if history.version != VERSION:
        raise CheckpointError(f"{path} has version {history.version}, expected {VERSION}")
    return state, history


def _as_bytes(text: str) -> Tensor:
    """Return ASCII text as (N,) uint8."""
    return torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)


def _as_text(codes: Tensor) -> str:
    """Return the text of `_as_bytes`; other tensors result in some other text."""
    return bytes(codes.flatten().to(torch.uint8).numpy()).decode("ascii", "replace")
