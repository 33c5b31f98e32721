"""Data set, recipe and network that are small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isanet_zoo import HeadConfig, ISANet, LabelSet, Recipe, SegmentationDataset, open_dataset
from tests.processes import forkserver

CLASSES = ("ground", "box", "bar")
COLOURS = np.array(((190, 70, 60), (60, 180, 70), (70, 60, 200), (30, 30, 30)))
CELL = 8  # shapes are aligned with the network's feature map

RECIPE = Recipe(
    split="train",
    epochs=4,
    batch_size=4,
    crop=(48, 64),
    base_size=None,
    scale=(0.8, 1.25),
    flip=0.5,
    max_category_ratio=0.9,
    brightness=16,
    contrast=(0.8, 1.25),
    saturation=(0.8, 1.25),
    hue=4,
    optimizer="sgd",
    lr=0.02,
    head_multiplier=2.0,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="poly",
    power=0.9,
    min_lr=0.001,
    aux_weight=0.4,
    class_weights=None,
    ema=None,
    precision="float32",
    frozen=(),
    initialisation="random",
    warmup=0.0,
)


def draw(chance: np.random.Generator, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return an image, (H, W, 3) uint8, and its mask: a box and a bar, the left edge ignored."""
    cells = -(-size[0] // CELL), -(-size[1] // CELL)
    mask = np.zeros(cells, np.uint8)
    top, left = chance.integers(0, cells[0] - 3), chance.integers(1, cells[1] - 3)
    mask[top : top + 4, left : left + 4] = 1
    mask[chance.integers(cells[0])] = 2
    mask[:, : chance.integers(1, 3)] = 255
    mask = mask.repeat(CELL, 0).repeat(CELL, 1)[: size[0], : size[1]]
    pixels = COLOURS[np.minimum(mask, 3)] + chance.normal(0, 8, (*size, 3))
    return pixels.clip(0, 255).astype(np.uint8), mask


def dataset(
    root: Path, split: str = "train", *, sizes: Sequence[tuple[int, int]] = ((64, 80),) * 8
) -> SegmentationDataset:
    """Write a data set in the layout "folder", and open it."""
    for number, size in enumerate(sizes):
        pixels, mask = draw(np.random.default_rng((len(split), number)), size)
        for folder, content in (("images", pixels), ("masks", mask)):
            path = root / folder / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return open_dataset("folder", root, split)


def network(
    labels: LabelSet | None = None,
    *,
    backbone: str = "test_resnet",
    dropout: float = 0.0,
    seed: int = 0,
) -> ISANet:
    """Return a network with random weights, the same for the same seed."""
    labels = labels or LabelSet.generic(len(CLASSES))
    head = HeadConfig(channels=16, key_channels=8, aux_channels=8, dropout=dropout)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = ISANet(backbone, len(labels), aux_loss=True, head=head, label_set=labels)
        # With the initial weights, one class wins everywhere.
        model.head.classifier.weight.normal_(0, 1)
    return model


def batch(seed: int = 0, count: int = 4) -> tuple[Tensor, Tensor]:
    """Return images, (B, 3, 48, 64), and targets in which unequal fractions are ignored."""
    chance = np.random.default_rng(seed)
    images = chance.normal(size=(count, 3, 48, 64)).astype(np.float32)
    target = chance.integers(0, len(CLASSES), (count, 48, 64))
    for number in range(count):
        target[number, : 12 * (number % 4)] = 255
    return torch.from_numpy(images), torch.from_numpy(target)


def start(function: Callable[..., None], *args: object, processes: int) -> Any:
    """Start processes that call `function(rank, *args)`; join them with `.join()`."""
    forkserver()
    launch: Any = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    return launch(function, args, nprocs=processes, join=False, start_method="forkserver")


def run(function: Callable[..., None], *args: object, processes: int = 1) -> None:
    """Call `function(rank, *args)` in other processes; raise the error of one of them."""
    context = start(function, *args, processes=processes)
    while not context.join():
        pass


def join_group(rank: int, folder: str, processes: int = 2) -> None:
    """Make this process one of a gloo group that meets in `folder`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=processes
    )


def assert_same(left: Any, right: Any) -> None:
    """Assert that two state dicts are bit-identical."""
    torch.testing.assert_close(dict(left), dict(right), rtol=0, atol=0)
