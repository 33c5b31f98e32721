"""Random augmentation of an image and its mask for training, as in sssegmentation.

Each step is a function of a `Sample` and a NumPy generator; `Augment` applies all of them with the
numbers of a `Recipe`. The same generator state results in the same view.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from isanet_zoo.imaging.preprocess import input_size, prepare, resize_pixels
from isanet_zoo.learning.data import Sample
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.recipe import Recipe

CROP_TRIES = 10


def random_resize(
    sample: Sample,
    rng: Generator,
    *,
    base_size: tuple[int, int] | None,
    scale: tuple[float, float] = (0.5, 2.0),
) -> Sample:
    """Scale to a random multiple of the base size, keeping the aspect ratio.

    Args:
        sample: the image and its labels.
        rng: random number generator.
        base_size: (longest, shortest) side that the image is fitted to; its own size if None.
        scale: bounds of the factor.
    """
    height, width = sample.labels.shape
    longest, shortest = base_size or (max(height, width), min(height, width))
    factor = rng.uniform(*scale)
    target = (max(int(longest * factor), 1), max(int(shortest * factor), 1))
    size = input_size((height, width), Preprocess(resize=target))
    labels = F.interpolate(sample.labels[None, None], size, mode="nearest")[0, 0]
    return Sample(resize_pixels(sample.pixels[None], size)[0], labels)


def random_crop(
    sample: Sample,
    rng: Generator,
    *,
    size: tuple[int, int],
    max_category_ratio: float = 0.75,
    ignore_index: int = 255,
) -> Sample:
    """Crop a window in which no class has too many pixels, if ten tries find one.

    Args:
        sample: the image and its labels.
        rng: random number generator.
        size: (height, width) of the window; a smaller image keeps its size.
        max_category_ratio: largest fraction of one class among the pixels that have one.
        ignore_index: the label of pixels without a class.
    """
    height, width = sample.labels.shape
    window = sample
    for _ in range(CROP_TRIES):
        top = int(rng.integers(max(height - size[0], 0) + 1))
        left = int(rng.integers(max(width - size[1], 0) + 1))
        area = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        window = Sample(sample.pixels[area], sample.labels[area])
        counts = torch.bincount(window.labels.flatten(), minlength=256)
        counts[ignore_index] = 0
        if (counts > 0).sum() > 1 and counts.max() < max_category_ratio * counts.sum():
            break
    return window


def random_flip(sample: Sample, rng: Generator, *, probability: float = 0.5) -> Sample:
    """Flip horizontally with a probability."""
    if rng.random() < probability:
        return Sample(sample.pixels.flip(-1), sample.labels.flip(-1))
    return sample


def photometric_distortion(
    sample: Sample,
    rng: Generator,
    *,
    brightness: float = 32,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: float = 18,
) -> Sample:
    """Change brightness, contrast, saturation and hue, each with probability 1/2, as in SSD.

    Contrast is changed before or after saturation and hue, at random.

    Args:
        sample: the image and its labels.
        rng: random number generator.
        brightness: largest shift, in grey levels.
        contrast: bounds of the factor.
        saturation: bounds of the factor.
        hue: largest rotation, in units of 2 degrees.
    """

    def coin() -> bool:
        return bool(rng.random() < 0.5)

    levels = sample.pixels.float()  # (3, H, W), 0..255
    if coin():
        levels = levels + rng.uniform(-brightness, brightness)
    contrast_first = coin()
    if contrast_first and coin():
        levels = levels.clamp(0, 255) * rng.uniform(*contrast)
    colour = coin(), rng.uniform(*saturation), coin(), rng.uniform(-hue, hue)
    if colour[0] or colour[2]:
        pixels = _round(levels).permute(1, 2, 0).contiguous().numpy()
        hsv = np.array(Image.fromarray(pixels).convert("HSV"))  # (H, W, 3), each 0..255
        if colour[0]:
            hsv[..., 1] = (hsv[..., 1] * colour[1]).clip(0, 255)
        if colour[2]:
            rotation = round(colour[3] * 2 / 360 * 256)
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + rotation) % 256
        bands = [Image.fromarray(np.ascontiguousarray(hsv[..., band])) for band in range(3)]
        rgb = np.array(Image.merge("HSV", bands).convert("RGB"))
        levels = torch.from_numpy(rgb).permute(2, 0, 1).float()
    if not contrast_first and coin():
        levels = levels.clamp(0, 255) * rng.uniform(*contrast)
    return Sample(_round(levels), sample.labels)


def _round(levels: Tensor) -> Tensor:
    return levels.clamp(0, 255).round().to(torch.uint8)


class Augment:
    """Augmentation and preprocessing of one training example.

    Args:
        recipe: sizes, bounds and probabilities.
        preprocess: the network's normalisation; its `resize` is not used.
        ignore_index: the label of pixels without a class.

    Example:
        >>> from isanet_zoo import get_weights
        >>> weights = get_weights("isanet_resnet50os8_voc")
        >>> augment = Augment(weights.recipe, weights.preprocess)
        >>> sample = Sample(torch.zeros(3, 60, 80, dtype=torch.uint8),
        ...                 torch.zeros(60, 80, dtype=torch.uint8))
        >>> image, target = augment(sample, np.random.default_rng(0))
        >>> image.shape, target.shape
        (torch.Size([3, 512, 512]), torch.Size([512, 512]))
    """

    def __init__(self, recipe: Recipe, preprocess: Preprocess, *, ignore_index: int = 255) -> None:
        self.recipe = recipe
        self.preprocess = preprocess
        self.ignore_index = ignore_index

    def __call__(self, sample: Sample, rng: Generator) -> tuple[Tensor, Tensor]:
        """Return an image, (3, *crop) float32, and its target, (*crop) int64."""
        recipe = self.recipe
        sample = random_resize(sample, rng, base_size=recipe.base_size, scale=recipe.scale)
        sample = random_crop(
            sample,
            rng,
            size=recipe.crop,
            max_category_ratio=recipe.max_category_ratio,
            ignore_index=self.ignore_index,
        )
        sample = random_flip(sample, rng, probability=recipe.flip)
        sample = photometric_distortion(
            sample,
            rng,
            brightness=recipe.brightness,
            contrast=recipe.contrast,
            saturation=recipe.saturation,
            hue=recipe.hue,
        )
        image = prepare(sample.pixels[None], self.preprocess, resize=False)[0]
        height, width = (
            side - own for side, own in zip(recipe.crop, sample.labels.shape, strict=True)
        )
        # An image smaller than the crop is centred.
        margins = (width // 2, width - width // 2, height // 2, height - height // 2)
        target = F.pad(sample.labels, margins, value=self.ignore_index).long()
        return F.pad(image, margins), target
