"""Report of a training run: its recipe, tables, drawings, and a page that joins them."""

from __future__ import annotations

import csv
import io
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from isanet_zoo import records
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.imaging.writing import write_image
from isanet_zoo.inference.predictor import Predictor
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.metrics import Scores
from isanet_zoo.learning.plots import draw_confusion, draw_curves, draw_predictions
from isanet_zoo.learning.run_state import Epoch, best_of
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.version import __version__

SHOWN = 6  # images in predictions.png, at most


@dataclass(frozen=True)
class EpochResult:
    """A finished epoch, passed to `on_epoch` of `train` after its files were written.

    Attributes:
        epochs: all finished epochs; the last is this one.
        scores: of the validation images; None if they were not evaluated.
        confusion: (K, K) int64 pixels of the validation images, by their class (row) and the
            predicted class (column); None likewise.
        recipe: the hyper-parameters.
        model: the network with the resulting weights; it must not be changed.
        folder: the folder of the run.
    """

    epochs: tuple[Epoch, ...]
    scores: Scores | None
    confusion: NDArray[np.int64] | None
    recipe: Recipe
    model: ISANet
    folder: Path

    @property
    def epoch(self) -> Epoch:
        """This epoch."""
        return self.epochs[-1]

    @property
    def best(self) -> Epoch:
        """The first epoch with the highest mIoU so far; without validation, this one."""
        return best_of(self.epochs)

    def summary(self) -> str:
        """Return the IoU of each class in the best epoch, in per cent, and a line about the run."""
        best, lines = self.best, []
        if best.miou is not None:
            rows = [*zip(self.model.classes, best.iou, strict=True), ("mIoU", best.miou)]
            width = max(len(name) for name, _ in rows)
            lines = [f"{name:<{width}}  {_per_cent(iou):>6}" for name, iou in rows]
        return "\n".join([*lines, f"{_outcome(self.epochs, self.recipe)}"])


def write_report(
    result: EpochResult,
    *,
    data: tuple[SegmentationDataset, SegmentationDataset | None],
    device: torch.device,
    per_image: Sequence[Scores] = (),
) -> dict[str, str]:
    """Draw what belongs to an epoch; return the text files of the report by name.

    Args:
        result: the epoch.
        data: the images that were trained on, and those of the validation.
        device: where the run computes.
        per_image: scores of each validation image, if it was evaluated.

    Raises:
        InputError: a drawing cannot be written.
    """
    folder, names = result.folder, result.model.classes
    write_image(draw_curves(result.epochs, result.best), folder / "curves.png")
    texts = {"recipe.json": json.dumps(records.write(result.recipe), indent=2) + "\n"}
    validation = data[1]
    if result.confusion is not None and validation is not None and result.epoch == result.best:
        texts["confusion.csv"] = _confusion_csv(result.confusion, names)
        write_image(draw_confusion(result.confusion, names), folder / "confusion.png")
        rows = _examples(result.model, validation, per_image)
        write_image(draw_predictions(rows, validation.label_set), folder / "predictions.png")
    return texts | {"report.md": _page(result, data, device)}


def _examples(
    model: ISANet, dataset: SegmentationDataset, scores: Sequence[Scores]
) -> list[tuple[str, Segmentation, Segmentation]]:
    """Return titles, masks and predictions of images from the best to the worst one."""
    ordered = sorted(
        (index for index, own in enumerate(scores) if own.miou == own.miou),
        key=lambda index: -scores[index].miou,
    )
    count = min(SHOWN, len(ordered))
    places = np.linspace(0, len(ordered) - 1, count).round().astype(int)
    chosen = [ordered[place] for place in places]
    predictions = Predictor(model)([dataset.path(index) for index in chosen])
    assert isinstance(predictions, list)
    rows = []
    for index, prediction in zip(chosen, predictions, strict=True):
        path, labels = dataset.path(index), dataset.labels(index).numpy()
        title = f"{path.name}: mIoU {_per_cent(scores[index].miou)}"
        rows.append((title, Segmentation(labels, dataset.label_set, path=path), prediction))
    return rows


def _confusion_csv(confusion: NDArray[np.int64], names: Sequence[str]) -> str:
    """Return pixels by the class in the masks (row) and the predicted class (column)."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["mask / prediction", *names])
    rows.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))
    return table.getvalue()


def _page(
    result: EpochResult,
    data: tuple[SegmentationDataset, SegmentationDataset | None],
    device: torch.device,
) -> str:
    """Return the text of report.md."""
    (dataset, validation), recipe, last = data, result.recipe, result.epoch
    images = f"{len(dataset)} images of {dataset.name}"
    if validation is not None:
        images += f", validation on {len(validation)} of {validation.name}"
    parameters = sum(value.numel() for value in result.model.parameters())
    config, steps = result.model.config, last.step // last.epoch
    facts = {
        "data": images,
        "network": f"ISANet on {config.backbone}, {config.num_classes} classes, "
        f"{parameters / 1e6:.1f} M parameters with the auxiliary head",
        "recipe": f"[recipe.json](recipe.json): {steps} steps of {recipe.batch_size} images per "
        f"epoch, crop {recipe.crop[0]} x {recipe.crop[1]}, {recipe.optimizer}, lr {recipe.lr:g} "
        f"({recipe.schedule}), {recipe.loss}",
        "log": "[log.csv](log.csv), one row per epoch",
        "time": f"{last.seconds:.0f} s, {last.seconds / last.step:.2f} s per step, validation and "
        "reading included",
        "hardware": _hardware(device),
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {
                "isanet_zoo": __version__,
                "torch": torch.__version__,
                "timm": metadata.version("timm"),
                "Python": platform.python_version(),
            }.items()
        ),
    }
    lines = [f"# Training on {_cell(dataset.name)}", "", _outcome(result.epochs, recipe), ""]
    lines += ["![Loss, learning rate and mIoU per epoch](curves.png)", ""]
    if result.best.miou is not None:
        lines += _class_table(result)
        lines += ["![Confusion matrix](confusion.png)", ""]
        lines += ["Pixels: [confusion.csv](confusion.csv).", ""]
        lines += ["Images of the validation, from the best to the worst:", ""]
        lines += ["![Image, mask and prediction](predictions.png)", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(text)} |" for key, text in facts.items())]
    lines += ["", "Use the best weights, in this folder:", "", "```bash", *next_steps(), "```", ""]
    return "\n".join(lines)


def _class_table(result: EpochResult) -> list[str]:
    """Return the IoU of each class in the best and in the last evaluated epoch as Markdown."""
    best, last = result.best, [epoch for epoch in result.epochs if epoch.miou is not None][-1]
    lines = [f"| class | epoch {best.epoch} | epoch {last.epoch} |", "|---|---:|---:|"]
    rows = zip(result.model.classes, best.iou, last.iou, strict=True)
    for name, own, newest in [*rows, ("**mIoU**", best.miou, last.miou)]:
        lines.append(f"| {_cell(name)} | {_per_cent(own)} | {_per_cent(newest)} |")
    return ["IoU in per cent, in the best and in the last epoch:", "", *lines, ""]


def _outcome(epochs: Sequence[Epoch], recipe: Recipe) -> str:
    """Return one line about the best epoch and the end of a run."""
    best, last = best_of(epochs), epochs[-1]
    text = f"{last.epoch} of {recipe.epochs} epochs"
    if best.miou is not None:
        text = f"best epoch {best.epoch} of {last.epoch}: mIoU {_per_cent(best.miou)} "
        text += f"({best.classes} classes), pixel accuracy {_per_cent(best.pixel_accuracy)}"
        if last.epoch < recipe.epochs:
            text += f"; {recipe.epochs} epochs were planned"
    return text


def next_steps(folder: Path = Path()) -> list[str]:
    """Return commands that use the best weights of a run, by default in its folder."""
    best = shlex.quote(str(folder / "best.safetensors"))
    return [
        f"isanet-zoo predict IMAGE_OR_FOLDER -m {best} -o results",
        f"isanet-zoo evaluate {best} --data DATA",
        f"isanet-zoo export {best} model.onnx",
    ]


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"
    world = distributed.world_size()
    return f"{world} processes, {name}" if world > 1 else name


def _per_cent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _cell(text: str) -> str:
    """Return text without the characters that end a cell of a Markdown table."""
    return text.replace("|", r"\|")
