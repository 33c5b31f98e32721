"""Preprocessing: images to the network's input, as the weights' publisher does it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.imaging.reading import ImageLike, read_image
from isanet_zoo.manifest.config import Preprocess


def input_size(size: tuple[int, int], config: Preprocess) -> tuple[int, int]:
    """Return the (height, width) that an image of this (height, width) is resized to.

    The image is scaled, up or down, to the largest size within the longest and the shortest side
    of `config.resize`, as in sssegmentation's test pipeline.
    """
    if config.resize is None:
        return size
    longest, shortest = max(config.resize), min(config.resize)
    height, width = size
    scale = min(longest / max(size), shortest / min(size))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, 3, H, W) uint8 to (B, 3, *size) uint8.

    Computes the same integers as cv2's `INTER_LINEAR`, with which the weights were trained and
    tested: bilinear without antialiasing, in fixed point with weights of 11 bits, first along rows,
    then along columns, each product shifted by 16 bits. (A resize in floating point differs by up
    to one level, and is 0.13 of a level brighter on average; PIL's, which antialiases, differs by
    up to 96 levels.)
    """
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return pixels
    top, bottom, weight_top, weight_bottom = _taps(height, size[0], pixels.device)
    left, right, weight_left, weight_right = _taps(width, size[1], pixels.device)
    rows = pixels.index_select(-1, left).int().mul_(weight_left)  # (B, 3, H, w), 19 bits
    rows += pixels.index_select(-1, right).int().mul_(weight_right)
    rows >>= 4
    out = rows.index_select(-2, top).mul_(weight_top[:, None]) >> 16  # (B, 3, h, w), 10 bits
    out += rows.index_select(-2, bottom).mul_(weight_bottom[:, None]) >> 16
    return (out.add_(2) >> 2).to(torch.uint8)


def _taps(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for each of `size` samples, its two neighbours among `length` and their weights."""
    home = "cpu" if device.type == "mps" else device  # MPS has no float64
    centres = (torch.arange(size, dtype=torch.float64, device=home) + 0.5) * (length / size) - 0.5
    centres = centres.float().to(device)  # cv2 continues in single precision
    first = centres.floor()
    fraction = centres - first
    before = first.long().clamp(0, length - 1)
    after = (first.long() + 1).clamp(0, length - 1)
    return before, after, (2048 * (1 - fraction)).round().int(), (2048 * fraction).round().int()


def prepare(pixels: Tensor, config: Preprocess, *, resize: bool = True) -> Tensor:
    """Convert (B, 3, H, W) uint8 RGB to the network's input, (B, 3, h, w) float32.

    Args:
        pixels: images of one size, on any device.
        config: the preprocessing of the weights.
        resize: resize the images to the size of the weights' test protocol.
    """
    height, width = pixels.shape[-2:]
    size = input_size((height, width), config) if resize else (height, width)
    levels = resize_pixels(pixels, size).float()
    images = levels.sub_(_channels(config.mean, levels)).div_(_channels(config.std, levels))
    return images.flip(1) if config.order == "bgr" else images


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a value per channel, (3, 1, 1), made where another tensor is: a copy would wait."""
    return torch.stack([like.new_full((1, 1), value) for value in values])


def pad(images: Tensor, config: Preprocess) -> Tensor:
    """Pad (B, 3, h, w) to at least `config.pad`, at the bottom and on the right, with zeros.

    Zero is the mean of the normalised pixels.
    """
    if config.pad is None:
        return images
    height, width = images.shape[-2:]
    padded = padded_size((height, width), config)
    return F.pad(images, (0, padded[1] - width, 0, padded[0] - height))


def padded_size(size: tuple[int, int], config: Preprocess) -> tuple[int, int]:
    """Return the (height, width) of an input of this (height, width) after `pad`."""
    least = config.pad or (0, 0)
    return max(size[0], least[0]), max(size[1], least[1])


class Transforms:
    """Preprocessing of one image, as returned by `Weights.transforms()`.

    Example:
        >>> import numpy as np
        >>> from isanet_zoo import get_weights
        >>> transforms = get_weights("isanet_resnet50os8_voc").transforms()
        >>> transforms(np.zeros((375, 500, 3), np.uint8)).shape
        torch.Size([1, 3, 512, 683])
    """

    def __init__(self, config: Preprocess) -> None:
        self.config = config

    def __call__(self, image: ImageLike) -> Tensor:
        """Return an image as (1, 3, h, w) float32.

        Raises:
            InputError: it cannot be read; see `read_image`.
        """
        return pad(prepare(read_image(image).pixels[None], self.config), self.config)

    def __repr__(self) -> str:
        return f"Transforms({self.config})"
