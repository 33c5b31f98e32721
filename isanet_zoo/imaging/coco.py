"""Masks of classes as COCO writes them: compressed run lengths in column order, areas and boxes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Runs(NamedTuple):
    """Runs of pixels of one class, top to bottom, then left to right."""

    starts: NDArray[np.int64]  # positions in the flattened image
    ends: NDArray[np.int64]  # exclusive


def find_runs(labels: NDArray[np.uint8]) -> dict[int, Runs]:
    """Return the runs of each label of an (H, W) map."""
    flat = labels.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    return {int(k): Runs(starts[values == k], ends[values == k]) for k in np.unique(values)}


def annotate(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """Return the fields of a COCO annotation that describe a mask.

    Args:
        runs: the mask's pixels.
        size: height and width of the image.
    """
    height, width = size
    edges = np.stack(runs, axis=1).ravel()  # from 0 to 1 and back
    counts = np.diff(edges, prepend=0)
    if edges[-1] < height * width:
        counts = np.append(counts, height * width - edges[-1])
    first, last = runs.starts // height, (runs.ends - 1) // height  # columns
    left, right = int(first[0]), int(last[-1])
    top, bottom = 0, height - 1
    if (first == last).all():  # no run contains the lower end of a column and the next upper end
        top, bottom = int((runs.starts % height).min()), int(((runs.ends - 1) % height).max())
    return {
        "segmentation": {"size": [height, width], "counts": compress(counts)},
        "area": int((runs.ends - runs.starts).sum()),
        "bbox": [left, top, right - left + 1, bottom - top + 1],
        "iscrowd": 0,
    }


def compress(counts: NDArray[np.int64]) -> str:
    """Return run lengths as COCO's text.

    From the fourth on, a length is written as its difference to the second last. A number is
    written in groups of five bits, lowest first, each a character from ``"0"`` on; bit 6 is set if
    another group follows, and the last group has the sign in its highest bit.
    """
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    unfinished = np.ones(rest.shape, bool)
    groups = []
    while unfinished.any():
        group, rest = rest & 31, rest >> 5
        follows = rest != np.where(group & 16, -1, 0)
        groups.append(np.where(unfinished, group + 32 * follows + ord("0"), 0))
        unfinished &= follows
    text = np.stack(groups, axis=1).astype(np.uint8)  # (numbers, groups)
    return text[text > 0].tobytes().decode("ascii")
