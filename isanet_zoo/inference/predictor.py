"""Segmentation of images with a network: `Predictor` and `predict`.

Letters in shapes: B images of one size, K classes, H W image, h w network input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TypeAlias

import torch
from torch import Tensor

from isanet_zoo.engines import cuda
from isanet_zoo.engines.engine import (
    Device,
    DType,
    EngineOptions,
    Images,
    best_device,
    choose_engine,
    create_engine,
    is_onnx,
    resolve_device,
)
from isanet_zoo.engines.onnxruntime_engine import check_input_size
from isanet_zoo.errors import InputError, printable
from isanet_zoo.imaging.preprocess import input_size, padded_size, prepare
from isanet_zoo.imaging.reading import ImageLike, LoadedImage, find_images, is_single
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference import explain
from isanet_zoo.inference.batches import Batch, Item, Key, make_batches
from isanet_zoo.inference.decide import decide
from isanet_zoo.inference.remote import read_any
from isanet_zoo.inference.scores import read_labels, score_views
from isanet_zoo.inference.threads import delayed, in_order
from isanet_zoo.inference.tiles import tile_grid
from isanet_zoo.inference.views import Tile, Views, check_flag, check_network
from isanet_zoo.manifest.own_classes import OwnClasses, merge_classes
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import whole_number
from isanet_zoo.weights.http import without_password
from isanet_zoo.zoo import create_model

Progress: TypeAlias = Callable[[int, int | None], None]
"""A function that is called with the images done, and those in total or None if not known."""

MAX_BATCH = 4096


class Predictor:
    """A network prepared for segmenting images; build it once and call it often.

    It computes with a copy of the network, folded for inference. Several threads may share it.

    Start other processes with ``spawn``: torch deadlocks in a process that is forked after it has
    used several threads, and on CUDA raises "Cannot re-initialize CUDA in forked subprocess".
    Workers of a `DataLoader` use one thread, so that they work on the CPU but not on CUDA.

    Args:
        model: a network; or the name of published weights or a file that this library wrote, which
            are then loaded. Exported files, ``*.onnx``, are run by onnxruntime.
        engine: ``"torch"``, the default for all models but exported files, or ``"onnxruntime"``,
            which is faster on some CPUs (``pip install 'isanet-zoo[onnx]'``). It exports the
            network when it is first used, which takes minutes, and keeps the graph in the cache;
            see `export_onnx` about other networks in the process meanwhile.
        device: where to compute, such as ``"cuda:1"``, ``1`` or ``"cpu"``. If None, a network is
            computed where it is, a model given by name on the best device: CUDA, MPS or the CPU.
            onnxruntime computes on the CPU.
        dtype: type of the network's arithmetic, float32 if None. `torch.bfloat16` is faster on
            some hardware, and changes labels where two classes are nearly equal; ``"auto"`` uses it
            where a short measurement finds it faster. ``"int8"`` is for onnxruntime: several times
            faster, with some labels changed. Labels are always decided in float32.
        compile: run the network through `torch.compile`: slow to start, faster for many images.
        calibrate: for ``dtype="int8"``, some dozens of images like those to segment, a folder or
            an iterable; see `export_onnx`.
        batch_size: images of one size that go through the network together, up to 4096.
        scales: factors of the test-time augmentation, over which logits are averaged: up to 32,
            each from 1/16 to 16.
        flip: also average over horizontally flipped images.
        tile: side, or (height, width), of the tiles of sliding-window inference, in pixels of the
            network's input; ``"whole"`` for no tiles; None for the weights' test protocol.
        overlap: fraction of a tile that the next one repeats, at least 0 and less than 1. Weights
            whose test protocol has tiles define their own.
        resize: resize images to the size of the weights' test protocol.
        classes: own classes made of the network's, as ``{"vehicle": ["car", "bus"]}``: their
            probabilities are added before the label is decided; see `merge_classes`.
        rest: name of an own class of all other classes; if None, these remain as they are.
        confidence: also return each label's probability.
        probabilities: also return all probabilities (K floats per pixel).

    Raises:
        InputError: an option is out of range, or the network does not take RGB images.
        UnknownModelError: no model has this name, or it has no class of a name in `classes`.
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
        engine: str | None = None,
        device: Device | None = None,
        dtype: DType | None = None,
        compile: bool = False,  # noqa: A002 - torch's word
        calibrate: Images | None = None,
        batch_size: int = 1,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        tile: Tile | None = None,
        overlap: float = 0.25,
        resize: bool = True,
        classes: OwnClasses | None = None,
        rest: str | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> None:
        self.views = Views(scales=scales, flip=flip, tile=tile, overlap=overlap, resize=resize)
        self.batch_size = whole_number("batch_size", batch_size, at_most=MAX_BATCH)
        self.confidence = check_flag("confidence", confidence)
        self.probabilities = check_flag("probabilities", probabilities)
        check_flag("compile", compile)
        options = EngineOptions(device, dtype, compile, calibrate)
        engine = choose_engine(engine, model, options)
        if isinstance(model, (str, os.PathLike)) and not is_onnx(model):
            if engine == "torch":
                options = options._replace(device=resolve_device(device, best_device()))
            model = create_model(os.fspath(model), pretrained=True)
        if not is_onnx(model):
            check_network(model)
        self.engine = create_engine(model, name=engine, **options._asdict())
        if self.engine.output == "labels":
            others = {"confidence": confidence, "probabilities": probabilities, "classes": classes}
            self.views.check_labels_only(self.engine.preprocess, others)
        self.device, self.dtype = self.engine.device, self.engine.dtype
        self.merged = merge_classes(self.engine.label_set, classes, rest)

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], *, progress: Progress | None = None
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or all images of a folder or iterable, in order.

        Args:
            images: a path, http(s) URL, file opened in binary mode, the bytes of a file, a PIL
                image, uint8 array (H, W[, 3|4]) or uint8 tensor (3, H, W), all RGB; a folder; or an
                iterable of these, which is read lazily.
            progress: called with (images done, images in total or None) after each image.

        Returns:
            The label map at the image's size; for a folder or an iterable a list.

        Raises:
            InputError: an image cannot be used; the message names it.
        """
        segmentations = self.stream(images, progress=progress)
        return next(segmentations) if is_single(images) else list(segmentations)

    def stream(
        self, images: ImageLike | Iterable[ImageLike], *, progress: Progress | None = None
    ) -> Iterator[Segmentation]:
        """Segment images one by one, in order, with few of them in memory at any time.

        Images of one size that are close to each other share a batch. None is ever padded: that
        would change the groups of the attention, and so the result.
        """
        if progress is not None and not callable(progress):
            raise InputError(f"progress is {progress!r}; pass a function of (done, total), or None")
        source = find_images(images)
        total = len(source) if isinstance(source, Sized) else None
        # Sized inputs are read ahead; other iterables are consumed lazily.
        loaded = map(self._read, source) if total is None else in_order(self._read, source)
        results = self._stream((None, image) for image in loaded)
        for done, (_, segmentation) in enumerate(results, 1):
            if progress is not None:
                progress(done, total)
            yield segmentation

    def explain(self, image: ImageLike, at: tuple[int, int]) -> explain.Explanation:
        """Return how strongly each position of an image reaches one pixel through attention.

        Args:
            image: see `read_image`.
            at: (x, y), a pixel of the image, from (0, 0) at the top left.

        Raises:
            InputError: the image cannot be used, `at` is not in it, the options make several views
                or tiles of it, or the engine has no attention.
        """
        return explain.explain(self, image, at)

    def _read(self, image: ImageLike) -> LoadedImage:
        """Read an image and check that it can be segmented with these options.

        Raises:
            InputError: it cannot be read, or a view has no pixels, too many, or too many tiles.
        """
        loaded = read_any(image)
        preprocess = self.engine.preprocess
        size = input_size(loaded.size, preprocess) if self.views.resize else loaded.size
        try:
            for scaled in self.views.input_sizes(size):
                if grid := self.views.grid(preprocess):
                    check_input_size(self.engine, tile_grid(scaled, grid)[0].size)
                else:
                    check_input_size(self.engine, padded_size(scaled, preprocess))
        except InputError as error:
            name = without_password(image) if isinstance(image, str) else loaded.path or "image"
            raise InputError(f"{printable(name)}: {error}") from error
        return loaded

    def _stream(
        self, images: Iterable[tuple[Key, LoadedImage]]
    ) -> Iterator[tuple[Key, Segmentation]]:
        """Segment images in order; each comes with a key, which is returned with its result."""
        behind = 0 if self.device.type == "cpu" else 1  # a GPU works while results are fetched
        finished: dict[int, tuple[Key, Segmentation]] = {}
        position = 0
        for batch in delayed(map(self._segment, make_batches(images, self.batch_size)), behind):
            finished |= batch.results()
            while position in finished:
                yield finished.pop(position)
                position += 1

    @torch.inference_mode()
    def _segment(self, items: Sequence[Item[Key]]) -> Batch[Key]:
        """Segment images of one size, without waiting for a GPU."""
        images = [image for _, _, image in items]
        prepared = self._prepare(images)  # (B, 3, h, w)
        if self.engine.output == "labels":
            decision = read_labels(self.engine, prepared, images[0].size)
            return Batch.fetch(items, decision, self.merged.label_set)
        scores = score_views(
            self.engine, self.views, prepared, images[0].size, batch_size=self.batch_size
        )
        decision = decide(
            scores, self.merged.groups, confidence=self.confidence, probabilities=self.probabilities
        )
        return Batch.fetch(items, decision, self.merged.label_set)

    def _prepare(self, images: Sequence[LoadedImage]) -> Tensor:
        """Return images of one size as the network's input, (B, 3, h, w)."""
        pixels = torch.stack([image.pixels for image in images])  # (B, 3, H, W)
        pixels = cuda.to_device(pixels.contiguous(memory_format=torch.channels_last), self.device)
        return prepare(pixels, self.engine.preprocess, resize=self.views.resize)


def predict(
    model: ISANet | str | os.PathLike[str],
    images: ImageLike | Iterable[ImageLike],
    *,
    batch_size: int = 1,
    engine: str | None = None,
    device: Device | None = None,
    dtype: DType | None = None,
    calibrate: Images | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: Tile | None = None,
    overlap: float = 0.25,
    resize: bool = True,
    classes: OwnClasses | None = None,
    rest: str | None = None,
    confidence: bool = False,
    probabilities: bool = False,
    progress: Progress | None = None,
) -> Segmentation | list[Segmentation]:
    """Segment images with a network, or with the zoo's model of a name.

    The same as ``Predictor(model, ...)(images, progress=progress)``, which describe the options and
    the images: one, which returns a `Segmentation`, or several, which return a list.

    Raises:
        InputError: an image or an option cannot be used.
        UnknownModelError: no model has this name, or it has no class of a name in `classes`.
        DownloadError: its weights are not cached and no source has them.
    """
    predictor = Predictor(
        model,
        batch_size=batch_size,
        engine=engine,
        device=device,
        dtype=dtype,
        calibrate=calibrate,
        scales=scales,
        flip=flip,
        tile=tile,
        overlap=overlap,
        resize=resize,
        classes=classes,
        rest=rest,
        confidence=confidence,
        probabilities=probabilities,
    )
    return predictor(images, progress=progress)
