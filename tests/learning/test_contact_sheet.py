"""Tests of contact sheets, by the colours at known places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isanet_zoo import Preprocess, train
from isanet_zoo.imaging.preprocess import prepare
from isanet_zoo.learning import contact_sheet
from isanet_zoo.learning.contact_sheet import check_sheet, choose, undo_preparation
from isanet_zoo.learning.scan import Facts, Scanned, scan
from isanet_zoo.learning.transforms import Augment
from tests.learning import tiny

RECIPE = replace(tiny.RECIPE, brightness=0.0, contrast=(1, 1), saturation=(1, 1), hue=0.0)


def test_images_are_drawn_with_their_masks(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path, sizes=((64, 80),) * 5)
    sheet = check_sheet(dataset, scan([dataset])[0], Augment(RECIPE, Preprocess()), count=5)
    pixels, labels = dataset[4]  # the first in the second row
    colours = torch.tensor([*dataset.label_set.colours, *[(0, 0, 0)] * 253]).byte()
    expected = (pixels.permute(1, 2, 0).double() + colours[labels.long()]) / 2
    top = contact_sheet.MARGIN + 3 * contact_sheet.LINE  # below the legend and the heading
    top += contact_sheet.CELL[1] + contact_sheet.LINE + contact_sheet.MARGIN
    left = contact_sheet.MARGIN
    cell = np.asarray(sheet.crop((left, top, left + 80, top + 64))).astype(float)
    assert np.abs(cell - expected.numpy()).max() <= 0.5
    swatch = sheet.getpixel((left + 4, contact_sheet.MARGIN + 4))
    assert swatch == dataset.label_set.colours[0]


def test_augmented_images_are_those_of_training(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path, sizes=((64, 80),))
    augment = Augment(replace(RECIPE, scale=(1, 1), flip=0.0, crop=(64, 80)), Preprocess())
    sheet = check_sheet(dataset, scan([dataset])[0], augment, count=2)
    step = contact_sheet.CELL[1] + 3 * contact_sheet.LINE + contact_sheet.MARGIN
    top = contact_sheet.MARGIN + 3 * contact_sheet.LINE
    box = (contact_sheet.MARGIN, top, contact_sheet.MARGIN + 80, top + 64)
    first = np.asarray(sheet.crop(box)).astype(int)
    second = np.asarray(sheet.crop((box[0], box[1] + step, box[2], box[3] + step))).astype(int)
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_preparation_is_undone(order: str) -> None:
    pixels = torch.randint(0, 256, (1, 3, 4, 5)).byte()
    config = Preprocess(order=order)  # type: ignore[arg-type]
    assert torch.equal(undo_preparation(prepare(pixels, config)[0], config), pixels[0])


def test_chosen_images_contain_every_class(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path, sizes=((32, 40),) * 30)
    facts = [Facts([], {0: 5}) for _ in range(30)]
    facts[3], facts[17] = Facts([], {0: 5, 1: 1}), Facts([], {2: 9})
    scanned = [Scanned("", own, "damaged" if n == 8 else None) for n, own in enumerate(facts)]
    chosen = choose(dataset, scanned, 6)
    assert {3, 17} < set(chosen)
    assert len(chosen) == 6
    assert chosen == sorted(chosen)
    assert 8 not in choose(dataset, scanned, 40)
    assert len(choose(dataset, scanned, 40)) == 29


def test_large_images_are_shrunk_to_the_cell(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path, sizes=((64, 80),))
    image = contact_sheet.overlay(
        torch.zeros(3, 900, 600).byte(), torch.zeros(900, 600).long(), dataset.label_set
    )
    assert isinstance(image, Image.Image)
    assert image.size == (150, 225)


def test_run_draws_the_sheet_of_its_own_recipe(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=((48, 64),) * 2)
    recipe = replace(RECIPE, epochs=1, batch_size=2)
    train(tiny.network(dataset.label_set), dataset, recipe, tmp_path / "run", seed=3)
    network = tiny.network(dataset.label_set)
    augment = Augment(recipe, network.preprocess)
    expected = check_sheet(dataset, scan([dataset])[0], augment, seed=3)
    with Image.open(tmp_path / "run" / "check.png") as sheet:
        assert np.array_equal(np.asarray(sheet), np.asarray(expected))
    train(network, dataset, recipe, tmp_path / "unchecked", check=False)
    assert not (tmp_path / "unchecked" / "check.png").exists()
