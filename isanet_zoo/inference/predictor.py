"""Whole predictions: pictures in, label maps out."""

from __future__ import annotations

import copy
import os
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
from isanet_zoo.inference.views import Tile, Views
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import whole_number
from isanet_zoo.zoo import create_model

Progress = Callable[[int, int | None], None]  # pictures so far, in all where it is known

DType: TypeAlias = torch.dtype | Literal["auto"]

READ_AHEAD = 4  # batches of pictures that are held to find some of one size
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Predictor:
    """A network prepared for segmenting images; build it once and call it often.

    It uses a copy of the network, folded for inference, and leaves the network unchanged. Several
    threads may share it.

    Args:
        model: a network; or a name of the zoo, whose published weights are then loaded.
        device: where to compute; the network's device if None.
        dtype: type of the network's arithmetic, float32 if None. `torch.bfloat16` is faster on
            hardware that supports it, and changes labels where two classes are nearly equal;
            ``"auto"`` uses it on such hardware. Labels are always decided in float32.
        compile: run the network through `torch.compile`: slow to start, faster for many images.
        batch_size: images of one size that go through the network together.
        scales: factors of the test-time augmentation, over which logits are averaged.
        flip: also average over horizontally flipped images.
        tile: side, or (height, width), of the tiles of sliding-window inference, in pixels of the
            network's input; ``"whole"`` for no tiles; None for the weights' test protocol.
        overlap: fraction of a tile that the next one repeats, at least 0 and less than 1. Weights
            whose test protocol has tiles define their own.
        resize: resize images to the size of the weights' test protocol.
        confidence: also return each label's probability.
        probabilities: also return all probabilities (K floats per pixel).

    Raises:
        InputError: an option is out of range, or the network does not take RGB images.
        UnknownModelError: no model has this name.
        DownloadError: its weights are not cached and no source has them.

    Example:
        >>> predictor = Predictor(ISANet("test_resnet", num_classes=5), confidence=True)
        >>> predictor(torch.zeros(3, 60, 80, dtype=torch.uint8)).labels.shape
        (60, 80)
    """

    def __init__(
        self,
        model: ISANet | str | os.PathLike[str],
        *,
        device: str | int | torch.device | None = None,
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
        model = _load(model)
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
        try:
            # A tensor knows its device fully: "cuda" may be given, "cuda:1" meant.
            self.device = torch.empty(0, device=device or _device_of(model)).device
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError(f"device is {device}: {str(error).splitlines()[0]}") from error
        self.dtype = _fastest(self.device) if dtype == "auto" else dtype or torch.float32
        self.batch_size = whole_number("batch_size", batch_size)
        self.views = Views(scales=scales, flip=flip, tile=tile, overlap=overlap, resize=resize)
        self.grid = self.views.grid(model.preprocess)
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
        return prepare(pixels, self.network.preprocess, resize=self.views.resize)

    def _decide(self, images: Tensor, size: tuple[int, int]) -> decide.Decision:
        """Give each pixel of pictures of a size its class, from prepared images (B, 3, h, w)."""
        views = list(self._views(images, size))
        return decide.decide(
            decide.mean(views), confidence=self.confidence, probabilities=self.probabilities
        )

    def _views(self, images: Tensor, size: tuple[int, int]) -> Iterator[decide.Scores]:
        """Give the scores of each scale and mirroring, at the pictures' own size."""
        for scale in self.views.scales:
            scaled = images
            if scale != 1:
                if min(images.shape[-2:]) * scale < 1:
                    raise InputError(f"scale {scale} leaves nothing of a picture of {size}")
                scaled = F.interpolate(
                    images, scale_factor=scale, mode="bilinear", align_corners=False
                )
            yield self._scores(scaled, size)
            if self.views.flip:
                yield decide.flipped(self._scores(scaled.flip(-1), size))

    def _scores(self, images: Tensor, size: tuple[int, int]) -> decide.Scores:
        """Run the network over (B, 3, h, w), whole or in tiles."""
        rule, canvas = self.network.config.head.resize, (images.shape[-2], images.shape[-1])
        if self.grid is None:
            images = fill_up(images, self.network.preprocess)
            logits = self._logits(images)
            filled = (images.shape[-2], images.shape[-1])
            if filled != canvas:
                return decide.filled(logits, filled, canvas, size, rule)
            return decide.whole(logits, size, rule)
        windows = decide.windows(canvas, *self.grid)
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


def predict(
    model: ISANet | str | os.PathLike[str],
    images: ImageLike | Iterable[ImageLike],
    *,
    batch_size: int = 1,
    device: str | int | torch.device | None = None,
    dtype: DType | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: Tile | None = None,
    overlap: float = 0.25,
    resize: bool = True,
    confidence: bool = False,
    probabilities: bool = False,
    progress: Progress | None = None,
) -> Segmentation | list[Segmentation]:
    """Segment images with a network, or with the zoo's model of a name.

    This builds a `Predictor` and calls it once; it describes the options in full.

    Args:
        model: a network, which is left unchanged; or a name of the zoo.
        images: a path, PIL image, uint8 array (H, W[, 3|4]) or uint8 tensor (3, H, W), all RGB; a
            folder; or an iterable of these, which is read lazily.
        batch_size: images of one size that go through the network together.
        device: where to compute.
        dtype: type of the network's arithmetic, or ``"auto"``.
        scales: factors of the test-time augmentation.
        flip: also average over horizontally flipped images.
        tile: side, or (height, width), of the tiles of sliding-window inference, or ``"whole"``.
        overlap: fraction of a tile that the next one repeats.
        resize: resize images to the size of the weights' test protocol.
        confidence: also return each label's probability.
        probabilities: also return all probabilities (K floats per pixel).
        progress: called with (images done, images in total or None) after each image.

    Returns:
        A `Segmentation` at the image's size; for a folder or an iterable a list, in order.

    Raises:
        InputError: an image or an option cannot be used.
        UnknownModelError: no model has this name.
        DownloadError: its weights are not cached and no source has them.
    """
    predictor = Predictor(
        model,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        scales=scales,
        flip=flip,
        tile=tile,
        overlap=overlap,
        resize=resize,
        confidence=confidence,
        probabilities=probabilities,
    )
    return predictor(images, progress=progress)


def _load(model: object) -> ISANet:
    """Return a network, or load the zoo's of a name."""
    if isinstance(model, (str, os.PathLike)):
        return create_model(os.fspath(model), pretrained=True)
    if not isinstance(model, ISANet):
        raise InputError(f"expected an ISANet or the name of one, got {type(model).__name__}")
    return model


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
