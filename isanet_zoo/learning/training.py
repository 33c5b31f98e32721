"""A run of training that can be stopped at any time.

Its folder::

    last.safetensors, best.safetensors    weights, with a card that describes them
    state.pt                              all that a resumed run needs
    log.csv                               a row per epoch

Each file appears whole or not at all. `state.pt` alone decides where a run goes on, so files of
different age do no harm.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from isanet_zoo.errors import CheckpointError, InputError
from isanet_zoo.files import replace, temporary_file
from isanet_zoo.learning import distributed
from isanet_zoo.learning.batches import Augmented, EpochBatches
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.evaluation import evaluate
from isanet_zoo.learning.losses import balanced_weights
from isanet_zoo.learning.trainer import Trainer
from isanet_zoo.learning.transforms import Augment
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import whole_number
from isanet_zoo.weights.cards import save_model

PROTOCOL = "single scale, whole image, labels at original size"


@dataclass(frozen=True)
class Epoch:
    """A row of `log.csv`.

    Attributes:
        epoch: how many are done.
        step: how many steps are done.
        loss: mean over the epoch's steps.
        lr: learning rate of the encoder after it.
        seconds: time since the start of the run, pauses left out.
        miou: of the validation pictures; None where they were not looked at.
        pixel_accuracy: likewise.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    seconds: float
    miou: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True)
class Moment:
    """Where a run is, told after every step.

    Attributes:
        step: how many steps are done.
        steps: how many there will be.
        loss: of the last one.
        lr: learning rate of the encoder in the next one.
        remaining: seconds that the rest will take.
        last: the last finished epoch, if any.
    """

    step: int
    steps: int
    loss: float
    lr: float
    remaining: float
    last: Epoch | None


def train(
    model: ISANet,
    dataset: SegmentationDataset,
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    validation: SegmentationDataset | None = None,
    evaluate_every: int = 1,
    resume: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int = 0,
    accumulate: int = 1,
    progress: Callable[[Moment], None] | None = None,
) -> Path:
    """Train a model as a recipe says; under `torchrun`, with all its processes.

    Args:
        model: the network to start from, with an auxiliary head if the recipe weighs one.
        dataset: what to learn from.
        recipe: how.
        out: folder for weights, state and log; made if need be.
        validation: pictures to choose the best epoch by; none if None, the last is best then.
        evaluate_every: epochs between two looks at them; the last one is always followed by one.
        resume: go on where the run in `out` was stopped, even killed. On one process the outcome
            is that of a run that never was.
        seed: of order, views and dropout.
        device: where to compute; the model's device if None.
        workers: processes that read pictures ahead; 0 reads them in this one.
        accumulate: parts that each batch is worked off in, to save memory.
        progress: called after each step.

    Returns:
        The best weights, ``best.safetensors``: ``create_model(name, weights=...)`` loads them.

    Raises:
        InputError: the classes differ, `out` holds another run, or a picture cannot be used.
        CheckpointError: `out` holds a damaged state.
    """
    if model.label_set.names != dataset.label_set.names:
        raise InputError(
            f"the network's classes are {', '.join(model.classes)}, those of {dataset.name} "
            f"{', '.join(dataset.label_set.names)}; build it with the data set's label set"
        )
    whole_number("evaluate_every", evaluate_every)
    batches = EpochBatches(len(dataset), recipe, seed=seed)
    weights = recipe.class_weights
    trainer = Trainer(
        model,
        recipe,
        steps=batches.steps,
        class_weights=None if weights is None else balanced_weights(dataset, weights),
        device=device,
        accumulate=accumulate,
        seed=seed,
    )
    run = _Run(Path(out), recipe, model, dataset, seed)
    if resume:
        trainer.load_state_dict(run.load())
        batches.start = trainer.step
    else:
        run.begin()
    ignore_index = dataset.label_set.ignore_index
    augment = Augment(recipe, model.preprocess, ignore_index=ignore_index)
    loader = DataLoader(
        Augmented(dataset, augment, seed=seed),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=trainer.device.type == "cuda",
    )
    start, first = time.monotonic(), trainer.step
    before = run.epochs[-1].seconds if run.epochs else 0.0
    losses: list[Tensor] = []
    for images, target in loader:
        loss = trainer.train_step(images, target)
        losses.append(loss)
        seconds = time.monotonic() - start
        if trainer.step % batches.per_epoch == 0:
            epoch = trainer.step // batches.per_epoch
            scores = None
            if validation and (epoch % evaluate_every == 0 or epoch == recipe.epochs):
                scores = evaluate(trainer.result, validation)
            run.save(
                trainer,
                Epoch(
                    epoch,
                    trainer.step,
                    float(torch.stack(losses).mean()),
                    trainer.lr,
                    round(before + time.monotonic() - start, 1),
                    scores.miou if scores else None,
                    scores.pixel_accuracy if scores else None,
                ),
                validation,
            )
            losses = []
        if progress:
            remaining = seconds / (trainer.step - first) * (batches.steps - trainer.step)
            last = run.epochs[-1] if run.epochs else None
            moment = Moment(trainer.step, batches.steps, float(loss), trainer.lr, remaining, last)
            progress(moment)
    return run.best


class _Run:
    """The folder of a run."""

    def __init__(
        self, out: Path, recipe: Recipe, model: ISANet, dataset: SegmentationDataset, seed: int
    ) -> None:
        self.state, self.log = out / "state.pt", out / "log.csv"
        self.last, self.best = out / "last.safetensors", out / "best.safetensors"
        self.dataset = dataset
        self.recipe = recipe
        # What must not change between two parts of a run.
        self.terms = {
            **asdict(recipe),
            "network": repr(model.config),
            "classes": ", ".join(model.classes),
            "seed": seed,
            "pictures": len(dataset),
            "processes": distributed.world_size(),
        }
        self.epochs: list[Epoch] = []

    def begin(self) -> None:
        """Make the folder.

        Raises:
            InputError: there is a run in it, or it cannot be made.
        """
        if self.state.exists():
            raise InputError(f"{self.state.parent} holds a run already; resume it, or name another")
        try:
            self.state.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.state.parent} cannot be a folder: {error}") from error

    def load(self) -> dict[str, Any]:
        """Return the trainer's state, and remember the epochs so far.

        Raises:
            InputError: there is none, or it belongs to a run with other terms.
            CheckpointError: it is damaged.
        """
        if not self.state.exists():
            raise InputError(f"{self.state.parent} holds no run to resume: {self.state} is missing")
        try:
            with zipfile.ZipFile(self.state) as archive:  # torch does not compare the checksums
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"{damaged} has another checksum")
            content = torch.load(self.state, map_location="cpu", weights_only=True)
            terms, epochs, state = content["terms"], content["epochs"], content["trainer"]
        except Exception as error:  # the bytes of a damaged file can raise anything
            raise CheckpointError(f"{self.state} is damaged: {error}") from error
        changed = [
            f"{name} was {terms.get(name)!r}, is {value!r}"
            for name, value in self.terms.items()
            if terms.get(name) != value
        ]
        if changed:
            raise InputError(f"{self.state.parent} holds another run: {'; '.join(changed)}")
        self.epochs = [Epoch(**epoch) for epoch in epochs]
        if distributed.rank() == 0:
            for leftover in self.state.parent.glob(".*.part"):  # of a run that was killed
                leftover.unlink()
        trainer: dict[str, Any] = state
        return trainer

    def save(self, trainer: Trainer, epoch: Epoch, validation: SegmentationDataset | None) -> None:
        """Write everything about a finished epoch; the state, which decides, comes last."""
        known = [done.miou for done in self.epochs if done.miou is not None]
        known = [miou for miou in known if not math.isnan(miou)]
        self.epochs.append(epoch)
        if distributed.rank() > 0:
            return
        metrics = []
        if validation is not None and epoch.miou is not None:
            miou = 100 * epoch.miou
            metrics = [
                Metric("mIoU", miou, validation.name, (1.0,), False, PROTOCOL, "isanet_zoo", miou)
            ]
        best = validation is None or (
            epoch.miou is not None and (not known or epoch.miou > max(known))
        )
        for path in (self.last, self.best) if best else (self.last,):
            save_model(
                trainer.result,
                path,
                dataset=self.dataset.name,
                recipe=self.recipe,
                metrics=metrics,
            )
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(field.name for field in fields(Epoch))
        rows.writerows(
            ["" if value is None else value for value in asdict(done).values()]
            for done in self.epochs
        )
        _place(self.log, lambda path: path.write_text(table.getvalue(), "utf-8"))
        content = {
            "terms": self.terms,
            "epochs": [asdict(done) for done in self.epochs],
            "trainer": trainer.state_dict(),
        }
        _place(self.state, lambda path: torch.save(content, path))


def _place(path: Path, write: Callable[[Path], object]) -> None:
    with temporary_file(path.parent, path.suffix) as temporary:
        write(temporary)
        replace(temporary, path)
