"""Contact sheets: images with their masks laid over, and augmented images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.imaging.writing import write_image
from isanet_zoo.learning import distributed
from isanet_zoo.learning.batches import Augmented
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.scan import Scanned, scan
from isanet_zoo.learning.transforms import Augment
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.labels import LabelSet

CELL = (300, 225)  # largest width and height of an image on a sheet, in pixels
COLUMNS = 4
MARGIN, LINE = 8, 18  # pixels
ALPHA = 0.5  # weight of the masks' colours
MOST_LEGEND = 32  # classes in the legend


class Cell(NamedTuple):
    """An image on a sheet."""

    image: Image.Image  # RGB
    caption: str


def write_check_sheet(
    path: Path, dataset: SegmentationDataset, augment: Augment, *, seed: int = 0
) -> None:
    """Write the `check_sheet` of a data set to a file; under `torchrun`, on the first process.

    Raises:
        InputError: the file cannot be written.
    """
    (scanned,) = scan([dataset])
    if distributed.rank() == 0 and any(own.problem is None for own in scanned):
        write_image(check_sheet(dataset, scanned, augment, seed=seed), path)


def check_sheet(
    dataset: SegmentationDataset,
    scanned: Sequence[Scanned],
    augment: Augment,
    *,
    seed: int = 0,
    count: int = 12,
) -> Image.Image:
    """Draw images with their masks, and augmented images as the network sees them.

    Args:
        dataset: the images; files with problems are left out.
        scanned: the outcome of `scan`, of which at least one has no problem.
        augment: the augmentation and preprocessing of a recipe.
        seed: of the augmentation.
        count: number of images in each part.
    """
    labels = dataset.label_set
    chosen = choose(dataset, scanned, count)
    views = Augmented(dataset, augment, seed=seed)
    masked = [Cell(overlay(*dataset[i], labels), dataset.path(i).name) for i in chosen]
    augmented = []
    for number in range(count):
        index = chosen[number % len(chosen)]
        image, target = views[number // len(chosen), index]
        pixels = undo_preparation(image, augment.preprocess)
        augmented.append(Cell(overlay(pixels, target, labels), dataset.path(index).name))
    height, width = augment.recipe.crop
    values = {value for own in scanned if own.problem is None for value in own.facts.counts}
    occurring = [index for index, value in enumerate(labels.official_ids) if value in values]
    parts = [
        (f"{dataset.name}: images with their masks; dark pixels have no class", masked),
        (f"Augmented, as the network sees them: crops of {width} x {height} pixels", augmented),
    ]
    return draw_sheet(parts, labels, occurring)


def choose(dataset: SegmentationDataset, scanned: Sequence[Scanned], count: int) -> list[int]:
    """Return up to `count` images, in order: each class occurs, if possible; others evenly."""
    labels = dataset.label_set
    usable = [index for index, own in enumerate(scanned) if own.problem is None]
    by_class = [
        [index for index in usable if scanned[index].facts.counts.get(official)]
        for official in labels.official_ids
    ]
    chosen: set[int] = set()
    for members in sorted((m for m in by_class if m), key=len):  # the rarest class first
        if len(chosen) < count and not chosen.intersection(members):
            chosen.add(members[len(members) // 2])
    rest = [index for index in usable if index not in chosen]
    missing = min(count - len(chosen), len(rest))
    chosen.update(rest[number * len(rest) // missing] for number in range(missing))
    return sorted(chosen)


def overlay(pixels: Tensor, target: Tensor, labels: LabelSet) -> Image.Image:
    """Return (3, H, W) uint8 pixels blended with the colours of (H, W) labels, within `CELL`."""
    segmentation = Segmentation(target.to(torch.uint8).numpy(), labels)
    image = segmentation.overlay(pixels, ALPHA, legend=False)
    image.thumbnail(CELL)
    return image


def undo_preparation(image: Tensor, config: Preprocess) -> Tensor:
    """Return the network's input, (3, h, w) float32, as (3, h, w) uint8 RGB."""
    levels = image.flip(0) if config.order == "bgr" else image
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (levels * std + mean).round().clamp(0, 255).to(torch.uint8)


def draw_sheet(
    parts: Iterable[tuple[str, Sequence[Cell]]], labels: LabelSet, legend: Sequence[int]
) -> Image.Image:
    """Draw parts, each with a heading and rows of images, and a legend of some classes."""
    font: Any = ImageFont.load_default(13)
    parts = list(parts)
    step = CELL[0] + MARGIN
    width = COLUMNS * step + MARGIN
    rows = [-(-len(cells) // COLUMNS) for _, cells in parts]
    legend_rows = -(-min(len(legend), MOST_LEGEND) // COLUMNS)
    height = sum(2 * LINE + count * (CELL[1] + LINE + MARGIN) for count in rows)
    sheet = Image.new("RGB", (width, height + (legend_rows + 1) * LINE), "white")
    canvas = ImageDraw.Draw(sheet)
    top = MARGIN
    for number, index in enumerate(legend[:MOST_LEGEND]):
        left = MARGIN + number % COLUMNS * step
        row = top + number // COLUMNS * LINE
        box = (left, row, left + 12, row + 12)
        canvas.rectangle(box, fill=labels.colours[index], outline="black")
        canvas.text((left + LINE, row), labels.short_name(index)[:40], "black", font)
    top += legend_rows * LINE
    for heading, cells in parts:
        canvas.text((MARGIN, top + MARGIN), heading, "black", ImageFont.load_default(16))
        top += 2 * LINE
        for number, cell in enumerate(cells):
            left = MARGIN + number % COLUMNS * step
            row = top + number // COLUMNS * (CELL[1] + LINE + MARGIN)
            sheet.paste(cell.image, (left, row))
            canvas.text((left, row + cell.image.height + 1), cell.caption[:44], "black", font)
        top += -(-len(cells) // COLUMNS) * (CELL[1] + LINE + MARGIN)
    return sheet
