"""The three bilinear rules by which the published families resize logits.

They differ in the position of output i in the input, for n points resized to N::

    half_pixel    (i + 0.5) · n / N - 0.5      torch's align_corners=False
    corners       i · (n - 1) / (N - 1)        torch's align_corners=True
    asymmetric    i · n / N                    PaddleSeg's align_corners=False, align_mode=1
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.manifest.config import ResizeRule


def resize(
    logits: Tensor, size: tuple[int, int], rule: ResizeRule, *, out: Tensor | None = None
) -> Tensor:
    """Resize logits (B, K, h, w) to (B, K, *size).

    Args:
        logits: the input.
        size: (height, width) of the output.
        rule: the position of the samples.
        out: memory for the output, which is faster; it excludes gradients.
    """
    if rule == "asymmetric":
        return _asymmetric(_asymmetric(logits, size[1], -1), size[0], -2)
    corners = rule == "corners"
    if out is not None:
        return torch.ops.aten.upsample_bilinear2d.out(logits, size, corners, out=out)  # type: ignore[no-any-return]
    return F.interpolate(logits, size, mode="bilinear", align_corners=corners)


def _asymmetric(logits: Tensor, size: int, dim: int) -> Tensor:
    length = logits.shape[dim]
    source = torch.arange(size, device=logits.device, dtype=torch.float32) * (length / size)
    before = source.long()  # (size,), within 0..length - 1
    after = (before + 1).clamp(max=length - 1)
    weight = (source - before).to(logits.dtype)
    if dim == -2:
        weight = weight[:, None]
    return torch.lerp(logits.index_select(dim, before), logits.index_select(dim, after), weight)
