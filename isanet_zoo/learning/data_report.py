"""Reports about data sets: sizes, frequency of classes, problems, suspected mistakes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from isanet_zoo.files import hash_file
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.scan import Scanned

LISTED = 10  # files, classes or values that a line lists at most


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs."""

    id: int | None  # its value in masks; None for pixels without a class
    name: str
    pixels: int
    images: int  # that have a pixel of it


@dataclass(frozen=True)
class SplitReport:
    """The files of a split that can be used."""

    name: str
    images: int  # in all
    usable: int  # whose mask can be used
    sizes: dict[str, int]  # "width x height" -> images
    classes: tuple[ClassCount, ...]  # the last one: pixels without a class

    @property
    def pixels(self) -> int:
        """The number of all pixels."""
        return sum(count.pixels for count in self.classes)


@dataclass(frozen=True)
class DataReport:
    """What is in data sets."""

    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]  # a data set with problems cannot be used
    suspicions: tuple[str, ...]  # possible mistakes


def report(
    datasets: Sequence[SegmentationDataset],
    scanned: Sequence[Sequence[Scanned]],
    problems: Iterable[str] = (),
) -> DataReport:
    """Summarise what `scan` found in the splits of a data set.

    Args:
        datasets: the splits.
        scanned: the outcome of `scan` for them.
        problems: those found before, which come first.
    """
    found, suspicions = list(problems), []
    for dataset, own in zip(datasets, scanned, strict=True):
        found += [outcome.problem for outcome in own if outcome.problem]
        found += find_contradiction(dataset, own)
        suspicions += find_suspicions(dataset, own)
    splits = tuple(_split(*both) for both in zip(datasets, scanned, strict=True))
    return DataReport(splits, tuple(found), (*suspicions, *find_duplicates(datasets)))


def _split(dataset: SegmentationDataset, scanned: Sequence[Scanned]) -> SplitReport:
    good = [own for own in scanned if own.problem is None]
    values = torch.stack([own.values for own in good]) if good else torch.zeros(0, 256).long()
    labels = dataset.label_set
    columns = values[:, list(labels.official_ids)]  # (images, K)
    rest = values.sum(1, keepdim=True) - columns.sum(1, keepdim=True)
    names = [*zip(labels.official_ids, labels.names, strict=True), (None, "no class")]
    columns = torch.cat([columns, rest], dim=1)
    classes = tuple(
        ClassCount(value, name, int(column.sum()), int((column > 0).sum()))
        for (value, name), column in zip(names, columns.T, strict=True)
    )
    sizes = Counter(f"{own.facts.size[1]} x {own.facts.size[0]}" for own in good)
    return SplitReport(dataset.name, len(scanned), len(good), dict(sizes.most_common()), classes)


def find_contradiction(dataset: SegmentationDataset, scanned: Sequence[Scanned]) -> list[str]:
    """Return why the masks as a whole cannot be used: no pixel has a class, or all are 0 or 255."""
    values = torch.stack([own.values for own in scanned]).sum(0)  # (256,)
    labels, masks = dataset.label_set, f"the {len(dataset)} masks of {dataset.name}"
    found = values.nonzero().flatten().tolist()
    if not found or any(own.problem for own in scanned):
        return []
    if not values[list(labels.official_ids)].any():
        return [f"every pixel of {masks} is ignored; found values {found[:LISTED]}"]
    if found == [0, 255] and 255 not in labels.official_ids:
        binary = "open them as binary masks (--binary)"
        if len(labels) > 2:
            binary = (
                f"replace it by the id of its class, such as {labels.official_ids[1]} for "
                f"{labels.names[1]!r}"
            )
        return [
            f"{masks} contain only 0 and 255, and 255 marks pixels without a class, so there is no "
            f"pixel of {shorten(find_absent(dataset, scanned))}; if 255 marks an object, {binary}"
        ]
    return []


def find_absent(dataset: SegmentationDataset, scanned: Sequence[Scanned]) -> list[str]:
    """Return the classes that no mask contains."""
    values = torch.stack([own.values for own in scanned]).sum(0)[
        list(dataset.label_set.official_ids)
    ]
    return [name for name, n in zip(dataset.label_set.names, values, strict=True) if not n]


def find_suspicions(dataset: SegmentationDataset, scanned: Sequence[Scanned]) -> list[str]:
    """Return possible mistakes in the files of a data set, a line for each kind."""
    ids = set(dataset.label_set.official_ids)
    found: dict[str, list[Path]] = defaultdict(list)
    good = [own for own in scanned if own.problem is None]
    for (image, mask), own in zip(dataset.pairs, scanned, strict=True):
        values = set(own.facts.counts)
        if own.problem:
            continue
        if own.facts.doubtful:
            found["images are turned by their EXIF orientation, their masks are not"].append(image)
        if values == {0, 255} and 255 not in ids and any(len(o.facts.counts) > 2 for o in good):
            found["masks contain only 0 and 255, which marks pixels without a class"].append(mask)
        if not values & ids:
            found["masks have no pixel of any class"].append(mask)
    lines = [
        f"{dataset.name}: {len(files)} {what}: {shorten(files)}" for what, files in found.items()
    ]
    if absent := find_absent(dataset, good) if good else []:
        lines.append(
            f"the {len(dataset)} masks of {dataset.name} have no pixel of {shorten(absent)}"
        )
    return lines


def find_duplicates(datasets: Sequence[SegmentationDataset]) -> list[str]:
    """Return the images that are in two data sets, byte for byte, a line for each two data sets."""
    files: dict[int, list[tuple[int, Path]]] = defaultdict(list)  # by size: few need to be hashed
    for number, dataset in enumerate(datasets):
        for image, _ in dataset.pairs:
            if image.is_file():
                files[image.stat().st_size].append((number, image))
    first: dict[str, tuple[int, Path]] = {}
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for same_size in files.values():
        if len({number for number, _ in same_size}) < 2:
            continue
        for number, image in same_size:
            other, twin = first.setdefault(hash_file(image), (number, image))
            if other != number:
                found[other, number].append(f"{twin} = {image}")
    return [
        f"{len(twins)} images of {datasets[second].name} are also in {datasets[one].name}: "
        f"{shorten(twins)}"
        for (one, second), twins in found.items()
    ]


def shorten(items: Sequence[object]) -> str:
    """Return the first items of a list, and how many more there are."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(map(str, items[:LISTED])) + more


def list_problems(problems: Sequence[str], pairs: int) -> str:
    """Return the problems of pairs of files as one message."""
    if len(problems) == 1:
        return problems[0]
    lines = [f"{len(problems)} of {pairs} pairs of image and mask cannot be used:"]
    lines += problems[:LISTED]
    if len(problems) > LISTED:
        lines.append(f"and {len(problems) - LISTED} more")
    return "\n  ".join(lines)
