"""Folder of a training run: its lock, state, weights, log and report.

::

    state.pt                              state after the last finished epoch
    last.safetensors, best.safetensors    weights with their description
    log.csv                               a row per epoch
    check.png                             training images with masks, and after augmentation
    recipe.json                           the hyper-parameters
    report.md, curves.png                 summary of the run
    confusion.csv, confusion.png, predictions.png    of the best epoch, with a validation

Every file is written under another name and then renamed. `state.pt` is written before the epoch
is evaluated, and it alone decides where a run resumes; the other files follow from it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

import filelock

from isanet_zoo import records
from isanet_zoo.errors import CheckpointError, InputError
from isanet_zoo.files import atomic_write, remove_leftovers
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.metrics import Scores
from isanet_zoo.learning.run_state import (
    VERSION,
    Epoch,
    History,
    best_of,
    read_run_state,
    write_run_state,
)
from isanet_zoo.learning.trainer import Trainer
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.saving import save_model
from isanet_zoo.weights.stored import State

logger = logging.getLogger(__name__)

REPORT = (
    "log.csv",
    "recipe.json",
    "report.md",
    "curves.png",
    "confusion.csv",
    "confusion.png",
    "predictions.png",
)
PROTOCOL = "single scale, whole image, labels at original size"


class RunFolder:
    """The folder of a run.

    Args:
        folder: its path; created by `open`.
        model: the network.
        dataset: the images that are trained on.
        validation: the images that choose the best epoch; if None, the last epoch is the best.
        recipe: the hyper-parameters.
        seed: of the run.

    Attributes:
        epochs: the finished epochs.
        due: whether the last finished epoch is evaluated.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: ISANet,
        dataset: SegmentationDataset,
        validation: SegmentationDataset | None,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.folder = folder
        self.state, self.sheet = folder / "state.pt", folder / "check.png"
        self.last, self.best = folder / "last.safetensors", folder / "best.safetensors"
        self.dataset, self.validation, self.recipe = dataset, validation, recipe
        terms = {
            **records.write(recipe),
            "network": records.write(model.config),
            "classes": model.classes,
            "seed": seed,
            "images": len(dataset),
            "validation images": None if validation is None else len(validation),
            "processes": distributed.world_size(),
        }
        del terms["epochs"], terms["initialisation"]  # may grow; states where weights came from
        self.terms = {name: json.dumps(value) for name, value in terms.items()}
        self.epochs: list[Epoch] = []
        self.due = False
        self._loaded: State = {}

    @contextlib.contextmanager
    def open(self, *, resume: bool) -> Iterator[None]:
        """Create the folder, or read the run in it, and lock it against other processes.

        Raises:
            InputError: another process trains in the folder, it cannot be written, it contains a
                run (or, with `resume`, none, or one with other terms).
            CheckpointError: the state is damaged, altered, of another version or another network.
        """
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            distributed.run_on_first(lambda: self._acquire(lock, resume=resume))
            if resume:
                self._read()
            yield
        finally:
            lock.release()

    def _acquire(self, lock: filelock.BaseFileLock, *, resume: bool) -> None:
        try:
            if not resume:
                self.folder.mkdir(parents=True, exist_ok=True)
            elif not self.state.exists():
                raise InputError(f"{self.folder} has no run to resume: {self.state} is missing")
            with contextlib.suppress(NotImplementedError):  # a file system without locks
                lock.acquire(timeout=0)
            files = (self.state, self.last, self.best, *(self.folder / name for name in REPORT))
            found = [file.name for file in files if file.exists()]
        except filelock.Timeout:
            raise InputError(
                f"another process trains in {self.folder}; choose another folder, or wait for it"
            ) from None
        except OSError as error:
            raise InputError(f"{self.folder} cannot be the folder of a run: {error}") from error
        if found and not resume:
            advice = "resume it, or " if self.state.name in found else ""
            raise InputError(
                f"{self.folder} already contains a run ({', '.join(found)}); {advice}choose "
                "another folder"
            )
        remove_leftovers(self.folder, age=0)

    def _read(self) -> None:
        """Read the state and compare its terms with those of this run."""
        self._loaded, history = read_run_state(self.state)
        terms = dict(term.partition("=")[::2] for term in history.terms)
        changed = {
            key: f"{key} was {terms.get(key)}, is {value}"
            for key, value in self.terms.items()
            if terms.get(key) != value
        }
        if self.recipe.epochs < history.planned:
            changed["epochs"] = f"epochs was {history.planned}, is {self.recipe.epochs}"
        if changed:
            kind = CheckpointError if "network" in changed else InputError
            raise kind(
                f"{self.folder} contains a run with other terms: {'; '.join(changed.values())}; "
                f"resume it with its own, or start a new run from its weights: -w {self.last} "
                "-o ANOTHER_FOLDER"
            )
        if self.recipe.epochs > history.planned and distributed.rank() == 0:
            logger.warning(
                "the run is extended from %d to %d epochs; its learning rate follows the longer "
                "schedule from here on",
                history.planned,
                self.recipe.epochs,
            )
        self.epochs, self.due = list(history.epochs), history.due

    def restore(self, trainer: Trainer, *, steps_per_epoch: int) -> None:
        """Restore a trainer from the state that `open` has read.

        Raises:
            CheckpointError: the state is damaged, altered, or of another network.
        """
        steps = [steps_per_epoch * (number + 1) for number in range(len(self.epochs))]
        state, self._loaded = self._loaded, {}
        step: object = state["step"].tolist()
        if [epoch.step for epoch in self.epochs] != steps or step != steps[-1]:
            raise CheckpointError(f"{self.state} is damaged: its epochs do not match its steps")
        trainer.load_state_dict(state, name=str(self.state))

    def save_state(self, trainer: Trainer, epoch: Epoch, *, due: bool) -> None:
        """Write the state after an epoch that is still without scores.

        Raises:
            InputError: the file cannot be written; the state of the epoch before is kept.
        """
        self.epochs.append(epoch)
        self.due = due
        if distributed.rank() > 0:
            return
        terms = tuple(f"{name}={value}" for name, value in self.terms.items())
        history = History(VERSION, terms, self.recipe.epochs, tuple(self.epochs), due)
        with _writing(self.state) as temporary:
            write_run_state(trainer.state_dict(), history, temporary)

    def save_weights(self, trainer: Trainer, scores: Scores | None) -> None:
        """Write the weights after an epoch.

        Args:
            trainer: the trainer.
            scores: of the validation images; None if they were not evaluated.

        Raises:
            InputError: a file cannot be written.
        """
        metrics = []
        if scores is not None and self.validation is not None:
            miou = 100 * scores.miou
            metrics = [
                Metric(
                    "mIoU", miou, self.validation.name, (1.0,), False, PROTOCOL, "isanet_zoo", miou
                )
            ]
            self.epochs[-1] = replace(
                self.epochs[-1],
                miou=scores.miou,
                pixel_accuracy=scores.pixel_accuracy,
                classes=scores.classes_evaluated,
                iou=tuple(None if math.isnan(iou) else iou for iou in scores.iou.values()),
            )
        if distributed.rank() > 0:
            return
        is_best = scores is not None or self.validation is None
        is_best = is_best and best_of(self.epochs) is self.epochs[-1]
        for path in (self.last, self.best) if is_best else (self.last,):
            save_model(
                trainer.result,
                path,
                dataset=self.dataset.name,
                recipe=self.recipe,
                metrics=metrics,
            )

    def save_report(self, texts: Mapping[str, str]) -> None:
        """Write the log, and other text files by their names.

        Raises:
            InputError: a file cannot be written.
        """
        for name, text in {"log.csv": self._log(), **texts}.items():
            with _writing(self.folder / name) as temporary:
                temporary.write_text(text, "utf-8")

    def _log(self) -> str:
        """Return a CSV with a row per epoch, and a column for the IoU of each class."""
        names = self.dataset.label_set.names
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(
            [field.name for field in fields(Epoch)][:-1] + [f"iou {name}" for name in names]
        )
        for epoch in self.epochs:
            *values, iou = asdict(epoch).values()
            values += iou or [None] * len(names)
            rows.writerow(["" if value is None else value for value in values])
        return table.getvalue()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path`; convert errors to `InputError`."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:  # `torch.save` raises RuntimeError
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} cannot be written: {reason}; the run can be resumed from its last epoch"
        ) from error
