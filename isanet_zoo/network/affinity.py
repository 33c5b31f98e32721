"""One row of interlaced attention: how strongly each position reaches one of them.

With A_L and A_S the attention matrices of the long-range and the short-range hop, whose rows sum
to one, position p reads position r with weight (A_S · A_L)[p, r]. A hop mixes positions within
groups only, so that row p needs one row of A_S and a row of A_L for each position of p's window;
together they have as many values as the map. The matrices are never built.

Letters in shapes: C channels, D key channels, h w feature map, P window, Q number of windows per
side.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Hop(Protocol):
    """Self-attention, folded or not."""

    def query(self, x: Tensor, /) -> Tensor:
        """Map (B, C, h, w) to (B, D, h, w)."""

    def key(self, x: Tensor, /) -> Tensor:
        """Map (B, C, h, w) to (B, D, h, w)."""

    def transform(self, x: Tensor, /) -> Tensor:
        """Map averages of inputs, (B, C, h, w), to outputs."""


class Attention(Protocol):
    """Interlaced attention, folded or not."""

    partition: tuple[int, int]

    @property
    def long_range(self) -> Hop:
        """The first hop."""

    @property
    def short_range(self) -> Hop:
        """The second hop."""


class Rows(NamedTuple):
    """Rows of a position in the two attention matrices and in their product, each (h, w)."""

    long_range: Tensor
    short_range: Tensor
    affinity: Tensor


def affinity_rows(attention: Attention, features: Tensor, cell: tuple[int, int]) -> Rows:
    """Return the attention of one position of a map.

    Each row sums to one over the map and the zeros that attention pads it with; these are left out.

    Args:
        attention: the module, in evaluation mode.
        features: its input, (1, C, h, w).
        cell: (row, column) of the position.

    Returns:
        float32 maps (h, w).
    """
    height, width = features.shape[-2:]
    window_h, window_w = attention.partition
    windows_h, windows_w = -(-height // window_h), -(-width // window_w)
    pad_h, pad_w = windows_h * window_h - height, windows_w * window_w - width
    top, left = pad_h // 2, pad_w // 2
    x = features
    if pad_h or pad_w:
        x = F.pad(features, (left, pad_w - left, top, pad_h - top))
    (row, place_h), (column, place_w) = (
        divmod(cell[0] + top, window_h),
        divmod(cell[1] + left, window_w),
    )
    area = (
        slice(row * window_h, (row + 1) * window_h),
        slice(column * window_w, (column + 1) * window_w),
    )
    rows = torch.zeros(3, windows_h, window_h, windows_w, window_w, device=x.device)

    far = attention.long_range
    window = x[..., area[0], area[1]].clone()  # (1, C, P_h, P_w): each position is in another group
    query = far.query(window)[0]  # (D, P_h, P_w)
    for i, j in itertools.product(range(window_h), range(window_w)):
        group = x[..., i::window_h, j::window_w]  # (1, C, Q_h, Q_w)
        weights = _softmax(query[:, i, j], far.key(group)[0])  # (Q_h, Q_w)
        window[0, :, i, j] = torch.einsum("cqr,qr->c", group[0], weights.to(x.dtype))
        rows[2, :, i, :, j] = weights
    window = far.transform(window)  # what the second hop reads

    near = attention.short_range
    query = near.query(window)[0, :, place_h, place_w]  # (D,)
    shares = _softmax(query, near.key(window)[0])  # (P_h, P_w)

    rows[0, :, place_h, :, place_w] = rows[2, :, place_h, :, place_w]
    rows[1, row, :, column, :] = shares
    rows[2] *= shares[:, None]
    maps = rows.reshape(3, x.shape[-2], x.shape[-1])
    return Rows(*maps[:, top : top + height, left : left + width])


def _softmax(query: Tensor, keys: Tensor) -> Tensor:
    """Return the attention weights of a query (D,) over keys (D, n, m), (n, m) in float32."""
    scores = torch.einsum("d,dnm->nm", query.float(), keys.float()) * float(len(query)) ** -0.5
    weights: Tensor = scores.flatten().softmax(0).view(scores.shape)
    return weights
