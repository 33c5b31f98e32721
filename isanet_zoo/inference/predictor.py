"""Whole predictions: pictures in, label maps out."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.engines.cuda_graphs import GraphedForward
from isanet_zoo.engines.depthwise import speed_up_depthwise
from isanet_zoo.engines.folding import fold
from isanet_zoo.errors import InputError
from isanet_zoo.imaging.preprocess import fill_up, prepare
from isanet_zoo.imaging.reading import ImageLike, LoadedImage, find_images, is_single, read_image
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference import decide
from isanet_zoo.inference.threads import delayed, in_order
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import real_number, whole_number

Progress = Callable[[int, int | None], None]  # pictures so far, in all where it is known

Tile: TypeAlias = int | tuple[int, int] | Literal["whole"]
DType: TypeAlias = torch.dtype | Literal["auto"]

READ_AHEAD = 4  # batches of pictures that are held to find some of one size
SMALLEST = 1e-9  # of all factors, so that "positive" excludes 0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Predictor:
    """A network made ready to segment pictures; build it once, call it often.

    It works on a copy of the network, folded for inference (see `network.folding`), so that the
    network itself stays as it is. It may be used from several threads.

    Args:
        model: the network.
        device: where to compute; the network's device if None.
        dtype: type of the network's arithmetic; float32 if None, ``"auto"`` for bfloat16 where the
            hardware computes in it. Decisions are always in float32.
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
        dtype: DType | None = None,
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
        if dtype not in (None, "auto", *DTYPES):
            choices = ", ".join(map(str, DTYPES))
            raise InputError(f"dtype is {dtype}; choose one of {choices}, or 'auto'")
        if isinstance(scales, str) or not isinstance(scales, Sequence) or not scales:
            raise InputError(f"scales are {scales!r}; give a list of positive factors")
        try:
            # A tensor knows its device fully: "cuda" may be given, "cuda:1" meant.
            self.device = torch.empty(0, device=device or _device_of(model)).device
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError(f"device is {device}: {str(error).splitlines()[0]}") from error
        self.dtype = _fastest(self.device) if dtype == "auto" else dtype or torch.float32
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
        self.network = _prepared(model, self.device, self.dtype)
        self._forward: Callable[[Tensor], Tensor] = self.network.forward_logits
        if compile:
            self._forward = torch.compile(self._forward)
        elif self.device.type == "cuda":
            self._forward = GraphedForward(self._forward)
        elif self.device.type == "cpu":
            speed_up_depthwise(self.network)

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
        # What has a length lies there already; other iterables are read as late as can be.
        pictures = map(read_image, source) if total is None else in_order(read_image, source)
        held = 1 if self.batch_size == 1 else READ_AHEAD * self.batch_size
        behind = 0 if self.device.type == "cpu" else 1  # a GPU goes on while results are fetched
        done = 0
        for results in delayed(map(self._start_all, _windows(pictures, held)), behind):
            for segmentation in results():
                done += 1
                if progress:
                    progress(done, total)
                yield segmentation

    def _start_all(self, pictures: Sequence[LoadedImage]) -> Callable[[], list[Segmentation]]:
        """Segment a few pictures, batching those of one size; call what is returned for results."""
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, picture in enumerate(pictures):
            buckets[picture.size].append(position)
        batches = [
            positions[start : start + self.batch_size]
            for positions in buckets.values()
            for start in range(0, len(positions), self.batch_size)
        ]
        started = [(batch, self._start([pictures[i] for i in batch])) for batch in batches]

        def finish() -> list[Segmentation]:
            results: dict[int, Segmentation] = {}
            for batch, segmented in started:
                results.update(zip(batch, segmented(), strict=True))
            return [results[position] for position in range(len(pictures))]

        return finish

    @torch.inference_mode()
    def _start(self, pictures: Sequence[LoadedImage]) -> Callable[[], list[Segmentation]]:
        """Segment pictures of one size; call what is returned for the results."""
        images = self._images(pictures)
        decision = self._decide(images, pictures[0].size)
        labels, confidence, probabilities = (
            None if part is None else _to_host(part) for part in decision
        )
        assert labels is not None
        ready: Any = None
        if self.device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(self.device))

        def finish() -> list[Segmentation]:
            if ready:
                ready.synchronize()
            return [
                Segmentation(
                    labels[i].numpy(),
                    self.network.label_set,
                    None if confidence is None else confidence[i].numpy(),
                    None if probabilities is None else probabilities[i].numpy(),
                    picture.path,
                )
                for i, picture in enumerate(pictures)
            ]

        return finish

    def _images(self, pictures: Sequence[LoadedImage]) -> Tensor:
        """Return pictures of one size as the network's input, (B, 3, h, w)."""
        pixels = torch.stack([picture.pixels for picture in pictures])  # (B, 3, H, W)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.device.type == "cuda" and not pixels.is_cuda:
            pixels = pixels.pin_memory()  # so that the copy need not be waited for
        pixels = pixels.to(self.device, non_blocking=True)
        return prepare(pixels, self.network.preprocess, resize=self.rescale)

    def _decide(self, images: Tensor, size: tuple[int, int]) -> decide.Decision:
        """Give each pixel of pictures of a size its class, from prepared images (B, 3, h, w)."""
        views = list(self._views(images, size))
        return decide.decide(
            decide.mean(views), confidence=self.confidence, probabilities=self.probabilities
        )

    def _views(self, images: Tensor, size: tuple[int, int]) -> Iterator[decide.Scores]:
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
                yield decide.flipped(self._scores(scaled.flip(-1), size))

    def _scores(self, images: Tensor, size: tuple[int, int]) -> decide.Scores:
        """Run the network over (B, 3, h, w), whole or in tiles."""
        rule, canvas = self.network.config.head.resize, (images.shape[-2], images.shape[-1])
        if self.tile is None:
            images = fill_up(images, self.network.preprocess)
            logits = self._logits(images)
            filled = (images.shape[-2], images.shape[-1])
            if filled != canvas:
                return decide.filled(logits, filled, canvas, size, rule)
            return decide.whole(logits, size, rule)
        windows = decide.windows(canvas, self.tile, self.stride)
        batch = images.shape[0]
        together = max(self.batch_size // batch, 1)  # tiles in one run of the network
        tiles: list[tuple[decide.Window, Tensor]] = []
        for start in range(0, len(windows), together):
            chunk = windows[start : start + together]
            logits = self._logits(torch.cat([images[window.area] for window in chunk]))
            tiles += zip(chunk, torch.split(logits, batch), strict=True)
        return decide.tiled(tiles, canvas, size, rule)

    def _logits(self, images: Tensor) -> Tensor:
        images = images.to(self.dtype, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, enabled=False):  # whatever the caller is in
            return self._forward(images)


def _windows(pictures: Iterable[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Give pictures in lists of `size`; what was read before a bad one comes before its error."""
    window: list[LoadedImage] = []
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


def _fastest(device: torch.device) -> torch.dtype:
    """Return bfloat16 if a device computes in it, and not merely imitates it; else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # torch has no public question for a CPU's instructions
        asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = device.type == "cpu" and any(getattr(torch.cpu, ask, bool)() for ask in asked)
    return torch.bfloat16 if native else torch.float32


def _prepared(model: ISANet, device: torch.device, dtype: torch.dtype) -> ISANet:
    """Return the network as it runs fastest on a device, for inference only; `model` stays."""
    network = copy.deepcopy(model).eval().to(device, torch.float32)
    with torch.autocast(device.type, enabled=False):
        fold(network, dtype)
    return network.to(memory_format=torch.channels_last)


def _to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU; from a GPU without waiting for the copy."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
