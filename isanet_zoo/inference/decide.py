"""From logits at 1/8 to labels at the picture's size, in bounded memory.

Resizing K classes to a large picture before taking the maximum needs K floats per pixel (4.6 GiB
for 150 classes at 2160 × 3840). Classes are independent until the maximum, so each is resized on
its own and a running maximum is kept: the same arithmetic, the same labels, three planes. And most
classes can be the label of no pixel, since a resized value never exceeds the logits around it. Of
large pictures even those planes are made of a strip of rows at a time, where the arithmetic allows.

Letters in shapes: B pictures of one size, K classes, H W picture, h w logits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

from isanet_zoo.manifest.config import OUTPUT_STRIDE, ResizeRule
from isanet_zoo.network.resize import resize

# confidence wanted? -> labels, confidence
Shortcut = Callable[[bool], tuple[Tensor, Tensor | None]]
STRIP = 2**20  # pixels; measured: smaller strips cost time


class Scores(NamedTuple):
    """The scores of K classes at the final size, one class at a time."""

    num_classes: int
    plane: Callable[[int], Tensor]  # class k -> (B, H, W) float32, good until the next call
    contenders: Sequence[int]  # in order, at least those that can have the highest score somewhere
    shortcut: Shortcut | None = None  # to the same result, without these planes
    kept: tuple[Tensor, Tensor] | None = None  # rows and columns that are the picture; all if None


class Decision(NamedTuple):
    """What is known of each pixel; B pictures of one size."""

    labels: Tensor  # (B, H, W) uint8
    confidence: Tensor | None  # (B, H, W) float32: the label's probability
    probabilities: Tensor | None  # (B, K, H, W) float32


def decide(scores: Scores, *, confidence: bool = False, probabilities: bool = False) -> Decision:
    """Give each pixel the class with the highest score; of equal ones the first, as `argmax` does.

    Args:
        scores: of at most 256 classes; each plane is asked for once, and once more for confidence
            or probabilities.
        confidence: also return the softmax probability of the label.
        probabilities: also return all softmax probabilities (K floats per pixel).
    """
    labels, *others = _decide(scores, confidence, probabilities)
    if scores.kept is None:
        return Decision(labels, *others)
    rows, columns = scores.kept
    cut = [None if other is None else _cut(other, rows, columns) for other in others]
    return Decision(_cut(labels, rows, columns), *cut)


def _decide(scores: Scores, confidence: bool, probabilities: bool) -> Decision:
    if scores.shortcut and not probabilities:
        return Decision(*scores.shortcut(confidence), None)
    first, *others = scores.contenders
    best = scores.plane(first).clone()  # (B, H, W)
    labels = torch.full_like(best, first, dtype=torch.uint8)
    higher = torch.empty_like(best, dtype=torch.bool)
    label = higher.view(torch.uint8)  # the same memory
    for k in others:
        plane = scores.plane(k)
        torch.gt(plane, best, out=higher)
        # `labels[higher] = k`, several times faster: labels so far are below k.
        torch.maximum(labels, label.mul_(k), out=labels)
        torch.maximum(best, plane, out=best)
    if not confidence and not probabilities:
        return Decision(labels, None, None)

    # Softmax in two passes: shifted by the maximum, so that no exponential overflows.
    total = torch.zeros_like(best)
    batch, height, width = best.shape
    shares = best.new_empty(batch, scores.num_classes, height, width) if probabilities else None
    for k in range(scores.num_classes):
        share = scores.plane(k).sub(best).exp_()
        total += share
        if shares is not None:
            shares[:, k] = share
    return Decision(
        labels,
        total.reciprocal() if confidence else None,  # the label's own share is exp(0) = 1
        None if shares is None else shares.div_(total[:, None]),
    )


def _cut(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return x.index_select(-2, rows).index_select(-1, columns)


def whole(logits: Tensor, size: tuple[int, int], rule: ResizeRule) -> Scores:
    """Resize logits (B, K, h, w) to `size`."""
    logits = logits.float().contiguous()  # equal bf16 logits would tie once they are resized
    shortcut = (_fused if logits.is_cuda else _strips)(logits, size, rule)
    contenders = range(logits.shape[1]) if shortcut else _contenders(logits)
    return _planes(logits, size, rule, contenders)._replace(shortcut=shortcut)


def _planes(
    logits: Tensor, size: tuple[int, int], rule: ResizeRule, contenders: Sequence[int]
) -> Scores:
    """Resize class by class; `contenders` as in `Scores`."""
    num_classes, height, width = logits.shape[1:]
    if num_classes <= 3 or sum(size) <= 128 or height == width == 1:
        # Here torch's CPU kernels take several classes together, and round otherwise than for one.
        scores = resize(logits, size, rule)  # (B, K, H, W), small
        return Scores(num_classes, lambda k: scores[:, k], contenders)
    plane = logits.new_empty(len(logits), 1, *size)
    return Scores(
        num_classes,
        lambda k: resize(logits[:, k : k + 1], size, rule, out=plane)[:, 0],
        contenders,
    )


def _fused(logits: Tensor, size: tuple[int, int], rule: ResizeRule) -> Shortcut | None:
    """Return the kernel for these logits; None where there is no Triton to compile it."""
    try:
        from isanet_zoo.inference import decide_triton
    except ImportError:
        return None
    return functools.partial(decide_triton.decide, logits, size, rule)


def _strips(logits: Tensor, size: tuple[int, int], rule: ResizeRule) -> Shortcut | None:
    """Return the way by strips of rows; None where it saves nothing, or would round otherwise.

    With `OUTPUT_STRIDE` rows of pixels to each of logits, places between rows of logits are exact
    in floating point. So they are the same in a strip, and so is each pixel, as long as the strip
    has the rows of logits above and below.
    """
    batch, num_classes, height, _ = logits.shape
    exact = rule == "half_pixel" and size[0] == OUTPUT_STRIDE * height
    count = min(round(batch * size[0] * size[1] / STRIP), height)
    if num_classes <= 3 or not exact or count < 2:
        return None
    return functools.partial(_decide_strips, logits, size, count)


def _decide_strips(
    logits: Tensor, size: tuple[int, int], count: int, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """Decide `count` strips one by one, each resized with a rim of one row of logits."""
    batch, _, height, _ = logits.shape
    labels = logits.new_empty(batch, *size, dtype=torch.uint8)
    confidences = logits.new_empty(batch, *size) if confidence else None
    cuts = [height * i // count for i in range(count + 1)]
    for top, bottom in itertools.pairwise(cuts):
        first, last = max(top - 1, 0), min(bottom + 1, height)
        rows, rows_size = logits[:, :, first:last], (OUTPUT_STRIDE * (last - first), size[1])
        scores = _planes(rows, rows_size, "half_pixel", _contenders(rows))
        strip = decide(scores, confidence=confidence)
        here = slice(OUTPUT_STRIDE * top, OUTPUT_STRIDE * bottom)
        inside = slice(OUTPUT_STRIDE * (top - first), OUTPUT_STRIDE * (bottom - first))
        labels[:, here] = strip.labels[:, inside]
        if confidences is not None and strip.confidence is not None:
            confidences[:, here] = strip.confidence[:, inside]
    return labels, confidences


def _contenders(logits: Tensor) -> list[int]:
    """Return the classes of logits (B, K, h, w) that can be the highest of a resized pixel.

    A pixel lies within a cell of four logits per class and gets a weighted mean of them. So a class
    whose highest corner is below another's lowest is not the label of any pixel of that cell.
    """
    highest, lowest = _corners(logits, torch.maximum), _corners(logits, torch.minimum)
    rounding = 1e-5 * logits.abs().amax()  # a weighted mean may be beyond its corners by that
    # Not `>=`: where anything is not a number, all classes contend.
    beaten = highest < lowest.amax(1, keepdim=True) - rounding  # (B, K, h - 1, w - 1)
    return torch.nonzero(~beaten.transpose(0, 1).flatten(1).all(1)).flatten().tolist()


def _corners(x: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Reduce each cell of (B, K, h, w) to one of its corners, (B, K, h - 1, w - 1)."""
    if x.shape[-2] > 1:
        x = choose(x[..., :-1, :], x[..., 1:, :])
    return choose(x[..., :-1], x[..., 1:]) if x.shape[-1] > 1 else x


def filled(
    logits: Tensor,
    canvas: tuple[int, int],
    inside: tuple[int, int],
    size: tuple[int, int],
    rule: ResizeRule,
) -> Scores:
    """Resize logits (B, K, h, w) of a picture that was filled up, and cut the filling off.

    Args:
        logits: of the filled picture.
        canvas: (height, width) of the network's input.
        inside: (height, width) of the picture in its upper left corner.
        size: (height, width) of the result.
        rule: how the family resizes.
    """
    logits = logits.float().contiguous()
    batch, num_classes = logits.shape[:2]
    plane = logits.new_empty(batch, 1, *canvas)

    def at(k: int) -> Tensor:
        scores = resize(logits[:, k : k + 1], canvas, rule, out=plane)
        scores = scores[..., : inside[0], : inside[1]]
        return (scores if inside == size else resize(scores.contiguous(), size, rule))[:, 0]

    return Scores(num_classes, at, range(num_classes))


def tiled(
    tiles: Sequence[tuple[Window, Tensor]],
    canvas: tuple[int, int],
    size: tuple[int, int],
    rule: ResizeRule,
) -> Scores:
    """Join the logits of overlapping tiles, averaged where they overlap, then resize to `size`.

    Where the tiles' grids coincide, their logits are averaged before they are resized, which is the
    same but for rounding.

    Args:
        tiles: each tile's place in the canvas, and its logits (B, K, h, w).
        canvas: (height, width) of the network's whole input.
        size: (height, width) of the result.
        rule: how the family resizes.
    """
    tiles = [(window, logits.float().contiguous()) for window, logits in tiles]
    if rule == "half_pixel" and _coincide(window for window, _ in tiles):
        scores = _joined(tiles)
    else:
        scores = _added(tiles, canvas, rule)
    if canvas == size:
        return scores
    return _each(_picture(scores), lambda plane: resize(plane[:, None], size, rule)[:, 0])


def _added(
    tiles: Sequence[tuple[Window, Tensor]], canvas: tuple[int, int], rule: ResizeRule
) -> Scores:
    """Average resized tiles."""
    batch, num_classes = tiles[0][1].shape[:2]
    share = tiles[0][1].new_zeros(1, 1, *canvas)
    for window, _ in tiles:
        share[window.area] += 1
    share.reciprocal_()
    total = share.new_empty(batch, 1, *canvas)
    tile = share.new_empty(batch, 1, *tiles[0][0].size)

    def plane(k: int) -> Tensor:
        total.zero_()
        for window, logits in tiles:
            total[window.area] += resize(logits[:, k : k + 1], window.size, rule, out=tile)
        return total.mul_(share)[:, 0]

    return Scores(num_classes, plane, range(num_classes))


def _coincide(windows: Iterable[Window]) -> bool:
    """Say whether all logits lie on one grid, `OUTPUT_STRIDE` pixels apart."""
    return all(number % OUTPUT_STRIDE == 0 for window in windows for number in window)


def _joined(tiles: Sequence[tuple[Window, Tensor]]) -> Scores:
    """Average tiles whose logits lie on one grid.

    The tiles' edges cut the canvas into blocks, each covered by the same tiles all over. A block is
    averaged with a rim of one logit, for its pixels beyond the centres of its outermost logits:
    there, a tile that ends with the block repeats its last logit. All blocks with their rims are
    resized as one map; of this map, the rims are not part of the picture.
    """
    rows = _Blocks.between((window.top, window.height) for window, _ in tiles)
    columns = _Blocks.between((window.left, window.width) for window, _ in tiles)
    batch, num_classes = tiles[0][1].shape[:2]
    shape = (batch, num_classes, len(rows.logits), len(columns.logits))
    total, count = tiles[0][1].new_zeros(shape), tiles[0][1].new_zeros(shape[-2:])
    for window, logits in tiles:
        here, y = rows.within(window.top, window.height)
        there, x = columns.within(window.left, window.width)
        total[..., here, there] += _cut(logits, y.to(logits.device), x.to(logits.device))
        count[here, there] += 1
    size = (OUTPUT_STRIDE * shape[2], OUTPUT_STRIDE * shape[3])
    scores = whole(total.div_(count), size, "half_pixel")
    return scores._replace(kept=(rows.pixels.to(total.device), columns.pixels.to(total.device)))


class _Blocks(NamedTuple):
    """One direction of a canvas that is cut into blocks; each gets a rim of one logit."""

    cuts: Tensor  # (blocks + 1,) in logits
    logits: Tensor  # (n,) the canvas's logit of each row, the rims' included
    pixels: Tensor  # (canvas,) which of the 8·n resized rows are the picture

    @classmethod
    def between(cls, spans: Iterable[tuple[int, int]]) -> _Blocks:
        """Cut at the ends of all (start, length), in pixels."""
        ends = {end for start, length in spans for end in (start, start + length)}
        cuts = torch.tensor(sorted(ends)) // OUTPUT_STRIDE
        pairs = list(itertools.pairwise(cuts.tolist()))
        logits = torch.cat([torch.arange(first - 1, last + 1) for first, last in pairs])
        rims = torch.cat([torch.tensor([1, *[0] * (last - first), 1]) for first, last in pairs])
        inside = (1 - rims).repeat_interleave(OUTPUT_STRIDE)
        return cls(cuts, logits, inside.nonzero().flatten())

    def within(self, start: int, length: int) -> tuple[slice, Tensor]:
        """Return where a tile lies among the rows, and which of its logits each of them takes."""
        first, last = start // OUTPUT_STRIDE, (start + length) // OUTPUT_STRIDE
        before = int((self.cuts < first).sum()), int((self.cuts < last).sum())  # blocks
        rows = slice(first + 2 * before[0], last + 2 * before[1])
        return rows, (self.logits[rows] - first).clamp(0, last - first - 1)


def _picture(scores: Scores) -> Scores:
    """Return scores whose planes are the picture and nothing else."""
    if scores.kept is None:
        return scores
    rows, columns = scores.kept
    return _each(scores, lambda plane: _cut(plane, rows, columns))


def _each(scores: Scores, change: Callable[[Tensor], Tensor]) -> Scores:
    """Change every plane; who contends is not known afterwards."""
    return Scores(scores.num_classes, lambda k: change(scores.plane(k)), range(scores.num_classes))


def flipped(scores: Scores) -> Scores:
    """Mirror scores left to right."""
    return _each(_picture(scores), lambda plane: plane.flip(-1))


def mean(views: Sequence[Scores]) -> Scores:
    """Average the scores of several views of the same pictures."""
    if len(views) == 1:
        return views[0]
    views = [_picture(view) for view in views]

    def at(k: int) -> Tensor:
        total = views[0].plane(k).clone()
        for view in views[1:]:
            total += view.plane(k)
        return total.div_(len(views))

    num_classes = views[0].num_classes
    return Scores(num_classes, at, range(num_classes))


class Window(NamedTuple):
    """A tile's place."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def area(self) -> tuple[EllipsisType, slice, slice]:
        """What cuts the tile out of (..., H, W)."""
        rows = slice(self.top, self.top + self.height)
        return ..., rows, slice(self.left, self.left + self.width)


def windows(
    canvas: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int]
) -> list[Window]:
    """Cover a canvas with tiles, by upstream's rule: the last ones are moved back inside."""
    rows, columns = (
        [
            min(i * step, max(length - side, 0))
            for i in range(max(length - side + step - 1, 0) // step + 1)
        ]
        for length, side, step in zip(canvas, tile, stride, strict=True)
    )
    height, width = min(tile[0], canvas[0]), min(tile[1], canvas[1])
    return [Window(top, left, height, width) for top in rows for left in columns]
