"""Values, sizes and problems of all files of data sets, read once and cached on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from isanet_zoo.imaging.formats import SUFFIXES, open_image
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.inference.threads import in_order
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset, check_sizes

Progress: TypeAlias = Callable[[int, int], None]  # (pairs scanned, pairs in all)
Counts: TypeAlias = dict[int, int]  # mask value -> pixels


class Facts(NamedTuple):
    """What is stored about a pair of files."""

    signature: list[int]  # time and size of image and mask
    counts: Counts  # of the mask; empty if they are not known
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels
    doubtful: bool = False  # the image is turned by its EXIF orientation, perhaps unlike the mask


Cached: TypeAlias = dict[str, Facts]  # by the path of the image


class Scanned(NamedTuple):
    """The outcome for one pair of files."""

    image: str
    facts: Facts
    problem: str | None

    @property
    def values(self) -> Tensor:
        """The number of pixels of each mask value, (256,) int64."""
        return _as_tensor(self.facts.counts)


def scan(
    datasets: Sequence[SegmentationDataset], *, progress: Progress | None = None
) -> list[list[Scanned]]:
    """Read every mask of data sets; compare it with the classes and with the size of its image.

    Under `torchrun`, each process reads a part. The outcome for a pair of files is kept in the
    zoo's cache until the time or size of one of them changes.

    Args:
        datasets: images and masks.
        progress: called with (pairs scanned, pairs in all) of this process after each pair.

    Returns:
        The outcome for each pair of each data set.
    """
    paths = [_cache_path(dataset) for dataset in datasets]
    caches = [_read_cache(path) for path in paths]
    pairs = [(number, pair) for number, data in enumerate(datasets) for pair in range(len(data))]
    mine = pairs[distributed.rank() :: distributed.world_size()]

    def scan_pair(pair: tuple[int, int]) -> tuple[int, int, Scanned]:
        number, index = pair
        return number, index, _scan_pair(datasets[number], caches[number], index)

    outcomes = []
    for outcome in in_order(scan_pair, mine):
        outcomes.append(outcome)
        if progress:
            progress(len(outcomes), len(mine))
    # By pair: each process has every n-th.
    ordered = sorted(outcome for part in distributed.gather(outcomes) for outcome in part)
    scanned = [[own for number, _, own in ordered if number == n] for n in range(len(datasets))]
    if distributed.rank() == 0:
        for path, cached, own in zip(paths, caches, scanned, strict=True):
            _write_cache(path, cached, own)
    return scanned


def _scan_pair(dataset: SegmentationDataset, cached: Cached, index: int) -> Scanned:
    image, mask = dataset.pairs[index]
    key, facts = str(image.absolute()), Facts([], {})
    try:
        for path in (image, mask):
            status = path.stat()
            facts.signature.extend((status.st_mtime_ns, status.st_size))
        known = cached.get(key)
        if known is None or known.signature != facts.signature:
            known = _read(dataset, index)._replace(signature=facts.signature)
        facts = known
        dataset.check_values(mask, _as_tensor(facts.counts))
    except InputError as error:
        return Scanned(key, facts, str(error))
    except OSError as error:
        return Scanned(key, facts, f"{error.filename} cannot be read: {error.strerror}")
    return Scanned(key, facts, None)


def _read(dataset: SegmentationDataset, index: int) -> Facts:
    """Read a mask and the size of its image.

    Raises:
        InputError: it cannot be read, or does not have the size of its image.
    """
    image, mask = dataset.pairs[index]
    values = dataset.read(image, mask)
    size = (values.shape[0], values.shape[1])
    orientation, image_size = _header(image)
    if orientation != 1 or image_size != size:
        check_sizes(image, read_image(image).size, mask, size)
    doubtful = orientation != 1 and (orientation < 5 or size[0] == size[1])
    if doubtful and mask.suffix.lower() in SUFFIXES:
        doubtful = _header(mask)[0] == 1
    counts = torch.bincount(values.flatten(), minlength=256)
    return Facts([], {int(v): int(counts[v]) for v in counts.nonzero()}, size, doubtful)


def _header(image: Path) -> tuple[int, tuple[int, int]]:
    """Return EXIF orientation and (height, width) of an image that is not decoded."""
    with open_image(image) as (opened, _):
        has_exif = opened.format != "PNG" or "exif" in opened.info  # a PNG would be decoded
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1) if has_exif else 1
        return orientation, (opened.height, opened.width)


def _as_tensor(counts: Counts) -> Tensor:
    """Return the pixels of each mask value, (256,) int64."""
    tensor = torch.zeros(256, dtype=torch.int64)
    tensor[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.int64)
    return tensor


def _cache_path(dataset: SegmentationDataset) -> Path:
    folder = os.fsencode(dataset.pairs[0][1].absolute().parent)
    identity = folder + b"\0" + dataset.read.key.encode()
    return cache_root() / "masks" / f"{hashlib.sha256(identity).hexdigest()[:32]}.json"


def _read_cache(path: Path) -> Cached:
    """Return what a run before has read; an empty dict if there is nothing usable."""
    try:
        with open_regular(path) as file:
            entries = json.load(file).items()
        return {
            image: Facts(
                list(map(int, signature)),
                {range(256)[int(v)]: int(n) for v, n in counts},
                (int(height), int(width)),
                bool(doubtful),
            )
            for image, (signature, counts, (height, width), doubtful) in entries
        }
    except (OSError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return {}


def _write_cache(path: Path, cached: Cached, scanned: list[Scanned]) -> None:
    entries = cached | {own.image: own.facts for own in scanned if own.facts.counts}
    if entries == cached:
        return
    content = {
        image: (facts.signature, list(facts.counts.items()), *facts[2:])
        for image, facts in entries.items()
    }
    with contextlib.suppress(OSError):  # without a cache the masks are read again
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content), "utf-8")
