"""Tests of random augmentation: origin of pixels, bounds, and dependence on the generator only."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor

from isanet_zoo import get_weights
from isanet_zoo.imaging.preprocess import input_size
from isanet_zoo.learning.data import Sample
from isanet_zoo.learning.transforms import (
    Augment,
    photometric_distortion,
    random_crop,
    random_flip,
    random_resize,
)
from isanet_zoo.manifest.config import Preprocess

sides = st.integers(1, 40)
seeds = st.integers(0, 9999)
OFF: dict[str, Any] = {  # no photometric change
    "brightness": 0,
    "contrast": (1.0, 1.0),
    "saturation": (1.0, 1.0),
    "hue": 0,
}
QUIET = replace(
    get_weights("isanet_resnet50os8_voc").recipe,
    base_size=None,
    scale=(1.0, 1.0),
    flip=0.0,
    **OFF,
)


def coordinates(height: int, width: int) -> Sample:
    """Return an image whose pixels contain their row, column and label."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = (rows * 7 + columns * 3) % 5
    labels[labels == 4] = 255
    pixels = torch.stack([rows, columns, labels]).to(torch.uint8)
    return Sample(pixels, labels.to(torch.uint8))


def grey(seed: int, height: int, width: int, low: int = 0, high: int = 256) -> Sample:
    """Return a grey image of noise, which a conversion to HSV and back does not change."""
    rng = np.random.default_rng(seed)
    level = torch.from_numpy(rng.integers(low, high, (1, height, width), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 5, (height, width), dtype=np.uint8))
    return Sample(level.repeat(3, 1, 1), labels)


def make_rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(height=sides, width=sides, seed=seeds, base=st.none() | st.tuples(sides, sides))
@settings(max_examples=60, deadline=None)
def test_resize_fits_a_random_multiple_of_the_base_size(
    height: int, width: int, seed: int, base: tuple[int, int] | None
) -> None:
    sample = coordinates(height, width)
    pixels, labels = random_resize(sample, make_rng(seed), base_size=base, scale=(0.5, 2.0))
    assert pixels.shape[1:] == labels.shape
    assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.uint8)
    assert set(labels.flatten().tolist()) <= set(sample.labels.flatten().tolist())
    factor = make_rng(seed).uniform(0.5, 2.0)
    long, short = base or (max(height, width), min(height, width))
    target = (max(int(long * factor), 1), max(int(short * factor), 1))
    assert labels.shape == input_size((height, width), Preprocess(resize=target))


def test_resize_keeps_labels_aligned_with_pixels() -> None:
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(90), indexing="ij")
    lower, right = rows >= 60, columns >= 45
    pixels = torch.stack([lower, right, right]).to(torch.uint8) * 255
    sample = Sample(pixels, (2 * lower + right).to(torch.uint8))
    for seed in range(20):
        pixels, labels = random_resize(sample, make_rng(seed), base_size=None)
        wrong = labels != 2 * (pixels[0] > 127) + (pixels[1] > 127)
        height, width = labels.shape
        assert wrong.sum() <= height + width  # one row and one column, at the borders


def test_resize_uses_the_whole_range_of_scales() -> None:
    sample = coordinates(40, 20)
    heights = [
        random_resize(sample, make_rng(seed), base_size=None, scale=(0.5, 2.0)).labels.shape[0]
        for seed in range(200)
    ]
    assert 20 <= min(heights) < 24
    assert 76 < max(heights) <= 80


@given(height=sides, width=sides, size=st.tuples(sides, sides), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_crop_is_a_window_of_the_image(
    height: int, width: int, size: tuple[int, int], seed: int
) -> None:
    sample = coordinates(height, width)
    pixels, labels = random_crop(sample, make_rng(seed), size=size)
    assert labels.shape == (min(height, size[0]), min(width, size[1]))
    top, left = int(pixels[0, 0, 0]), int(pixels[1, 0, 0])
    window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    assert torch.equal(pixels, sample.pixels[window])
    assert torch.equal(labels, sample.labels[window])
    assert torch.equal(pixels[2], labels)


def test_crop_reaches_every_window() -> None:
    seen = set()
    for seed in range(200):
        pixels, _ = random_crop(coordinates(6, 7), make_rng(seed), size=(4, 4))
        seen.add((int(pixels[0, 0, 0]), int(pixels[1, 0, 0])))
    assert seen == {(top, left) for top in range(3) for left in range(4)}


def largest_fraction(labels: Tensor) -> float:
    """Return the largest fraction of a class; 1 if no class has a pixel."""
    counts = torch.bincount(labels[labels != 255].flatten(), minlength=2)
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


@given(
    block=st.integers(14, 19),
    filling=st.sampled_from([0, 255]),
    seed=seeds,
    cap=st.sampled_from([0.6, 0.75, 0.9]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_crop_avoids_windows_that_one_class_fills(
    block: int, filling: int, seed: int, cap: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, 2, (32, 32), dtype=np.uint8))
    labels[:block, :block] = filling  # windows inside have one class, or none
    sample = Sample(labels.expand(3, -1, -1), labels)
    windows = labels.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 8, 8)
    good = np.mean([largest_fraction(window) < cap for window in windows])
    assume(0.8 < good < 0.99)  # ten tries fail once in ten million
    for draw in range(30):
        window = random_crop(
            sample, make_rng(seed + draw), size=(8, 8), max_category_ratio=cap
        ).labels
        assert largest_fraction(window) < cap


def test_ignored_pixels_are_not_counted_for_the_crop() -> None:
    labels = torch.full((8, 40), 255, dtype=torch.uint8)
    labels[:, ::8], labels[:, 1::8] = 0, 1
    labels[:, 20:] = 2  # windows inside have one class only
    sample = Sample(labels.expand(3, -1, -1), labels)
    for seed in range(40):
        window = random_crop(sample, make_rng(seed), size=(8, 8)).labels
        assert 0 in window
        assert 1 in window
    swapped = torch.where(labels == 255, 7, labels)
    for seed in range(40):
        window = random_crop(
            Sample(sample.pixels, swapped), make_rng(seed), size=(8, 8), ignore_index=7
        ).labels
        assert 1 in window


def test_crop_without_a_good_window_is_a_window() -> None:
    labels = torch.zeros(20, 20, dtype=torch.uint8)
    sample = Sample(labels.expand(3, -1, -1), labels)
    assert random_crop(sample, make_rng(0), size=(8, 8)).labels.shape == (8, 8)


def test_flip_changes_image_and_labels() -> None:
    sample = coordinates(5, 6)
    flips = 0
    for seed in range(100):
        pixels, labels = random_flip(sample, make_rng(seed))
        flipped = bool(pixels[1, 0, 0] == 5)
        flips += flipped
        assert torch.equal(pixels, sample.pixels.flip(2) if flipped else sample.pixels)
        assert torch.equal(labels, sample.labels.flip(1) if flipped else sample.labels)
    assert 30 < flips < 70
    assert torch.equal(
        random_flip(sample, make_rng(0), probability=1.0).labels, sample.labels.flip(1)
    )
    assert torch.equal(random_flip(sample, make_rng(0), probability=0.0).labels, sample.labels)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_distortion_depends_on_the_generator_only_and_keeps_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 9, 8), dtype=np.uint8))
    sample = Sample(pixels, coordinates(9, 8).labels)
    before = pixels.clone()
    first = photometric_distortion(sample, make_rng(seed))
    second = photometric_distortion(sample, make_rng(seed))
    assert torch.equal(first.pixels, second.pixels)
    assert (first.pixels.dtype, first.pixels.shape) == (torch.uint8, (3, 9, 8))
    assert torch.equal(first.labels, sample.labels)
    assert torch.equal(pixels, before)


def test_distortion_differs_between_draws() -> None:
    sample = grey(0, 6, 6, 60, 190)
    views = {tuple(photometric_distortion(sample, make_rng(seed)).pixels.flatten().tolist())
             for seed in range(50)}  # fmt: skip
    assert len(views) > 20


def test_distortion_of_strength_zero_changes_only_by_hsv_rounding() -> None:
    for seed in range(20):
        sample = grey(seed, 9, 8)
        assert torch.equal(
            photometric_distortion(sample, make_rng(seed), **OFF).pixels, sample.pixels
        )
        rng = np.random.default_rng(seed)
        pixels = torch.from_numpy(rng.integers(0, 256, (3, 9, 8), dtype=np.uint8))
        after = photometric_distortion(Sample(pixels, sample.labels), make_rng(seed), **OFF).pixels
        assert (after.int() - pixels.int()).abs().max() <= 8


def test_brightness_is_one_shift_within_its_bound() -> None:
    sample = grey(0, 9, 8, 60, 190)
    shifts = []
    for seed in range(100):
        after = photometric_distortion(sample, make_rng(seed), **(OFF | {"brightness": 20}))
        (shift,) = set((after.pixels.int() - sample.pixels.int()).flatten().tolist())
        shifts.append(shift)
    assert -20 <= min(shifts) < -15
    assert 15 < max(shifts) <= 20
    assert 30 < shifts.count(0) < 70


def test_contrast_is_one_factor_within_its_bounds() -> None:
    sample = grey(0, 9, 8, 60, 190)
    factors = []
    for seed in range(100):
        after = photometric_distortion(sample, make_rng(seed), **(OFF | {"contrast": (0.6, 1.3)}))
        ratio = after.pixels.double().sum() / sample.pixels.double().sum()
        error = (after.pixels.double() - sample.pixels * ratio).abs().max()
        assert error < 0.7  # of a level
        factors.append(float(ratio))
    assert 0.597 < min(factors) < 0.68
    assert 1.22 < max(factors) < 1.303
    assert 30 < sum(abs(factor - 1) < 1e-9 for factor in factors) < 70


def test_distortion_stays_within_the_grey_levels() -> None:
    white = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    sample = Sample(white, torch.zeros(2, 2, dtype=torch.uint8))
    options: dict[str, Any] = OFF | {"brightness": 40, "contrast": (0.5, 0.5)}
    for seed in range(100):
        level = int(photometric_distortion(sample, make_rng(seed), **options).pixels[0, 0, 0])
        assert level <= 128 or level >= 215


def hsv(pixels: Tensor) -> list[tuple[float, float, float]]:
    """Return hue, saturation and value of the pixels in (3, H, W), by Python's `colorsys`."""
    colours = (pixels.flatten(1).T / 255).tolist()
    return [colorsys.rgb_to_hsv(*colour) for colour in colours]


COLOURS = [(200, 40, 60), (30, 180, 90), (50, 60, 220), (210, 190, 40), (160, 60, 190)]


def palette() -> Sample:
    pixels = torch.tensor(COLOURS, dtype=torch.uint8).T[:, None].contiguous()
    return Sample(pixels, torch.zeros(1, len(COLOURS), dtype=torch.uint8))


def test_hue_rotates_all_colours_by_one_angle_within_its_bound() -> None:
    sample = palette()
    angles = []
    for seed in range(60):
        after = photometric_distortion(sample, make_rng(seed), **(OFF | {"hue": 15}))
        own = []
        for old, new in zip(hsv(sample.pixels), hsv(after.pixels), strict=True):
            own.append((new[0] - old[0] + 0.5) % 1 - 0.5)
            assert new[1:] == pytest.approx(old[1:], abs=0.015)
        assert max(own) - min(own) < 0.015
        angles.append(360 * float(np.mean(own)))
    assert -32 < min(angles) < -20
    assert 20 < max(angles) < 32
    assert 15 < sum(abs(angle) < 1 for angle in angles) < 45


def test_saturation_is_one_factor_within_its_bounds() -> None:
    sample = palette()
    factors = []
    for seed in range(60):
        after = photometric_distortion(sample, make_rng(seed), **(OFF | {"saturation": (0.5, 1.1)}))
        own = []
        for old, new in zip(hsv(sample.pixels), hsv(after.pixels), strict=True):
            assert (new[0] - old[0] + 0.5) % 1 - 0.5 == pytest.approx(0, abs=0.015)
            assert new[2] == pytest.approx(old[2], abs=0.005)
            own.append(new[1] / old[1])
        assert max(own) - min(own) < 0.03
        factors.append(float(np.mean(own)))
    assert 0.48 < min(factors) < 0.6
    assert 1.02 < max(factors) < 1.12


def test_augmentation_of_strength_zero_is_the_normalised_image_centred_in_the_crop() -> None:
    preprocess = Preprocess(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0), resize=(7, 7))
    sample = grey(0, 11, 18)
    image, target = Augment(replace(QUIET, crop=(24, 41)), preprocess, ignore_index=254)(
        sample, make_rng(0)
    )
    assert (image.dtype, image.shape) == (torch.float32, (3, 24, 41))
    assert (target.dtype, target.shape) == (torch.int64, (24, 41))
    expected = torch.zeros(3, 24, 41)
    levels = sample.pixels.float()
    means, stds = torch.tensor([10.0, 20, 30]), torch.tensor([2.0, 4, 5])
    expected[:, 6:17, 11:29] = (levels - means[:, None, None]) / stds[:, None, None]
    torch.testing.assert_close(image, expected)
    labels = torch.full((24, 41), 254)
    labels[6:17, 11:29] = sample.labels.long()
    assert torch.equal(target, labels)


@given(height=sides, width=sides, crop=st.tuples(sides, sides), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_augmentation_has_the_size_of_the_crop_and_depends_on_the_generator_only(
    height: int, width: int, crop: tuple[int, int], seed: int
) -> None:
    weights = get_weights("isanet_resnet50os8_voc")
    recipe = replace(weights.recipe, crop=crop, base_size=(50, 30))
    augment = Augment(recipe, weights.preprocess)
    sample = grey(seed, height, width)
    image, target = augment(sample, make_rng(seed))
    assert image.shape == (3, *crop)
    assert target.shape == crop
    assert set(target.flatten().tolist()) <= {*sample.labels.flatten().tolist(), 255}
    assert (image[:, target == 255] == 0).all()  # no label is ignored, so these pixels are margin
    again = augment(sample, make_rng(seed))
    assert torch.equal(image, again[0])
    assert torch.equal(target, again[1])


def test_augmentation_uses_the_numbers_of_the_recipe() -> None:
    sample = grey(0, 12, 12, 60, 190)
    plain, target = Augment(replace(QUIET, crop=(12, 12)), Preprocess())(sample, make_rng(0))
    flipped = Augment(replace(QUIET, crop=(12, 12), flip=1.0), Preprocess())(sample, make_rng(0))
    assert torch.equal(flipped[0], plain.flip(2))
    assert torch.equal(flipped[1], target.flip(1))
    for changed in (
        {"scale": (1.5, 1.5)},
        {"base_size": (24, 24)},
        {"brightness": 30},
        {"contrast": (0.5, 0.6)},
    ):
        augment = Augment(replace(QUIET, crop=(12, 12), **changed), Preprocess())
        assert any(not torch.equal(augment(sample, make_rng(seed))[0], plain) for seed in range(9))
