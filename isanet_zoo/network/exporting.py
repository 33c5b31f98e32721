"""What `torch.export` needs to trace a network for images of every size."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SIDE = 9  # pixels: more than one row and column at stride 8


def open_size(size: int) -> int:
    """Return a size that an exported program does not restrict.

    Otherwise `torch.export` infers from the traced input that there are several windows, and the
    program does not support images of 64 pixels or less.
    """
    if not _is_exporting():
        return size
    opened: int = torch.tensor(size, device="cpu").item()  # type: ignore[assignment]
    torch._check(opened >= 1)
    return opened


def check_sides(images: Tensor) -> None:
    """State the least side of images (B, C, H, W) in an exported program.

    torch traces strided convolutions for maps of more than one row and column. Without this, its
    program refuses smaller images by a condition on each encoder stage.
    """
    if _is_exporting():
        for side in images.shape[-2:]:
            torch._check(side >= LEAST_SIDE)


def _is_exporting() -> bool:
    """Return True while `torch.export` traces, but not for an ONNX file, whose sizes are open.

    It is always False in versions of torch before 2.7.
    """
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    return bool(is_exporting and is_exporting()) and not torch.onnx.is_in_onnx_export()
