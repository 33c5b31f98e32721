"""Drawings of a training run: curves, confusion matrix, and predictions beside their masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.learning.run_state import Epoch
from isanet_zoo.manifest.labels import LabelSet

FINER = 2  # drawn so many times larger and then reduced, for smooth lines
PANEL = (360, 260)  # (width, height) of a curve's panel, in pixels
MARGINS = (58, 30, 16, 34)  # left, top, right and bottom of its axes
THUMBNAIL = (300, 300)  # largest width and height of an image beside its masks
INK, GRID, CURVE, MARK = "#222222", "#dddddd", "#1f5fa8", "#c8371f"


def draw_curves(epochs: Sequence[Epoch], best: Epoch) -> Image.Image:
    """Draw loss, learning rate and, if there was a validation, mIoU; mark the best epoch."""
    curves = {
        "training loss": [(epoch.epoch, epoch.loss) for epoch in epochs],
        "learning rate": [(epoch.epoch, epoch.lr) for epoch in epochs],
        f"validation mIoU, per cent (best: epoch {best.epoch})": [
            (epoch.epoch, 100 * epoch.miou) for epoch in epochs if epoch.miou is not None
        ],
    }
    panels = [(title, points) for title, points in curves.items() if points]
    size = FINER * PANEL[0] * len(panels), FINER * PANEL[1]
    image = Image.new("RGB", size, "white")
    for number, (title, points) in enumerate(panels):
        _draw_panel(ImageDraw.Draw(image), PANEL[0] * number, title, points, best.epoch)
    return image.reduce(FINER)


def _draw_panel(
    draw: ImageDraw.ImageDraw, left: int, title: str, points: list[tuple[int, float]], best: int
) -> None:
    """Draw a curve with its axes; `left` is the panel's place in pixels."""
    values = [value for _, value in points]
    rows, columns = _ticks(min(values), max(values)), _ticks(1, points[-1][0], whole=True)
    x0, y0 = left + MARGINS[0], PANEL[1] - MARGINS[3]
    x1, y1 = left + PANEL[0] - MARGINS[2], MARGINS[1]

    def place(epoch: float, value: float) -> tuple[float, float]:
        x = x0 + (x1 - x0) * (epoch - columns[0]) / (columns[-1] - columns[0])
        y = y0 + (y1 - y0) * (value - rows[0]) / (rows[-1] - rows[0])
        return FINER * x, FINER * y

    _write(draw, place((columns[0] + columns[-1]) / 2, rows[-1]), title, "md", size=13)
    for row in rows:
        line = place(columns[0], row), place(columns[-1], row)
        draw.line(line, GRID, FINER)
        _write(draw, line[0], f"{row:.6g} ", "rm")
    for column in columns:
        x, y = place(column, rows[0])
        _write(draw, (x, y + 4 * FINER), f"{column:g}", "ma")
    _write(draw, (FINER * x1, FINER * PANEL[1] - 2 * FINER), "epoch", "rd")
    draw.line([place(*point) for point in points], CURVE, 2 * FINER, joint="curve")
    for epoch, value in points:
        radius = 2 * FINER if epoch != best else 4 * FINER
        draw.circle(place(epoch, value), radius, MARK if epoch == best else CURVE)


def draw_confusion(confusion: NDArray[np.int64], names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix (K, K) of pixels, in per cent of each row, the class in the masks."""
    totals = confusion.sum(1, keepdims=True)
    fractions = confusion / np.maximum(totals, 1)
    cell = max(14, min(52, 660 // len(names)))
    em = min(13, cell - 2)
    labels = [f"{name}  {number} " for number, name in enumerate(names)]
    font: Any = ImageFont.load_default(em)
    left = 8 + math.ceil(max(font.getlength(label) for label in labels))
    top, side = 50, cell * len(names)
    width = max(left + side + 10, 420)
    image = Image.new("RGB", (FINER * width, FINER * (top + side + 10)), "white")
    draw = ImageDraw.Draw(image)
    title = "per cent of the pixels of a class (row) by predicted class (column)"
    _write(draw, (8 * FINER, 8 * FINER), title, "la")
    for row, label in enumerate(labels):
        middle = FINER * (top + cell * (row + 0.5))
        _write(draw, (FINER * left, middle), label, "rm", size=em)
        centre = FINER * (left + cell * (row + 0.5))
        _write(draw, (centre, FINER * (top - 2)), str(row), "md", size=em)
        for column, fraction in enumerate(fractions[row]):
            x, y = FINER * (left + cell * column), FINER * (top + cell * row)
            fill = tuple(round(255 - fraction * (255 - end)) for end in (31, 95, 168))
            draw.rectangle((x, y, x + FINER * cell, y + FINER * cell), fill, GRID)
            if cell >= 30 and totals[row]:
                text, colour = f"{100 * fraction:.1f}", "white" if fraction > 0.5 else INK
                _write(draw, (x + FINER * cell / 2, middle), text, "mm", colour, min(12, cell // 3))
    return image.reduce(FINER)


def draw_predictions(
    rows: Iterable[tuple[str, Segmentation, Segmentation]], label_set: LabelSet
) -> Image.Image:
    """Draw an image, its mask and its prediction in each row, and the colours of the classes.

    Args:
        rows: a title, the mask and the prediction of each image; the mask's `path` is the image.
        label_set: names and colours.
    """
    lines = []
    for title, truth, prediction in rows:
        cells = [truth.overlay(alpha=0.0, legend=False)]
        cells += [either.overlay(alpha=0.6, legend=False) for either in (truth, prediction)]
        for each in cells:
            each.thumbnail(THUMBNAIL)
        lines.append((title, cells))
    width = max(sum(cell.width + 6 for cell in cells) for _, cells in lines) + 6
    heights = [cells[0].height + 24 for _, cells in lines]
    legend, legend_height = _legend(label_set, width)
    image = Image.new("RGB", (width, 26 + sum(heights) + legend_height), "white")
    draw, top = ImageDraw.Draw(image), 26
    for number, head in enumerate(("image", "mask", "prediction")):
        x = 6 + number * (lines[0][1][0].width + 6)
        draw.text((x, 6), head, INK, ImageFont.load_default(14))
    for (title, cells), height in zip(lines, heights, strict=True):
        draw.text((6, top), title, INK, ImageFont.load_default(12))
        for number, each in enumerate(cells):
            image.paste(each, (6 + number * (each.width + 6), top + 16))
        top += height
    for x, y, index in legend:
        draw.rectangle((x, top + y + 2, x + 12, top + y + 14), label_set.colours[index], INK)
        draw.text((x + 18, top + y), label_set.short_name(index), INK, ImageFont.load_default(12))
    return image


def _legend(label_set: LabelSet, width: int) -> tuple[list[tuple[int, int, int]], int]:
    """Return the (x, y, id) of each class's entry in lines of `width` pixels, and their height."""
    font: Any = ImageFont.load_default(12)
    entries, x, y = [], 6, 4
    for index in range(len(label_set)):
        length = 34 + math.ceil(font.getlength(label_set.short_name(index)))
        if x + length > width and x > 6:
            x, y = 6, y + 20
        entries.append((x, y, index))
        x += length
    return entries, y + 24


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return two to six round numbers that enclose a range."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    if whole:
        step = max(round(step), 1)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    anchor: str,
    colour: str = INK,
    size: int = 11,
) -> None:
    """Write text in a drawing that is reduced afterwards; `at` is in its own pixels."""
    draw.text(at, text, colour, ImageFont.load_default(FINER * size), anchor)
