"""The engine that runs exported files with onnxruntime, on CPUs.

Letters in shapes: B batch, K classes, h w image.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from isanet_zoo.errors import EnvironmentProblem, InputError, printable
from isanet_zoo.files import open_regular
from isanet_zoo.weights.description import Description
from isanet_zoo.weights.tensors import DESCRIPTION

OUTPUTS = ("logits", "logits_8", "labels")  # of files that `export_onnx` writes
DTYPES = {"float16": torch.float16, "int8": torch.int8}  # doc strings; others are float32
INSTALL = "pip install 'isanet-zoo[onnx]'"


class OnnxruntimeEngine:
    """A file that `export_onnx` wrote, in memory.

    It uses as many threads as torch uses when it is created. They do not survive `fork`; a pickled
    engine opens its file again.

    Args:
        path: the file.

    Attributes:
        description: everything that the file states about its network.

    The other attributes are those of `isanet_zoo.engines.engine.Engine`.

    Raises:
        InputError: the file cannot be used, or was not written by `export_onnx`.
        CheckpointError: the description in the file is wrong.
        EnvironmentProblem: onnxruntime is missing.
    """

    name = "onnxruntime"
    device = torch.device("cpu")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._session = _open(self.path)
        self._shape: torch.Size | None = None  # of the last images
        self._release = _release_memory()
        self.description = _describe(self._session, self.path)
        self.label_set = self.description.label_set
        self.preprocess = self.description.preprocess
        self.resize = self.description.network.head.resize
        document = self._session.get_modelmeta().description
        self.dtype = DTYPES.get(document, torch.float32)
        image, output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self.output: Literal["logits", "labels"] = "labels" if output.name == "labels" else "logits"
        height, width = image.shape[2:]
        self.input_size = (height, width) if isinstance(height, int) else None
        self._takes_pixels = image.type == "tensor(uint8)"

    def __reduce__(self) -> tuple[type[OnnxruntimeEngine], tuple[Path]]:
        return OnnxruntimeEngine, (self.path,)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Map prepared images (B, 3, h, w) float32 to the output of the file.

        Returns:
            Logits (B, K, h/8, w/8) or (B, K, h, w) float32, or labels (B, h, w) uint8.

        Raises:
            InputError: the file is for images of another size.
        """
        check_input_size(self, (images.shape[-2], images.shape[-1]))
        images = images.to(self.device)
        if self._takes_pixels:
            images = self._to_pixels(images)
        # A file for one size is for one image.
        parts = torch.split(images, 1) if self.input_size else (images,)
        outputs = [self._run(part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run(self, images: Tensor) -> Tensor:
        options = self._release if images.shape != self._shape else None
        self._shape = images.shape
        (output,) = self._session.run(None, {"images": images.contiguous().numpy()}, options)
        return torch.from_numpy(output)

    def _to_pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation, which the file includes: (B, 3, h, w) float32 to uint8 RGB."""
        config = self.preprocess
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.mean, config.std))
        pixels = images.flip(1) if config.order == "bgr" else images
        return (pixels * std).add_(mean).round_().clamp_(0, 255).to(torch.uint8)


def check_input_size(engine: Any, size: tuple[int, int]) -> None:
    """Check that an engine computes images of (height, width).

    Raises:
        InputError: it computes one other size only.
    """
    if engine.input_size not in (None, size):
        (height, width), wanted = size, engine.input_size
        raise InputError(
            f"{engine.path.name} is for images of {wanted[0]}x{wanted[1]} only, and this one has "
            f"{height}x{width}; use tiles of that size (tile={wanted}), or export a file for all "
            "sizes (without --static; in Python: dynamic=True)"
        )


def _open(path: Path) -> Any:
    """Return a session for a file.

    Raises:
        InputError: it cannot be read, or is no ONNX file.
        EnvironmentProblem: onnxruntime is missing.
    """
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EnvironmentProblem(f"onnxruntime cannot be imported ({error}): {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_mem_pattern = False  # would keep a plan for every shape
    # Threads wait actively during a run only; torch computes before and after.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors, which are raised as well
    try:
        with open_regular(path) as file:
            content = file.read()  # as bytes, so that the file cannot refer to others
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}") from error
    except Exception as error:  # onnxruntime's errors have no common base class
        raise InputError(
            f"{printable(path)} is no ONNX file that onnxruntime can run: {printable(error)}"
        ) from error


def _release_memory() -> Any:
    """Return options of a run at whose end the arena releases its memory.

    They are for images of another shape than the last: an arena saves time, but would keep memory
    of every shape.
    """
    options = importlib.import_module("onnxruntime").RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _describe(session: Any, path: Path) -> Description:
    """Return the description in a file's metadata, after a check of its input and output.

    Raises:
        InputError: `export_onnx` did not write the file; the message lists what is missing.
        CheckpointError: a field of the description is wrong.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    text = session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)
    missing = []
    if text is None:
        missing.append(f"the metadata `{DESCRIPTION}` with classes, colours and preprocessing")
    if [(x.name, len(x.shape)) for x in inputs] != [("images", 4)] or inputs[0].shape[1] != 3:
        missing.append("the only input `images`, (B, 3, h, w)")
    if len(outputs) != 1 or outputs[0].name not in OUTPUTS:
        missing.append(f"a single output, one of {', '.join(f'`{name}`' for name in OUTPUTS)}")
    if missing:
        raise InputError(
            f"{printable(path)} was not written by isanet_zoo for RGB images. It lacks "
            f"{'; '.join(missing)}. Export the network with `isanet-zoo export` or export_onnx"
        )
    return Description.parse(text, f"{path.name}: {DESCRIPTION}")
