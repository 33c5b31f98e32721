"""From a picture to the network's input, as the weights' publisher did it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.imaging.reading import ImageLike, read_image
from isanet_zoo.manifest.config import Preprocess


def input_size(size: tuple[int, int], config: Preprocess) -> tuple[int, int]:
    """Return the (height, width) that a picture of this (height, width) is resized to.

    The picture is scaled, up or down, until it just fits into the longest and the shortest side
    (sssegmentation's test pipeline).
    """
    if config.resize is None:
        return size
    longest, shortest = max(config.resize), min(config.resize)
    height, width = size
    scale = min(longest / max(size), shortest / min(size))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, 3, H, W) uint8 to (B, 3, *size) uint8.

    The weights were trained and tested behind cv2's `INTER_LINEAR`, which is bilinear without
    smoothing when it shrinks, in fixed point: weights of 11 bits, first along rows, then along
    columns, each product cut to 16 bits less. The same integers are computed here. (A resize in
    floating point is up to one level off and brighter by 0.13 of a level on average; PIL's, which
    smooths, is off by up to 96 levels.)
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
    centres = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) * (length / size) - 0.5
    centres = centres.float()  # cv2 goes on in single precision
    first = centres.floor()
    fraction = centres - first
    before = first.long().clamp(0, length - 1)
    after = (first.long() + 1).clamp(0, length - 1)
    return before, after, (2048 * (1 - fraction)).round().int(), (2048 * fraction).round().int()


def prepare(pixels: Tensor, config: Preprocess, *, resize: bool = True) -> Tensor:
    """Turn (B, 3, H, W) uint8 RGB into the network's input, (B, 3, h, w) float32.

    Args:
        pixels: pictures of one size, on any device.
        config: the weights' own preparation.
        resize: scale the pictures to the size that the weights were tested at.
    """
    height, width = pixels.shape[-2:]
    size = input_size((height, width), config) if resize else (height, width)
    levels = resize_pixels(pixels, size).float()
    mean = torch.tensor(config.mean, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(config.std, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    images = levels.sub_(mean).div_(std)
    return images.flip(1) if config.order == "bgr" else images


def fill_up(images: Tensor, config: Preprocess) -> Tensor:
    """Fill (B, 3, h, w) up to `config.pad`, at the bottom and on the right, with the mean: zeros.

    What is as large as that stays as it is.
    """
    if config.pad is None:
        return images
    height, width = images.shape[-2:]
    return F.pad(images, (0, max(config.pad[1] - width, 0), 0, max(config.pad[0] - height, 0)))


class Transforms:
    """A picture's way into the network; what `Weights.transforms()` gives.

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
        """Return a picture as (1, 3, h, w) float32.

        Raises:
            InputError: it cannot be read; see `read_image`.
        """
        return fill_up(prepare(read_image(image).pixels[None], self.config), self.config)

    def __repr__(self) -> str:
        return f"Transforms({self.config})"
