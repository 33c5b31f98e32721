"""Configuration of a network and of its preprocessing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from isanet_zoo.errors import InputError
from isanet_zoo.records import MOST_CLASSES, Range, Record, Text

ResizeRule: TypeAlias = Literal["half_pixel", "corners", "asymmetric"]

OUTPUT_STRIDE = 8  # every published ISANet works on feature maps of 1/8 of the input

# Bounds of the network's input for one image of the stated size, over all tiles.
MOST_PIXELS = 5_000_000
MOST_TILES = 100

Channels = Annotated[int, Range(1, 4096)]
Side = Annotated[int, Range(1, 4096)]  # pixels
WindowSide = Annotated[int, Range(32, 4096)]  # pixels
Mean = Annotated[float, Range(-1000, 1000)]  # grey levels
Std = Annotated[float, Range(0.01, 10_000)]  # grey levels


@dataclass(frozen=True)
class HeadConfig(Record):
    """The segmentation head. The defaults are those of sssegmentation's six models.

    The published families differ in fuse_kernel, value_bias, aux_channels, activation, dropout and
    resize, and in their encoders. The manifest states every number of every weight; the defaults
    are for networks that a user builds.

    Raises:
        InputError: a number is out of range.
    """

    channels: Channels = 512  # C, width of the head's features
    key_channels: Channels = 256  # D, width of queries and keys
    # (P_h, P_w) in the paper: size of a short-range window in feature pixels, which is also the
    # stride of the long-range groups
    partition: tuple[Annotated[int, Range(1, 32)], Annotated[int, Range(1, 32)]] = (8, 8)
    fuse_kernel: Literal[1, 3] = 3  # of the convolution that fuses attention and input features
    value_bias: bool = False  # whether the value projection has a bias
    aux_channels: Channels = 512  # width of the auxiliary head
    activation: Literal["relu", "leaky_relu"] = "relu"  # of both heads
    dropout: Annotated[float, Range(0, 0.99)] = 0.1  # of channels, before each classifier
    resize: ResizeRule = "half_pixel"  # sample positions of the logits, see `network.resize`


@dataclass(frozen=True)
class NetworkConfig(Record):
    """A network: a timm encoder at output stride 8, and the head.

    Raises:
        InputError: a number is out of range.
    """

    backbone: Annotated[str, Text(100, 1)]  # name of a timm model
    num_classes: Annotated[int, Range(1, MOST_CLASSES)]  # K
    in_chans: Annotated[int, Range(1, 1024)] = 3  # channels of the images
    head: HeadConfig = field(default_factory=HeadConfig)


@dataclass(frozen=True)
class Preprocess(Record):
    """Preparation of an image as the network's input.

    Raises:
        InputError: a number is out of range, or window and stride contradict each other.
    """

    # (longest, shortest) side in pixels: the image is scaled, up or down, until it fits both.
    # None keeps its size.
    resize: tuple[Side, Side] | None = None
    mean: tuple[Mean, Mean, Mean] = (123.675, 116.28, 103.53)  # of RGB in 0..255; subtracted
    std: tuple[Std, Std, Std] = (58.395, 57.12, 57.375)  # of RGB in 0..255; divided by
    order: Literal["rgb", "bgr"] = "rgb"  # of the network's input channels
    # (height, width) that a smaller image is padded to with the mean, at the bottom and on the
    # right. The logits of the padding are cropped.
    pad: tuple[Side, Side] | None = None
    # (height, width) of sliding windows, in pixels of the input; logits are averaged where they
    # overlap. None takes the whole image at once.
    window: tuple[WindowSide, WindowSide] | None = None
    stride: tuple[Side, Side] | None = None  # (rows, columns) from one window to the next

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.window is None) != (self.stride is None):
            raise InputError(f"window is {self.window}, stride {self.stride}; pass both or none")
        for side, step in zip(self.window or (), self.stride or (), strict=True):
            if not side / 4 <= step <= side:
                raise InputError(
                    f"stride is {self.stride}; it must be from a quarter of the window "
                    f"{self.window} to all of it"
                )
        tiles, tile = self.tiles(self.largest_size)
        pixels = tiles * math.prod(tile)
        if tiles > MOST_TILES or pixels > MOST_PIXELS:
            raise InputError(
                f"images of {self.largest_size} pixels (resize {self.resize}, pad {self.pad}) need "
                f"{tiles} tiles and {pixels} pixels in all; at most {MOST_TILES} and {MOST_PIXELS} "
                "are allowed"
            )

    @property
    def largest_size(self) -> tuple[int, int]:
        """The largest (height, width) after resizing and padding; zeros if neither is stated."""
        longest, shortest = self.resize or (0, 0)
        height, width = self.pad or (0, 0)
        tall = max(longest, height), max(shortest, width)
        wide = max(shortest, height), max(longest, width)
        return max(tall, wide, key=math.prod)

    def tiles(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Return the number and the (height, width) of the tiles of an input of this size."""
        if self.window is None or self.stride is None:
            return 1, size
        count = 1
        for length, side, step in zip(size, self.window, self.stride, strict=True):
            count *= math.ceil(max(length - side, 0) / step) + 1
        return count, (min(self.window[0], size[0]), min(self.window[1], size[1]))
