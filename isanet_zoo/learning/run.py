"""Training runs: batches, steps, and evaluation and saving after every epoch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from isanet_zoo.engines.engine import Device, resolve_device
from isanet_zoo.errors import InputError
from isanet_zoo.learning import distributed
from isanet_zoo.learning.batches import Augmented, EpochBatches, read_batches
from isanet_zoo.learning.contact_sheet import write_check_sheet
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.evaluation import evaluate
from isanet_zoo.learning.losses import balanced_weights
from isanet_zoo.learning.mask_check import check_masks
from isanet_zoo.learning.memory import enough_memory
from isanet_zoo.learning.metrics import Scores, SegmentationMetrics
from isanet_zoo.learning.norms import check_batch
from isanet_zoo.learning.report import EpochResult, write_report
from isanet_zoo.learning.run_folder import RunFolder
from isanet_zoo.learning.run_state import Epoch, has_stalled
from isanet_zoo.learning.scan import Progress
from isanet_zoo.learning.trainer import MAX_SEED, Trainer
from isanet_zoo.learning.transforms import Augment
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import Range, Record

Count = Annotated[int, Range(1, 1_000_000)]


@dataclass(frozen=True)
class RunOptions(Record):
    """Options of a run beside its recipe, see `train`.

    Raises:
        InputError: a number is out of range.
    """

    evaluate_every: Count
    seed: Annotated[int, Range(0, MAX_SEED)]
    workers: Annotated[int, Range(0, 256)]
    accumulate: Count


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run, passed to `progress` after each step."""

    step: int  # number of finished steps
    steps: int  # number of steps of the whole run
    loss: float  # of the last step
    lr: float  # learning rate of the encoder in the next step
    remaining: float  # estimated seconds until the end
    last: Epoch | None  # the last finished epoch, if any


class _Hooks(NamedTuple):
    """The caller's functions, see `train`."""

    progress: Callable[[RunProgress], None] | None
    validation_progress: Callable[[int, int | None], None] | None
    on_epoch: Callable[[EpochResult], None] | None


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
    device: Device | None = None,
    workers: int = 0,
    accumulate: int = 1,
    check: bool = True,
    check_progress: Progress | None = None,
    progress: Callable[[RunProgress], None] | None = None,
    validation_progress: Callable[[int, int | None], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> Path:
    """Train a model with a recipe; under `torchrun`, with all its processes.

    Args:
        model: the network to start from, with an auxiliary head if `recipe.aux_weight` is not 0.
        dataset: images and masks to train on.
        recipe: the hyper-parameters.
        out: folder for weights, state and log; created if necessary.
        validation: images and masks that choose the best epoch; if None, the last is the best.
        evaluate_every: epochs between two evaluations; the last epoch is always evaluated.
        resume: resume the run in `out`. On one process the result is identical to an uninterrupted
            run. With a recipe of more epochs the run is extended.
        seed: of order, augmentation and dropout, 0..2^63 - 1.
        device: where to compute; the model's device if None.
        workers: number of processes that read images ahead; 0 reads in this process.
        accumulate: number of chunks per batch (gradient accumulation), to save memory.
        check: read all masks of both data sets first, see `check_masks`, and draw ``check.png``.
        check_progress: called with (pairs checked, pairs in all) meanwhile.
        progress: called after each step.
        validation_progress: called with (images done, images in all) during each validation.
        on_epoch: called after each epoch, in the first process, when the epoch's files are written.
            A resumed run starts with another call for its last finished epoch.

    Returns:
        The best weights, ``best.safetensors``: ``create_model(name, weights=...)`` loads them.

    Raises:
        InputError: the classes differ, there is no validation for `recipe.patience`, `out` contains
            another run or is in use, an image or mask cannot be used, a number is out of range, a
            file cannot be written, or the loss or a weight is no longer finite.
        CheckpointError: the state in `out` is damaged, altered or of another network.
    """
    options = RunOptions(evaluate_every, seed, workers, accumulate)
    device = resolve_device(device, next(model.parameters()).device)
    for data in (dataset, validation):
        _check_classes(model, data)
    if recipe.patience and validation is None:
        raise InputError(
            f"patience is {recipe.patience}, but there is no validation to improve; pass some, or "
            "set patience to None"
        )
    check_batch(model.freeze(*recipe.frozen), recipe, options.accumulate)
    batches = EpochBatches(len(dataset), recipe, seed=options.seed)
    folder = RunFolder(
        Path(out),
        model=model,
        dataset=dataset,
        validation=validation,
        recipe=recipe,
        seed=options.seed,
    )
    with folder.open(resume=resume):
        trainer = Trainer(
            model,
            recipe,
            steps=batches.steps,
            class_weights=_check_data(dataset, validation, recipe, check_progress, check=check),
            device=device,
            accumulate=options.accumulate,
            seed=options.seed,
        )
        if resume:
            folder.restore(trainer, steps_per_epoch=batches.per_epoch)
            batches.start = trainer.step
        elif check:
            write_check_sheet(folder.sheet, dataset, _augment(trainer, folder), seed=options.seed)
        hooks = _Hooks(progress, validation_progress, on_epoch)
        try:
            _run(trainer, folder, batches, options, hooks)
        finally:
            trainer.finish()
    return folder.best


def _run(
    trainer: Trainer,
    folder: RunFolder,
    batches: EpochBatches,
    options: RunOptions,
    hooks: _Hooks,
) -> None:
    """Train from the trainer's step to the last one, or until the validation stops improving."""
    recipe, validation, progress = folder.recipe, folder.validation, hooks.progress
    if folder.epochs:  # the files of a resumed run may be older than its state
        _finish_epoch(trainer, folder, hooks)
        if has_stalled(folder.epochs, recipe.patience):
            return
    views = Augmented(folder.dataset, _augment(trainer, folder), seed=batches.seed)
    on_cpu, on_cuda = trainer.device.type == "cpu", trainer.device.type == "cuda"
    start, first = time.monotonic(), trainer.step
    seconds_before = folder.epochs[-1].seconds if folder.epochs else 0.0
    losses: list[Tensor] = []
    for images, target in read_batches(views, batches, workers=options.workers, pin_memory=on_cuda):
        lr = trainer.lr
        loss = trainer.train_step(images, target)
        losses.append(loss)
        if progress or on_cpu:  # otherwise, reading the loss would wait for the GPU
            _check_loss(float(loss), trainer, folder, lr)
        seconds = time.monotonic() - start
        if trainer.step % batches.per_epoch == 0:
            mean = float(torch.stack(losses).mean())
            losses = []
            _check_loss(mean, trainer, folder, lr)
            _check_state(images[:1], trainer, folder, lr)
            number = trainer.step // batches.per_epoch
            elapsed = round(seconds_before + seconds, 1)
            epoch = Epoch(number, trainer.step, mean, trainer.lr, elapsed, None, None, None, ())
            due = number % options.evaluate_every == 0 or number == recipe.epochs
            folder.save_state(trainer, epoch, due=validation is not None and due)
            _finish_epoch(trainer, folder, hooks)
        if progress:
            remaining = seconds / (trainer.step - first) * (batches.steps - trainer.step)
            last = folder.epochs[-1] if folder.epochs else None
            progress(
                RunProgress(trainer.step, batches.steps, float(loss), trainer.lr, remaining, last)
            )
        if trainer.step % batches.per_epoch == 0 and has_stalled(folder.epochs, recipe.patience):
            return


def _augment(trainer: Trainer, folder: RunFolder) -> Augment:
    ignored = folder.dataset.label_set.ignore_index
    return Augment(folder.recipe, trainer.model.preprocess, ignore_index=ignored)


def _finish_epoch(trainer: Trainer, folder: RunFolder, hooks: _Hooks) -> None:
    """Evaluate an epoch whose state is saved, if that is due; save its weights and the report."""
    validation, scores, per_image = folder.validation, None, list[Scores]()
    names = folder.dataset.label_set.names
    counts = SegmentationMetrics(len(names), classes=names)
    if folder.due and validation is not None:
        advice = (
            "while evaluating whole images; make the validation images smaller, or train without "
            "them (--no-val)"
        )
        with enough_memory(trainer.device, advice):
            scores = evaluate(
                trainer.result,
                validation,
                check=False,
                progress=hooks.validation_progress,
                each=lambda _, own: per_image.append(own),
                counts=counts,
            )
    folder.save_weights(trainer, scores)
    if distributed.rank() > 0:
        return
    result = EpochResult(
        tuple(folder.epochs),
        scores,
        counts.confusion if scores else None,
        folder.recipe,
        trainer.result,
        folder.folder,
    )
    folder.save_report(
        write_report(
            result,
            data=(folder.dataset, validation),
            device=trainer.device,
            per_image=per_image,
        )
    )
    if hooks.on_epoch:
        hooks.on_epoch(result)


def _check_loss(loss: float, trainer: Trainer, folder: RunFolder, lr: float) -> None:
    if not math.isfinite(loss):
        raise _divergence(f"the loss is {loss}", trainer, folder, lr)


def _check_state(images: Tensor, trainer: Trainer, folder: RunFolder, lr: float) -> None:
    for key in distributed.gather(trainer.find_not_finite(images)):
        if key:
            raise _divergence(f"{key} is not finite", trainer, folder, lr)


def _divergence(what: str, trainer: Trainer, folder: RunFolder, lr: float) -> InputError:
    saved = f"{folder.folder} still contains the state and weights of epoch {len(folder.epochs)}"
    return InputError(
        f"training diverged: {what} after step {trainer.step} of {trainer.steps} (learning rate "
        f"{lr:g}); {saved if folder.epochs else 'nothing was saved'}; use a lower lr"
    )


def _check_classes(model: ISANet, dataset: SegmentationDataset | None) -> None:
    if dataset is not None and dataset.label_set.names != model.label_set.names:
        raise InputError(
            f"the model has the classes {', '.join(model.classes)}, {dataset.name} has "
            f"{', '.join(dataset.label_set.names)}; build the model with the data set's label set"
        )


def _check_data(
    dataset: SegmentationDataset,
    validation: SegmentationDataset | None,
    recipe: Recipe,
    progress: Progress | None,
    *,
    check: bool,
) -> Tensor | None:
    """Check the masks, if requested; return the weights of the classes, if the recipe has some."""
    checked = [dataset] if check or recipe.class_weights is not None else []
    if check and validation is not None:
        checked.append(validation)
    pixels = check_masks(checked, progress=progress)
    return balanced_weights(pixels[0], recipe.class_weights) if recipe.class_weights else None
