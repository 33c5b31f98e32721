"""Whole predictions: pictures in, label maps out."""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.inference import upsample
from isanet_zoo.inference.images import ImageLike, Picture, find_images, is_single, read_image
from isanet_zoo.inference.preprocess import fill_up, prepare
from isanet_zoo.inference.segmentation import Segmentation
from isanet_zoo.network.config import Preprocess
from isanet_zoo.network.depthwise import speed_up_depthwise
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.options import real_number, whole_number

Progress = Callable[[int, int | None], None]  # pictures so far, in all where it is known

Tile: TypeAlias = int | tuple[int, int] | Literal["whole"]

READ_AHEAD = 4  # batches of pictures that are held to find some of one size
SMALLEST = 1e-9  # of all factors, so that "positive" excludes 0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Predictor:
    """A network made ready to segment pictures; build it once, call it often.

    It works on a copy of the network (the tensors are shared where they can be), so that the
    network's mode, device and type stay as they are. It may be used from several threads.

    Args:
        model: the network.
        device: where to compute; the network's device if None.
        dtype: type of the network's arithmetic; float32 if None. Decisions are always in float32.
        compile: run the network through `torch.compile`; slow to start, worth it for many pictures.
        batch_size: pictures of one size that go through the network together.
        scales: factors of the test-time augmentation; scores are averaged.
        flip: also average over mirrored pictures.
        tile: side, or (height, width), of the tiles of sliding-window inference, in pixels of the
            network's input; ``"whole"`` for the picture at once; None does as the weights were
            tested.
        overlap: share of a tile that the next one repeats, 0 <= overlap < 1; weights that were
            tested with tiles bring their own.
        resize: scale pictures to the size that the weights were tested at.
        confidence: give each label's probability.
        probabilities: give all probabilities.

    Raises:
        InputError: an option makes no sense, or the network takes no RGB pictures.
    """

    def __init__(
        self,
        model: ISANet,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,  # noqa: A002 - torch's word
        batch_size: int = 1,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        tile: Tile | None = None,
        overlap: float = 0.25,
        resize: bool = True,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> None:
        if not isinstance(model, ISANet):
            raise InputError(f"expected an ISANet or the name of one, got {type(model).__name__}")
        if model.config.in_chans != 3:
            raise InputError(
                f"predict reads RGB pictures, but this network takes {model.config.in_chans} "
                "channels; call the network itself on your tensors"
            )
        if model.config.num_classes > 256:
            raise InputError(f"{model.config.num_classes} classes do not fit into 8-bit label maps")
        if dtype not in (None, *DTYPES):
            raise InputError(f"dtype is {dtype}; choose one of {', '.join(map(str, DTYPES))}")
        if isinstance(scales, str) or not isinstance(scales, Sequence) or not scales:
            raise InputError(f"scales are {scales!r}; give a list of positive factors")
        try:
            # A tensor knows its device fully: "cuda" may be given, "cuda:1" meant.
            self.device = torch.empty(0, device=device or _device_of(model)).device
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError(f"device is {device}: {str(error).splitlines()[0]}") from error
        self.dtype = dtype or torch.float32
        self.batch_size = whole_number("batch_size", batch_size)
        self.scales = tuple(
            real_number(f"scales {tuple(scales)}: a factor", scale, "positive", SMALLEST, math.inf)
            for scale in scales
        )
        self.flip = flip
        overlap = real_number("overlap", overlap, "at least 0 and less than 1", 0, 1)
        self.tile, self.stride = _sliding(tile, overlap, model.preprocess)
        self.rescale = resize
        self.confidence = confidence
        self.probabilities = probabilities
        self.network = _private_copy(model, self.device)
        if self.device.type == "cpu" and not compile:
            speed_up_depthwise(self.network)
        forward = self.network.forward_logits
        self._forward: Callable[[Tensor], Tensor] = torch.compile(forward) if compile else forward

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], *, progress: Progress | None = None
    ) -> Segmentation | list[Segmentation]:
        """Segment one picture, or all pictures of a folder or iterable, in order.

        Args:
            images: a path, PIL image, uint8 array (H, W[, 3|4]) or uint8 tensor (3, H, W); a
                folder; an iterable of these.
            progress: called with (pictures done, pictures in all or None) after each picture.

        Raises:
            InputError: a picture cannot be used; the message names it.
        """
        if is_single(images):
            return next(self.stream(images, progress=progress))
        return list(self.stream(images, progress=progress))

    def stream(
        self, images: ImageLike | Iterable[ImageLike], *, progress: Progress | None = None
    ) -> Iterator[Segmentation]:
        """Segment pictures one after the other, in order; few are in memory at any time.

        Pictures of one size that lie close together share a batch. None is ever padded: that would
        change the groups of the attention, and so the result.
        """
        if progress is not None and not callable(progress):
            raise InputError(f"progress is {progress!r}; give a function of (done, total), or None")
        source = find_images(images)
        total = len(source) if isinstance(source, Sized) else None
        held = 1 if self.batch_size == 1 else READ_AHEAD * self.batch_size
        done = 0
        for window in _windows(map(read_image, source), held):
            for segmentation in self._segment_all(window):
                done += 1
                if progress:
                    progress(done, total)
                yield segmentation

    def _segment_all(self, pictures: Sequence[Picture]) -> list[Segmentation]:
        """Segment a few pictures, batching those of one size."""
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, picture in enumerate(pictures):
            buckets[picture.size].append(position)
        results: dict[int, Segmentation] = {}
        for positions in buckets.values():
            for start in range(0, len(positions), self.batch_size):
                batch = positions[start : start + self.batch_size]
                segmented = self._segment([pictures[position] for position in batch])
                results.update(zip(batch, segmented, strict=True))
        return [results[position] for position in range(len(pictures))]

    @torch.inference_mode()
    def _segment(self, pictures: Sequence[Picture]) -> list[Segmentation]:
        """Segment pictures of one size."""
        pixels = torch.stack(
            [picture.pixels.to(self.device) for picture in pictures]
        )  # (B, 3, H, W)
        images = prepare(pixels, self.network.preprocess, resize=self.rescale)  # (B, 3, h, w)
        decision = upsample.decide(
            upsample.mean(list(self._views(images, pictures[0].size))),
            self.network.config.num_classes,
            confidence=self.confidence,
            probabilities=self.probabilities,
        )
        labels, confidence, probabilities = (
            None if part is None else part.cpu().numpy() for part in decision
        )
        assert labels is not None
        return [
            Segmentation(
                labels[i],
                self.network.label_set,
                None if confidence is None else confidence[i],
                None if probabilities is None else probabilities[i],
                picture.path,
            )
            for i, picture in enumerate(pictures)
        ]

    def _views(self, images: Tensor, size: tuple[int, int]) -> Iterator[upsample.Plane]:
        """Give the scores of each scale and mirroring, at the pictures' own size."""
        for scale in self.scales:
            scaled = images
            if scale != 1:
                if min(images.shape[-2:]) * scale < 1:
                    raise InputError(f"scale {scale} leaves nothing of a picture of {size}")
                scaled = F.interpolate(
                    images, scale_factor=scale, mode="bilinear", align_corners=False
                )
            yield self._scores(scaled, size)
            if self.flip:
                yield upsample.flipped(self._scores(scaled.flip(-1), size))

    def _scores(self, images: Tensor, size: tuple[int, int]) -> upsample.Plane:
        """Run the network over (B, 3, h, w), whole or in tiles."""
        resize, canvas = self.network.resize, (images.shape[-2], images.shape[-1])
        if self.tile is None:
            images = fill_up(images, self.network.preprocess)
            logits = self._logits(images)
            filled = (images.shape[-2], images.shape[-1])
            if filled != canvas:
                return upsample.filled(logits, filled, canvas, size, resize)
            return upsample.whole(logits, size, resize)
        windows = upsample.windows(canvas, self.tile, self.stride)
        batch = images.shape[0]
        together = max(self.batch_size // batch, 1)  # tiles in one run of the network
        tiles: list[tuple[upsample.Window, Tensor]] = []
        for start in range(0, len(windows), together):
            chunk = windows[start : start + together]
            logits = self._logits(torch.cat([images[window.area] for window in chunk]))
            tiles += zip(chunk, torch.split(logits, batch), strict=True)
        return upsample.tiled(tiles, canvas, size, resize)

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._forward(images)


def _windows(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Give pictures in lists of `size`; what was read before a bad one comes before its error."""
    window: list[Picture] = []
    try:
        for picture in pictures:
            window.append(picture)
            if len(window) == size:
                yield window
                window = []
    except InputError:
        if window:
            yield window
        raise
    if window:
        yield window


def _sliding(
    tile: Tile | None, overlap: float, preprocess: Preprocess
) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Return the (height, width) of the sliding window, None for none, and its stride."""
    if tile is None and preprocess.window and preprocess.stride:
        return preprocess.window, preprocess.stride
    if tile is None or tile == "whole":
        return None, (1, 1)
    sides: tuple[Any, ...] = tuple(tile) if isinstance(tile, Sequence) else (tile, tile)
    if isinstance(tile, str) or len(sides) != 2:
        raise InputError(f"tile is {tile!r}; give a side, (height, width), or 'whole'")
    height, width = sides
    height = whole_number(f"tile {tile}: the height", height)
    width = whole_number(f"tile {tile}: the width", width)
    step = 1 - overlap
    return (height, width), (max(round(height * step), 1), max(round(width * step), 1))


def _device_of(model: ISANet) -> torch.device:
    return next(model.parameters()).device


def _private_copy(model: ISANet, device: torch.device) -> ISANet:
    """Return the network in evaluation mode on `device`, in float32; `model` is left alone."""
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    floats = (tensor for tensor in tensors if tensor.is_floating_point())
    ready = all(tensor.dtype == torch.float32 and tensor.device == device for tensor in floats)
    # `deepcopy` takes what is in the memo for copied: it copies the modules, but not the tensors.
    memo = {id(tensor): tensor for tensor in tensors} if ready else {}
    network = copy.deepcopy(model, memo).eval()
    return network if ready else network.to(device, torch.float32)
