"""Attention of a pixel: how strongly each position of an image reaches it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from isanet_zoo.engines.torch_engine import TorchEngine
from isanet_zoo.errors import InputError
from isanet_zoo.imaging.preprocess import pad
from isanet_zoo.imaging.reading import ImageLike, LoadedImage
from isanet_zoo.manifest.config import ResizeRule
from isanet_zoo.network.affinity import affinity_rows
from isanet_zoo.network.head import ISAHead
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import real_number, whole_number

if TYPE_CHECKING:
    from isanet_zoo.inference.predictor import Predictor

Floats: TypeAlias = NDArray[np.float32]
Hop: TypeAlias = Literal["affinity", "long_range", "short_range"]

HOPS: tuple[Hop, ...] = ("affinity", "long_range", "short_range")
TINY = float(np.finfo(np.float32).tiny)
HEAT = np.array([(10, 10, 40), (110, 20, 110), (230, 80, 50), (255, 190, 60), (255, 255, 220)])


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """How strongly the positions of an image reach one pixel through interlaced attention.

    With A_L and A_S the attention matrices of the long-range and the short-range hop, whose rows
    sum to one, `affinity` is the pixel's row of A_S · A_L (arXiv 1907.12273, section 3). Between
    the hops there is a projection with its non-linearity, and after them the fusion with the
    features: this is affinity, not a fraction of the result.

    Attributes:
        at: (x, y), the pixel.
        cell: (row, column) of the pixel on the map.
        affinity: (h, w) float32, through both hops, for each position of the map that is in the
            image.
        long_range: (h, w) float32, through the first hop alone: positions at the same place of all
            windows.
        short_range: (h, w) float32, through the second hop alone: positions of one window.
        rows, columns: (H,) and (W,) float32, positions of the image's pixels on the map, which may
            be half a position beyond its ends.
        image: the image.
    """

    at: tuple[int, int]
    cell: tuple[int, int]
    affinity: Floats
    long_range: Floats
    short_range: Floats
    rows: Floats
    columns: Floats
    image: LoadedImage

    def __repr__(self) -> str:
        return (
            f"<Explanation of pixel {self.at}: entropy {self.entropy:.1f} bits, effective radius "
            f"{self.effective_radius:.0f} pixels, padding {self.padding:.1%}>"
        )

    @property
    def padding(self) -> float:
        """Fraction of the affinity that is with padding, from 0 to 1.

        Attention pads the map with zeros to whole windows, and some weights pad small images.
        """
        return float(np.clip(1 - self.affinity.sum(dtype=np.float64), 0, 1))

    @property
    def entropy(self) -> float:
        """Entropy of the affinity within the image in bits, at most log2(h · w)."""
        shares = self._shares()
        return float(-(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum())

    @property
    def effective_radius(self) -> float:
        """Root mean square distance, in pixels, of what reaches the pixel within the image."""
        y, x = (
            np.interp(np.arange(cells), positions, np.arange(len(positions)))
            for cells, positions in zip(self.affinity.shape, (self.rows, self.columns), strict=True)
        )
        squares = (y[:, None] - self.at[1]) ** 2 + (x - self.at[0]) ** 2
        return float(np.sqrt((self._shares() * squares).sum()))

    def at_image_size(self, hop: Hop = "affinity") -> Floats:
        """Return a map at the size of the image, (H, W) float32, interpolated bilinearly.

        Args:
            hop: ``"affinity"``, ``"long_range"`` or ``"short_range"``.

        Raises:
            InputError: there is no such map.
        """
        if hop not in HOPS:
            raise InputError(f"hop is {hop!r}; choose one of {', '.join(HOPS)}")
        rows = _interpolate(getattr(self, hop), self.rows)  # (H, w)
        return _interpolate(rows.T, self.columns).T

    def overlay(self, hop: Hop = "affinity", alpha: float = 0.8) -> Image.Image:
        """Return the image blended with a map in colours from dark to bright, RGB.

        The colours show the square root of the values, up to their maximum. A ring is drawn around
        the pixel.

        Args:
            hop: see `at_image_size`.
            alpha: weight of the colours, 0..1.

        Raises:
            InputError: there is no such map, or `alpha` is out of range.
        """
        alpha = real_number("alpha", alpha, "within 0..1", 0, np.nextafter(1, 2))
        values = self.at_image_size(hop)
        values = np.sqrt(values / max(float(values.max()), TINY))
        stops = np.linspace(0, 1, len(HEAT))
        heat = np.stack([np.interp(values, stops, channel) for channel in HEAT.T], axis=-1)
        pixels = self.image.pixels.permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
        blend = Image.fromarray(((1 - alpha) * pixels + alpha * heat).round().astype(np.uint8))
        _draw_ring(blend, self.at)
        return blend

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON: ``at``, ``cell``, ``entropy`` and so on."""
        figures = ("at", "cell", "entropy", "effective_radius", "padding")
        return {name: getattr(self, name) for name in figures}

    def _shares(self) -> NDArray[np.float64]:
        """Return the affinity with a sum of one within the image."""
        shares = self.affinity.astype(np.float64)
        return shares / max(float(shares.sum()), TINY)


def explain(predictor: Predictor, image: ImageLike, at: tuple[int, int]) -> Explanation:
    """Return the attention of a pixel; see `Predictor.explain`."""
    network = _check_engine(predictor.engine)
    views = predictor.views
    if views.scales != (1.0,) or views.flip:
        raise InputError(
            f"scales are {views.scales}, flip is {views.flip}; attention is that of one view: drop "
            "both options"
        )
    if grid := views.grid(predictor.engine.preprocess):
        raise InputError(
            f"images are predicted in tiles of {grid.tile}, each with its own attention; choose "
            "tile='whole' to explain the image as a whole"
        )
    loaded = predictor._read(image)
    x, y = _check_pixel(at, loaded.size)
    prepared = predictor._prepare([loaded])
    padded = pad(prepared, predictor.engine.preprocess)
    device_type = predictor.device.type
    with torch.inference_mode(), torch.autocast(device_type, enabled=False):
        features = predictor.engine.reduced_features(padded)  # type: ignore[attr-defined]
        sizes = list(zip(prepared.shape[2:], padded.shape[2:], strict=True))
        axes = list(zip(loaded.size, sizes, features.shape[2:], strict=True))
        rows, columns = (positions(*axis, predictor.engine.resize) for axis in axes)
        shape = [_shown(cells, size) for _, size, cells in axes]  # without the image's padding
        row, column = (
            min(max(round(float(place)), 0), cells - 1)
            for place, cells in zip((rows[y], columns[x]), shape, strict=True)
        )
        maps = affinity_rows(network.head.attention, features, (row, column))
    shown = (slice(shape[0]), slice(shape[1]))
    long_range, short_range, affinity = (each[shown].cpu().numpy() for each in maps)
    return Explanation(
        (x, y), (row, column), affinity, long_range, short_range, rows, columns, loaded
    )


def positions(length: int, prepared: tuple[int, int], cells: int, rule: ResizeRule) -> Floats:
    """Return where the pixels of an image are on the map, along one axis.

    Args:
        length: pixels of the image.
        prepared: pixels after resizing, and after padding.
        cells: positions of the map.
        rule: by which the network resizes logits, see `network.resize`.
    """
    resized, padded = prepared
    pixels = (np.arange(length) + 0.5) * (resized / length) - 0.5  # in the resized image
    if rule == "half_pixel":
        found = (pixels + 0.5) * cells / padded - 0.5
    elif rule == "corners":
        found = pixels * (cells - 1) / max(padded - 1, 1)
    else:
        found = pixels * cells / padded
    return found.astype(np.float32)


def _shown(cells: int, prepared: tuple[int, int]) -> int:
    """Return how many positions of the map are in the image, not in its padding."""
    resized, padded = prepared
    return -(-cells * resized // padded)


def _check_engine(engine: object) -> ISANet:
    """Return the network of an engine.

    Raises:
        InputError: the engine or the network has no interlaced attention to look at.
    """
    if not isinstance(engine, TorchEngine):
        name = getattr(engine, "name", type(engine).__name__)
        raise InputError(f"engine {name!r} computes logits only; attention needs engine='torch'")
    network = engine.network
    if (
        not isinstance(network.head, ISAHead)
        or type(network.head).classify is not ISAHead.classify
        or type(network).forward_logits is not ISANet.forward_logits
        or not hasattr(network.head.attention, "short_range")
    ):
        raise InputError(f"{type(network).__name__} has its own forward pass or another head")
    return network


def _check_pixel(at: object, size: tuple[int, int]) -> tuple[int, int]:
    """Return (x, y) as integers.

    Raises:
        InputError: it is no pixel of the image.
    """
    if isinstance(at, (tuple, list)) and len(at) == 2:
        with contextlib.suppress(InputError):
            x = whole_number("x", at[0], at_least=0, at_most=size[1] - 1)
            return x, whole_number("y", at[1], at_least=0, at_most=size[0] - 1)
    raise InputError(
        f"at is {at!r}; it must be (x, y), a pixel of the image of {size[1]} x {size[0]} pixels"
    )


def _interpolate(values: Floats, found: Floats) -> Floats:
    """Return (n, m) sampled along its first axis at positions (N,), (N, m)."""
    found = found.clip(0, len(values) - 1)
    before = np.floor(found).astype(np.intp)
    after = np.minimum(before + 1, len(values) - 1)
    fraction = (found - before).astype(np.float32)[:, None]
    sampled: Floats = (1 - fraction) * values[before] + fraction * values[after]
    return sampled


def _draw_ring(image: Image.Image, at: tuple[int, int]) -> None:
    radius = max(3, round(min(image.size) / 60))
    draw = ImageDraw.Draw(image)
    for colour, width, outside in (("black", 3 * radius // 4, 1), ("white", radius // 3 + 1, 0)):
        size = radius + outside
        box = (at[0] - size, at[1] - size, at[0] + size, at[1] + size)
        draw.ellipse(box, outline=colour, width=max(width, 1))
