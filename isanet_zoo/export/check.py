"""Comparison of an exported file, run in onnxruntime, with the network."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from isanet_zoo.errors import ExportError
from isanet_zoo.export.graph import Graph, Output
from isanet_zoo.manifest.config import OUTPUT_STRIDE

logger = logging.getLogger(__name__)

Shape: TypeAlias = tuple[int, int, int, int]  # (B, C, H, W)

ALLOWED = {  # largest difference of logits: (absolute, fraction of the largest logit)
    torch.float32: (1e-4, 1e-6),
    torch.float16: (1e-2, 3e-2),
}
LEAST_AGREEMENT = 0.8  # of an int8 file's labels with the network's


def sizes_to_try(partition: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return (batch, height, width) of the input to trace, then of others to compare.

    A graph that is traced on a map of a single attention window, or of whole windows, may lack
    operations that other maps need.
    """
    rows, columns = (OUTPUT_STRIDE * side for side in partition)  # a window, in pixels
    return [
        (2, rows + 36, columns + 76),
        (1, rows + 33, columns + 77),  # odd
        (3, rows, 3 * columns + 8),  # a single row of windows
        (2, rows // 2 + 1, columns),  # less than a window
        (1, 3 * rows + 2, 2 * columns),
    ]


def noise(shape: Shape, preprocess: bool) -> Tensor:
    """Return a random input of a shape, the same in every run."""
    generator = torch.Generator("cpu").manual_seed(0)
    if preprocess:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device="cpu")
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


@torch.no_grad()
def compare(
    path: Path, target: Path, graph: Graph, shapes: Sequence[Shape], dtype: torch.dtype
) -> None:
    """Compare a file with the network.

    Args:
        path: the file.
        target: its final path, for messages.
        graph: the network.
        shapes: of the inputs to compare.
        dtype: type of the file's arithmetic.

    Raises:
        ExportError: the outputs differ; the message contains the size and the difference.
    """
    session = _open(path, target)
    for shape in shapes:
        images = noise(shape, graph.preprocess)
        logits = graph.logits(images)
        found = _run(session, images, target, _expected(logits, graph.output))
        if difference := _difference(found, logits, dtype):
            raise ExportError(
                f"{target} was not written: at {_spell(shape)} its {graph.output} differ: "
                f"{difference}"
            )
        logger.info("%s: the same %s in onnxruntime", _spell(shape), graph.output)


@torch.no_grad()
def compare_int8(
    path: Path, target: Path, graph: Graph, shapes: Sequence[Shape], inputs: Sequence[Tensor]
) -> None:
    """Run an int8 file at several sizes, and compare its labels with the network's.

    Args:
        path: the file.
        target: its final path, for messages.
        graph: the network.
        shapes: of the inputs to run.
        inputs: images, whose labels are compared.

    Raises:
        ExportError: the file does not support a size, or too few labels are equal.
    """
    session = _open(path, target)
    for shape in shapes:  # int8 labels of noise are meaningless; only check that the file runs
        images = noise(shape, graph.preprocess)
        _run(session, images, target, _expected(graph.logits(images), graph.output))
    agreements = []
    for images in inputs:
        logits = graph.logits(images)
        found = _run(session, images, target, _expected(logits, graph.output))
        labels = found if graph.output == "labels" else found.argmax(1)
        agreements.append((labels == logits.argmax(1)).float().mean().item())
    agreement = sum(agreements) / len(agreements)
    if agreement < LEAST_AGREEMENT:
        raise ExportError(
            f"{target} was not written: in int8 only {agreement:.1%} of the labels of "
            f"{len(inputs)} images are equal; calibrate with images like those that the network "
            "was trained on, or export in float"
        )
    logger.info("int8: %.2f%% of the labels of %d images are equal", 100 * agreement, len(inputs))


def _difference(found: Tensor, logits: Tensor, dtype: torch.dtype) -> str:
    """Describe how logits or labels differ from the expected logits; empty if within tolerance."""
    absolute, relative = ALLOWED[dtype]
    allowed = absolute + relative * logits.abs().max().item()
    if found.ndim == logits.ndim:
        largest = (found - logits).abs().max().item()
        return "" if largest <= allowed else f"by {largest:.2g}, where {allowed:.2g} is allowed"
    best = logits.topk(min(2, logits.shape[1]), dim=1).values  # (B, 2, H, W)
    clear = best[:, 0] - best[:, -1] > 2 * allowed  # never with one class
    wrong = int(((found != logits.argmax(1)) & clear).sum())
    return f"{wrong} of {int(clear.sum())} that are not nearly tied" if wrong else ""


def _open(path: Path, target: Path) -> Any:
    """Return onnxruntime's session of a file, after onnx's checker.

    Raises:
        ExportError: the file is not valid.
    """
    onnx: Any = importlib.import_module("onnx")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{target} was not written: onnx's checker fails: {error}") from error
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(session: Any, images: Tensor, target: Path, expected: tuple[int, ...]) -> Tensor:
    """Run a file.

    Raises:
        ExportError: the file does not support this size, or its output has an unexpected one.
    """
    what = f"{target} was not written: at {_spell(images.shape)} it"
    try:
        (output,) = session.run(None, {"images": images.numpy()})
    except Exception as error:  # onnxruntime's errors have no common base class
        raise ExportError(f"{what} cannot be run: {error}") from error
    if output.shape != expected:
        raise ExportError(f"{what} returns {_spell(output.shape)}, not {_spell(expected)}")
    return torch.from_numpy(output)


def _expected(logits: Tensor, output: Output) -> tuple[int, ...]:
    """Return the shape of the output for (B, K, H, W) logits."""
    batch, classes, height, width = logits.shape
    return (batch, height, width) if output == "labels" else (batch, classes, height, width)


def _spell(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
