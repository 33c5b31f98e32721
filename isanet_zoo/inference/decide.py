"""Labels at an image's size from logits at 1/8 of it, in bounded memory.

Resizing K classes to a large image before taking the maximum needs K floats per pixel (4.6 GiB for
150 classes at 2160 × 3840). Classes are independent until the maximum, so each of them is resized
separately and a running maximum is kept: the same arithmetic and the same labels, with three maps
in memory. Most classes need not be resized, as they cannot be the label of any pixel.

Letters in shapes: B images of one size, K classes, H W image, h w logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from isanet_zoo.engines.fast_path import FastPath
from isanet_zoo.manifest.config import ResizeRule
from isanet_zoo.network.resize import resize

CHUNK = 2**20  # logits
TOLERANCE = 1e-3  # of the pixels, where classes nearly tie; and of the confidence


class Decision(NamedTuple):
    """Labels of B images of one size, and their probabilities if requested."""

    labels: Tensor  # (B, H, W) uint8
    confidence: Tensor | None  # (B, H, W) float32: the label's probability
    probabilities: Tensor | None  # (B, K, H, W) float32

    def map(self, function: Callable[[Tensor], Tensor]) -> Decision:
        """Apply a function to each tensor."""
        confidence, probabilities = (None if x is None else function(x) for x in self[1:])
        return Decision(function(self.labels), confidence, probabilities)


class ScoreMaps(Protocol):
    """Scores of K classes at the images' size, computed one class at a time."""

    num_classes: int  # K

    def of_class(self, k: int) -> Tensor:
        """Return the scores of one class, (B, H, W) float32, valid until the next call."""


class Canvas(NamedTuple):
    """A map of which some rows and columns show the image, and the others nothing."""

    size: tuple[int, int]
    rows: Tensor
    columns: Tensor

    def crop(self, x: Tensor) -> Tensor:
        """Return the part of (..., *size) that shows the image."""
        return x.index_select(-2, self.rows).index_select(-1, self.columns)


class ResizedLogits:
    """Logits, resized to the size of the images.

    Args:
        logits: (B, K, h, w).
        size: (H, W) of the images.
        rule: how the family resizes.
        canvas: resize to this first and crop it; if the size still differs, resize again.
    """

    def __init__(
        self, logits: Tensor, size: tuple[int, int], rule: ResizeRule, canvas: Canvas | None = None
    ) -> None:
        self.logits = logits.float().contiguous()  # bfloat16 logits would be ties after resizing
        self.size, self.rule, self.canvas = size, rule, canvas
        self.num_classes = logits.shape[1]
        self.is_resized_once = canvas is None or (len(canvas.rows), len(canvas.columns)) == size
        self._first_size = canvas.size if canvas else size

    def of_class(self, k: int) -> Tensor:
        """Return the scores of one class, (B, H, W) float32, valid until the next call."""
        scores = self._all_classes[:, k] if self._is_small else self._one_class(k)
        if self.canvas:
            scores = self.canvas.crop(scores)
        if not self.is_resized_once:
            scores = resize(scores[:, None], self.size, self.rule)[:, 0]
        return scores

    @property
    def _is_small(self) -> bool:
        """Whether torch's CPU kernels process all classes together, with another rounding."""
        one_logit = self.logits.shape[-2:] == (1, 1)
        return self.num_classes <= 3 or sum(self._first_size) <= 128 or one_logit

    @functools.cached_property
    def _all_classes(self) -> Tensor:
        return resize(self.logits, self._first_size, self.rule)

    @functools.cached_property
    def _buffer(self) -> Tensor:
        return self.logits.new_empty(len(self.logits), 1, *self._first_size)

    def _one_class(self, k: int) -> Tensor:
        logits = self.logits[:, k : k + 1]
        return resize(logits, self._first_size, self.rule, out=self._buffer)[:, 0]


class Flipped:
    """Scores, flipped left to right."""

    def __init__(self, scores: ScoreMaps) -> None:
        self.scores = scores
        self.num_classes = scores.num_classes

    def of_class(self, k: int) -> Tensor:
        """Return the scores of one class, (B, H, W) float32, valid until the next call."""
        return self.scores.of_class(k).flip(-1)


class Merged:
    """Mean scores of groups of classes, whose softmax is the sum of the classes' probabilities.

    The score of a group is log(sum(exp(score of a class))), that of a single class is unchanged.
    """

    def __init__(self, views: Sequence[ScoreMaps], groups: Sequence[Sequence[int]]) -> None:
        self.views, self.groups = views, groups
        self.num_classes = len(groups)

    def of_class(self, k: int) -> Tensor:
        """Return the scores of one group, (B, H, W) float32, valid until the next call."""
        first, *others = self.groups[k]
        total = _mean_of_class(self.views, first)
        if others:
            total = total.clone()
        for other in others:
            torch.logaddexp(total, _mean_of_class(self.views, other), out=total)
        return total


def decide(
    views: Sequence[ScoreMaps],
    groups: Sequence[Sequence[int]] | None = None,
    *,
    confidence: bool = False,
    probabilities: bool = False,
) -> Decision:
    """Return the class with the highest mean score of each pixel; of equal ones the first.

    Args:
        views: the scores of each view of the images, of at most 256 classes.
        groups: decide between these groups of classes, by the sums of their probabilities; None for
            the classes themselves, like groups that are all classes in order.
        confidence: also return the softmax probability of the label.
        probabilities: also return all softmax probabilities (K floats per pixel).
    """
    if groups is not None and [*groups] != [(k,) for k in range(views[0].num_classes)]:
        return decide([Merged(views, groups)], confidence=confidence, probabilities=probabilities)
    scores, *others = views
    if others or not isinstance(scores, ResizedLogits) or not scores.is_resized_once:
        return _decide_by_class(views, range(scores.num_classes), confidence, probabilities)
    if scores.canvas:  # cropping labels is less work than cropping every class
        whole = ResizedLogits(scores.logits, scores.canvas.size, scores.rule)
        decision = decide([whole], confidence=confidence, probabilities=probabilities)
        return decision.map(scores.canvas.crop)
    if not probabilities and (kernel := _gpu_kernel(scores.logits)):
        return _decide_fused(kernel, scores, confidence)
    return _decide_by_class(views, find_candidates(scores.logits), confidence, probabilities)


def _decide_fused(kernel: ModuleType, scores: ResizedLogits, confidence: bool) -> Decision:
    """Run the GPU kernel, and once for each size the plain operations to compare with."""
    logits, size, rule = scores.logits, scores.size, scores.rule

    def run() -> Decision:
        labels, of_labels = kernel.decide(logits, size, rule, confidence)
        return Decision(labels, of_labels, None)

    return _fused(
        (logits.device, logits.shape, size, rule, confidence),
        run,
        lambda: _decide_by_class([scores], find_candidates(logits), confidence, False),
    )


def _compare(found: Decision, expected: Decision) -> str:
    """Describe how decisions differ; empty within the tolerance."""
    pixels, differ = found.labels.numel(), int((found.labels != expected.labels).sum())
    if differ > max(TOLERANCE * pixels, 1):
        return f"{differ} of {pixels} labels differ"
    if found.confidence is None or expected.confidence is None:
        return ""
    close = torch.isclose(
        found.confidence, expected.confidence, rtol=0, atol=TOLERANCE, equal_nan=True
    )
    return "" if close.all() else "confidence differs"


_fused = FastPath("The fused kernel for labels", _compare)


def _gpu_kernel(logits: Tensor) -> ModuleType | None:
    """Return the module with the GPU kernel; None for other devices, or without Triton."""
    if not logits.is_cuda:
        return None
    try:
        from isanet_zoo.inference import decide_triton
    except ImportError:
        return None
    return decide_triton


def _decide_by_class(
    views: Sequence[ScoreMaps], candidates: Sequence[int], confidence: bool, probabilities: bool
) -> Decision:
    """Compare classes one by one; `candidates` are in order and include every possible label."""
    first, *others = candidates
    best = _mean_of_class(views, first).clone()  # (B, H, W)
    labels = torch.full_like(best, first, dtype=torch.uint8)
    higher = torch.empty_like(best, dtype=torch.bool)
    label = higher.view(torch.uint8)  # the same memory
    for k in others:
        scores = _mean_of_class(views, k)
        torch.gt(scores, best, out=higher)
        # `labels[higher] = k`, several times faster: labels so far are below k.
        torch.maximum(labels, label.mul_(k), out=labels)
        torch.maximum(best, scores, out=best)
    if not confidence and not probabilities:
        return Decision(labels, None, None)

    # Softmax in two passes: shifted by the maximum, so that no exponential overflows.
    total = torch.zeros_like(best)
    softmax = (
        best.new_empty(len(best), views[0].num_classes, *best.shape[1:]) if probabilities else None
    )
    for k in range(views[0].num_classes):
        exponential = _mean_of_class(views, k).sub(best).exp_()
        total += exponential
        if softmax is not None:
            softmax[:, k] = exponential
    return Decision(
        labels,
        total.reciprocal() if confidence else None,  # the label's own exponential is exp(0) = 1
        None if softmax is None else softmax.div_(total[:, None]),
    )


def _mean_of_class(views: Sequence[ScoreMaps], k: int) -> Tensor:
    """Return the mean scores of a class over all views, (B, H, W), valid until the next call."""
    first, *others = views
    if not others:
        return first.of_class(k)
    total = first.of_class(k).clone()
    for view in others:
        total += view.of_class(k)
    return total.div_(len(views))


def find_candidates(logits: Tensor) -> list[int]:
    """Return the classes of logits (B, K, h, w) that can be the highest at a resized pixel.

    A pixel is within a cell of four logits of each class, and its score is a weighted mean of them.
    So a class whose highest corner is below another's lowest is not the label of any pixel there.
    """
    # A few classes at a time, so that temporary tensors are small.
    chunks = torch.split(logits, max(CHUNK // logits[:, 0].numel(), 1), 1)
    lowest = torch.stack([_corners(chunk, torch.minimum).amax(1) for chunk in chunks]).amax(0)
    # A weighted mean may be beyond its corners, by rounding.
    rounding = 1e-5 * torch.maximum(logits.amax(), -logits.amin())
    bound = (lowest - rounding)[:, None]  # (B, 1, h - 1, w - 1)
    # Not `>=`: where anything is not a number, all classes are candidates.
    beaten = torch.cat([(_corners(c, torch.maximum) < bound).flatten(2).all(2) for c in chunks], 1)
    return torch.nonzero(~beaten.all(0)).flatten().tolist()


def _corners(x: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Reduce each cell of (B, K, h, w) to one of its corners, (B, K, h - 1, w - 1)."""
    if x.shape[-2] > 1:
        x = choose(x[..., :-1, :], x[..., 1:, :])
    return choose(x[..., :-1], x[..., 1:]) if x.shape[-1] > 1 else x
