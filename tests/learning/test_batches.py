"""Tests of the order of batches: a permutation per epoch, independent of stops and processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from isanet_zoo import get_weights
from isanet_zoo.errors import InputError
from isanet_zoo.learning import distributed
from isanet_zoo.learning.batches import Augmented, EpochBatches
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.transforms import Augment
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.recipe import Recipe

BASE = get_weights("isanet_resnet50os8_voc").recipe


def recipe(batch_size: int, epochs: int = 3) -> Recipe:
    return replace(BASE, batch_size=batch_size, epochs=epochs)


@given(
    batch=st.integers(1, 6),
    more=st.integers(0, 14),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_each_epoch_has_each_image_at_most_once_and_restarts_keep_the_order(
    batch: int, more: int, epochs: int, seed: int, data: st.DataObject
) -> None:
    length = batch + more
    batches = EpochBatches(length, recipe(batch, epochs), seed=seed)
    per_epoch = length // batch
    assert (batches.per_epoch, batches.steps) == (per_epoch, epochs * per_epoch)
    keys = list(batches)
    assert len(keys) == len(batches) == epochs * per_epoch
    assert all(len(part) == batch for part in keys)
    for epoch in range(epochs):
        seen = [key for part in keys[epoch * per_epoch : (epoch + 1) * per_epoch] for key in part]
        assert {number for number, _ in seen} == {epoch}
        indices = [index for _, index in seen]
        assert len(set(indices)) == len(indices) == per_epoch * batch
        assert set(indices) <= set(range(length))
        if length % batch == 0:
            assert sorted(indices) == list(range(length))
    start = data.draw(st.integers(0, len(keys)))
    rest = EpochBatches(length, recipe(batch, epochs), seed=seed, start=start)
    assert list(rest) == keys[start:]
    assert len(rest) == len(keys) - start
    batches.start = start  # as in a resumed run
    assert list(batches) == keys[start:]


def orders(seed: int) -> list[tuple[int, ...]]:
    return [tuple(index for _, index in part) for part in EpochBatches(20, recipe(20), seed=seed)]


def test_epochs_and_seeds_have_different_orders() -> None:
    all_orders = orders(0) + orders(1)
    assert len(set(all_orders)) == 6
    assert tuple(range(20)) not in all_orders
    assert orders(0) == orders(0)


@pytest.mark.parametrize("world", [2, 3])
def test_batches_are_split_over_processes(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    alone = list(EpochBatches(14, recipe(6), seed=5))
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    parts_of_ranks = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts_of_ranks.append(list(EpochBatches(14, recipe(6), seed=5)))
    for whole, *parts in zip(alone, *parts_of_ranks, strict=True):
        assert {len(part) for part in parts} == {6 // world}
        together = [key for part in parts for key in part]
        assert sorted(together) == sorted(whole)


def test_batch_size_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="batch_size is 5, but there are 4 images"):
        EpochBatches(4, recipe(5))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match="batch_size 5 is not divisible by the 2 processes"):
        EpochBatches(9, recipe(5))


def views(folder: Path, seed: int) -> Augmented:
    """Return random views of three equal images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pairs = []
    for number in range(3):
        image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(pixels).save(image)
        Image.fromarray(pixels[..., 0] % 4).save(mask)
        pairs.append((image, mask))
    dataset = SegmentationDataset(pairs, LabelSet.generic(4))
    augment = Augment(replace(BASE, crop=(24, 24), base_size=None), Preprocess())
    return Augmented(dataset, augment, seed=seed)


def test_view_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    first, second = views(tmp_path, 3), views(tmp_path, 3)
    assert len(first) == 3
    keys = [(epoch, index) for epoch in range(2) for index in range(3)]
    forwards = {key: first[key] for key in keys}
    for key in reversed(keys):  # in another order, from another object
        np.random.default_rng().random()
        torch.rand(3)
        image, target = second[key]
        assert torch.equal(image, forwards[key][0])
        assert torch.equal(target, forwards[key][1])
    images = [image for image, _ in forwards.values()] + [views(tmp_path, 4)[0, 0][0]]
    for number, image in enumerate(images):
        assert not any(torch.equal(image, other) for other in images[:number])
