"""Check of all masks of a data set before a run; what was read is cached on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from PIL import ExifTags
from torch import Tensor

from isanet_zoo.cache import cache_root
from isanet_zoo.errors import InputError
from isanet_zoo.files import atomic_write, open_regular
from isanet_zoo.imaging.formats import open_image
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.inference.threads import in_order
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset, check_sizes, read_mask

logger = logging.getLogger(__name__)

LISTED = 10  # problems, or classes, that a message lists at most

Progress: TypeAlias = Callable[[int, int], None]  # (pairs checked, pairs in all)
Counts: TypeAlias = dict[int, int]  # mask value -> pixels
Cached: TypeAlias = dict[str, tuple[list[int], Counts]]  # mask -> time and size of files, counts


class _Checked(NamedTuple):
    """The outcome for one pair of files."""

    mask: str
    signature: list[int]  # time and size of image and mask
    counts: Counts  # empty if they are not known
    problem: str | None


def check_masks(
    datasets: Sequence[SegmentationDataset], *, progress: Progress | None = None
) -> list[Tensor]:
    """Read every mask of data sets; compare it with the classes and with the size of its image.

    Under `torchrun`, each process reads a part. The outcome for a pair of files is kept in the
    zoo's cache until the time or size of one of them changes. Classes without a pixel are logged.

    Args:
        datasets: images and masks.
        progress: called with (pairs checked, pairs in all) of this process after each pair.

    Returns:
        The number of pixels of each class of each data set, (K,) int64.

    Raises:
        InputError: a mask or image cannot be read, sizes differ, or values are not ids of classes
            (the message lists the first problems of all data sets); or a data set has pixels of no
            class, or all its values are 0 and 255, and 255 is ignored.
    """
    paths = [_cache_path(dataset) for dataset in datasets]
    caches = [_read_cache(path) for path in paths]
    pairs = [(number, pair) for number, data in enumerate(datasets) for pair in range(len(data))]
    mine = pairs[distributed.rank() :: distributed.world_size()]

    def check_pair(pair: tuple[int, int]) -> tuple[int, _Checked]:
        number, index = pair
        return number, _check_pair(datasets[number], caches[number], index)

    outcomes = []
    for outcome in in_order(check_pair, mine):
        outcomes.append(outcome)
        if progress:
            progress(len(outcomes), len(mine))
    outcomes = [outcome for part in distributed.gather(outcomes) for outcome in part]
    checked = [[own for number, own in outcomes if number == n] for n in range(len(datasets))]
    if distributed.rank() == 0:
        for path, cached, own in zip(paths, caches, checked, strict=True):
            _write_cache(path, cached, own)
    if problems := [outcome.problem for _, outcome in outcomes if outcome.problem]:
        raise InputError(_list_problems(problems, len(pairs)))
    return [_check_totals(data, own) for data, own in zip(datasets, checked, strict=True)]


def _check_pair(dataset: SegmentationDataset, cached: Cached, index: int) -> _Checked:
    image, mask = dataset.pairs[index]
    key, signature, counts = str(mask.absolute()), [], Counts()
    try:
        for path in (image, mask):
            status = path.stat()
            signature += [status.st_mtime_ns, status.st_size]
        known_signature, known_counts = cached.get(key, ([], {}))
        counts = known_counts if known_signature == signature else _count(image, mask)
        dataset.check_values(mask, _as_tensor(counts))
    except InputError as error:
        return _Checked(key, signature, counts, str(error))
    except OSError as error:
        return _Checked(key, signature, {}, f"{error.filename} cannot be read: {error.strerror}")
    return _Checked(key, signature, counts, None)


def _count(image: Path, mask: Path) -> Counts:
    """Return the number of pixels of each value of a mask.

    Raises:
        InputError: it cannot be read, or does not have the size of its image.
    """
    values = read_mask(mask)
    size = (values.shape[0], values.shape[1])
    if _size_in_header(image) != size:
        check_sizes(image, read_image(image).size, mask, size)
    counts = torch.bincount(values.flatten(), minlength=256)
    return {int(value): int(counts[value]) for value in counts.nonzero()}


def _size_in_header(image: Path) -> tuple[int, int] | None:
    """Return the (height, width) of an image without decoding it; None if it may be rotated."""
    with open_image(image) as (opened, _):
        has_exif = opened.format != "PNG" or "exif" in opened.info  # a PNG would be decoded
        if has_exif and opened.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        return opened.height, opened.width


def _as_tensor(counts: Counts) -> Tensor:
    """Return the pixels of each mask value, (256,) int64."""
    tensor = torch.zeros(256, dtype=torch.int64)
    tensor[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.int64)
    return tensor


def _list_problems(problems: list[str], pairs: int) -> str:
    if len(problems) == 1:
        return problems[0]
    lines = [f"{len(problems)} of {pairs} pairs of image and mask cannot be used:"]
    lines += problems[:LISTED]
    if len(problems) > LISTED:
        lines.append(f"and {len(problems) - LISTED} more")
    return "\n  ".join(lines)


def _check_totals(dataset: SegmentationDataset, checked: list[_Checked]) -> Tensor:
    """Return the pixels of each class.

    Raises:
        InputError: all pixels are ignored, or the only values are 0 and an ignored 255.
    """
    totals = torch.stack([_as_tensor(own.counts) for own in checked]).sum(0)  # (256,)
    labels, masks = dataset.label_set, f"the {len(dataset)} masks of {dataset.name}"
    pixels = totals[list(labels.official_ids)]
    values = totals.nonzero().flatten().tolist()
    absent = [name for name, count in zip(labels.names, pixels, strict=True) if not count]
    more = f" and {len(absent) - LISTED} more" if len(absent) > LISTED else ""
    shown = ", ".join(absent[:LISTED]) + more
    if not pixels.any():
        raise InputError(f"every pixel of {masks} is ignored; found values {values[:LISTED]}")
    if values == [0, 255] and 255 not in labels.official_ids:
        raise InputError(
            f"{masks} contain only 0 and 255, and 255 marks pixels without a class, so there is no "
            f"pixel of {shown}; if 255 marks an object, replace it by the id of its class, such as "
            f"{labels.official_ids[1]} for {labels.names[1]!r}"
        )
    if absent and distributed.rank() == 0:
        logger.warning("%s have no pixel of %s", masks, shown)
    return pixels


def _cache_path(dataset: SegmentationDataset) -> Path:
    folder = os.fsencode(dataset.pairs[0][1].absolute().parent)
    return cache_root() / "masks" / f"{hashlib.sha256(folder).hexdigest()[:32]}.json"


def _read_cache(path: Path) -> Cached:
    """Return what a run before has read; an empty dict if there is nothing usable."""
    try:
        with open_regular(path) as file:
            entries = json.load(file).items()
        return {
            mask: (list(map(int, signature)), {range(256)[int(v)]: int(n) for v, n in counts})
            for mask, (signature, counts) in entries
        }
    except (OSError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return {}


def _write_cache(path: Path, cached: Cached, checked: list[_Checked]) -> None:
    entries = cached | {c.mask: (c.signature, c.counts) for c in checked if c.counts}
    if entries == cached:
        return
    content = {mask: (times, list(counts.items())) for mask, (times, counts) in entries.items()}
    with contextlib.suppress(OSError):  # without a cache the masks are read again
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content), "utf-8")
