"""The interface of all engines, their table, and the choice of a device.

An engine computes logits from prepared images. Everything before (reading, resizing) and after
(upsampling, labels, tiles, scales) is common to all engines.

Letters in shapes: B batch, K classes, h w image.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from isanet_zoo.engines.graphs import cached_graph
from isanet_zoo.engines.onnxruntime_engine import OnnxruntimeEngine
from isanet_zoo.engines.speed import measure_speeds
from isanet_zoo.engines.torch_engine import TorchEngine
from isanet_zoo.errors import InputError
from isanet_zoo.imaging.reading import ImageLike
from isanet_zoo.manifest.config import Preprocess, ResizeRule
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.network.isanet import ISANet

Device: TypeAlias = str | int | torch.device
DType: TypeAlias = torch.dtype | Literal["auto", "int8"]
"""Type of the arithmetic; ``"auto"`` is chosen by a measurement, ``"int8"`` is quantised."""
Images: TypeAlias = ImageLike | Iterable[ImageLike]
"""Images, or a folder of them."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Engine(Protocol):
    """A network that is ready for inference; it may be called from several threads."""

    name: str  # key in `ENGINES`
    device: torch.device  # where it computes; images may be on any device
    dtype: torch.dtype  # of the arithmetic
    label_set: LabelSet  # the classes
    preprocess: Preprocess  # how images are prepared
    resize: ResizeRule  # how logits are resized to the size of the image
    output: Literal["logits", "labels"]  # labels of an exported file only
    input_size: tuple[int, int] | None  # (h, w) of an exported file for one size; None for any

    def __call__(self, images: Tensor) -> Tensor:
        """Map prepared images (B, 3, h, w) float32 to the output.

        Returns:
            Logits (B, K, h/8, w/8) float32; of some exported files logits (B, K, h, w), or labels
            (B, h, w) uint8.
        """


class EngineOptions(NamedTuple):
    """How an engine computes; see `create_engine`."""

    device: Device | None = None
    dtype: DType | None = None
    compile: bool = False
    calibrate: Images | None = None


def create_engine(
    model: ISANet | str | os.PathLike[str],
    *,
    name: str | None = None,
    device: Device | None = None,
    dtype: DType | None = None,
    compile: bool = False,  # noqa: A002 - torch's word
    calibrate: Images | None = None,
) -> Engine:
    """Return an engine that computes with a copy of a network, or with an exported file.

    Args:
        model: a network, which is not changed, or the path of a file that `export_onnx` wrote.
        name: the engine, a key of `ENGINES`; see `choose_engine`.
        device: where to compute; the network's device if None, and the CPU for onnxruntime.
        dtype: type of the arithmetic; float32 if None, ``"auto"`` for bfloat16 where it is
            measured to be faster, ``"int8"`` for an engine that quantises. Logits are float32 in
            any case.
        compile: pass the network to `torch.compile`; slow to start.
        calibrate: images like those to segment, for int8.

    Raises:
        InputError: the device is not available, the engine or `dtype` is unknown, or options
            contradict each other; or a file cannot be used.
        EnvironmentProblem: a package that the engine needs is missing.
    """
    options = EngineOptions(device, dtype, compile, calibrate)
    chosen = choose_engine(name, model, options)
    if not isinstance(model, ISANet):
        return OnnxruntimeEngine(model)
    return ENGINES[chosen](model, options)


def is_onnx(model: object) -> bool:
    """Return True for a path that ends in ``.onnx``."""
    return isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() == ".onnx"


def choose_engine(name: str | None, model: object, options: EngineOptions) -> str:
    """Return the name of an engine: by default onnxruntime for an exported file, otherwise torch.

    Raises:
        InputError: there is no such engine, or it does not support the model or an option.
    """
    fitting = "onnxruntime" if is_onnx(model) else "torch"
    chosen = fitting if name is None else name
    if not isinstance(chosen, str) or chosen not in ENGINES:
        raise InputError(f"engine is {name!r}; choose one of {', '.join(ENGINES)}")
    if is_onnx(model) and chosen != fitting:
        raise InputError(f"{model} is an ONNX file, which needs engine='onnxruntime'")
    if chosen == "torch":
        if options.calibrate is not None or _is_one_of(options.dtype, "int8"):
            raise InputError("engine='torch' does not compute in int8; use engine='onnxruntime'")
    else:
        _check_onnxruntime(model, options)
    return chosen


def _check_onnxruntime(model: object, options: EngineOptions) -> None:
    """Raise InputError for options that onnxruntime does not support."""
    device, dtype, compiled, calibrate = options
    if resolve_device(device, "cpu").type != "cpu":
        raise InputError(f"device is {str(device)!r}; engine='onnxruntime' computes on the CPU")
    if compiled:
        raise InputError("compile=True is for engine='torch'; onnxruntime compiles its graphs")
    if is_onnx(model):
        if dtype is not None or calibrate is not None:
            raise InputError(f"{model} has a type of arithmetic; drop dtype and calibrate")
        return
    if not _is_one_of(dtype, None, torch.float32, "auto", "int8"):
        raise InputError(
            f"dtype is {dtype!r}; engine='onnxruntime' computes in torch.float32 or 'int8'"
        )
    if (dtype == "int8") != (calibrate is not None):
        raise InputError(
            "dtype='int8' and calibrate belong together: calibrate='folder' with some dozens of "
            "images like those to segment, from which the ranges of int8 are taken"
        )


def _is_one_of(value: object, *choices: object) -> bool:
    """Return True if a value equals a choice of the same type; arrays compare by element."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _create_torch(network: ISANet, options: EngineOptions) -> Engine:
    """Return a torch engine, by default on the network's device."""
    device = resolve_device(options.device, next(network.parameters()).device)
    dtype = resolve_dtype(options.dtype, device)
    return TorchEngine(network, device, dtype, compile=options.compile)


def _create_onnxruntime(network: ISANet, options: EngineOptions) -> Engine:
    """Return an onnxruntime engine of the network's cached graph."""
    return OnnxruntimeEngine(cached_graph(network, options.calibrate))


ENGINES: dict[str, Callable[[ISANet, EngineOptions], Engine]] = {
    "torch": _create_torch,
    "onnxruntime": _create_onnxruntime,
}


def best_device() -> torch.device:
    """Return the best device of this machine: CUDA, then MPS, then the CPU."""
    return torch.device(available_devices()[0])


def available_devices() -> list[str]:
    """Return the names of the devices of this machine, the best one first."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(device: Device | None, default: Device) -> torch.device:
    """Return a device that this machine has, with its index where it has one.

    Args:
        device: a `torch.device`, a name such as ``"cuda:0"``, or the index of a CUDA device.
        default: used if `device` is None.

    Raises:
        InputError: there is no such device.
    """
    wanted = default if device is None else device
    try:
        if not isinstance(wanted, (str, torch.device)):
            wanted = f"cuda:{operator.index(wanted)}"
        # A tensor's device has an index: "cuda" may be requested, and "cuda:1" be current.
        found = torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        raise _unavailable(device, default) from error
    if isinstance(device, bool) or found.type == "meta":
        raise _unavailable(device, default)
    return found


def _unavailable(device: object, default: object) -> InputError:
    shown = repr(str(device if device is not None else default))
    return InputError(
        f"device {shown} is not available; torch {torch.__version__} can compute on "
        f"{', '.join(available_devices())} of this machine"
    )


def resolve_dtype(dtype: DType | None, device: torch.device) -> torch.dtype:
    """Return the type of the arithmetic on a device, see `create_engine`.

    Raises:
        InputError: the type is not supported.
    """
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str) and dtype == "auto":
        return measure_speeds(device).faster
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        choices = ", ".join(map(str, DTYPES))
        raise InputError(f"dtype is {dtype!r}; choose one of {choices}, or 'auto'")
    return dtype
