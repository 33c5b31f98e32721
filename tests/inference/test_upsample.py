"""The bounded way to labels, against resizing everything and taking the maximum."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from isanet_zoo.inference.upsample import (
    Plane,
    Resize,
    Window,
    decide,
    flipped,
    mean,
    tiled,
    whole,
    windows,
)
from tests import reference


def resizer(align_corners: bool) -> Resize:
    def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)

    return resize


def make_logits(*shape: int, seed: int = 0, ties: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(-1, 2, shape, generator=generator).float()
    return 4 * torch.randn(shape, generator=generator)


def stack(plane: Plane, num_classes: int) -> Tensor:
    return torch.stack([plane(k) for k in range(num_classes)], 1)  # (B, K, H, W)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


side = st.integers(1, 12)
sizes = st.tuples(st.integers(1, 150), st.integers(1, 150))


@pytest.mark.usefixtures("_threads")
@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), side, side),
    size=sizes,
    align_corners=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 999),
)
@example(shape=(2, 21, 8, 9), size=(60, 68), align_corners=False, ties=True, seed=0)
@example(shape=(2, 21, 8, 9), size=(60, 69), align_corners=False, ties=True, seed=0)
@example(shape=(1, 3, 12, 12), size=(150, 150), align_corners=True, ties=True, seed=0)
@example(shape=(1, 40, 1, 1), size=(150, 150), align_corners=False, ties=True, seed=0)
@example(shape=(1, 256, 5, 7), size=(90, 110), align_corners=False, ties=False, seed=0)
def test_labels_are_those_of_the_plain_way_to_the_last_bit(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    align_corners: bool,
    ties: bool,
    seed: int,
) -> None:
    logits, resize = make_logits(*shape, seed=seed, ties=ties), resizer(align_corners)
    labels = decide(whole(logits, size, resize), shape[1]).labels
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), resize(logits, size).argmax(1))


@pytest.mark.parametrize("size", [(40, 50), (90, 110)])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_confidence_and_probabilities_are_softmax(size: tuple[int, int], shift: float) -> None:
    logits = make_logits(2, 21, 8, 9) + shift
    expected = resizer(False)(logits, size).double().softmax(1)
    decision = decide(whole(logits, size, resizer(False)), 21, confidence=True, probabilities=True)
    assert decision.probabilities is not None
    assert decision.confidence is not None
    torch.testing.assert_close(decision.probabilities.double(), expected, rtol=0, atol=5e-4)
    torch.testing.assert_close(decision.confidence.double(), expected.amax(1), rtol=0, atol=5e-4)
    torch.testing.assert_close(decision.probabilities.sum(1), torch.ones(2, *size))
    assert torch.equal(decision.confidence, decision.probabilities.amax(1))


def test_only_what_is_asked_for_is_given() -> None:
    plane = whole(make_logits(1, 3, 4, 4), (9, 9), resizer(False))
    given = [
        tuple(part is not None for part in decide(plane, 3, confidence=c, probabilities=p))
        for c, p in ((False, False), (True, False), (False, True))
    ]
    assert given == [(True, False, False), (True, True, False), (True, False, True)]


def test_of_equal_scores_the_first_class_wins() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    decision = decide(lambda k: scores[k].expand(1, 2, 2), 5)
    assert decision.labels.tolist() == [[[1, 1], [1, 1]]]


def test_the_last_of_256_classes_can_win() -> None:
    assert decide(lambda k: torch.full((1, 1, 1), float(k)), 256).labels.item() == 255


@pytest.mark.parametrize("size", [(60, 60), (100, 140)])
@pytest.mark.parametrize("ties", [False, True])
def test_memory_format_and_type_of_logits_do_not_matter(size: tuple[int, int], ties: bool) -> None:
    logits = make_logits(2, 21, 12, 17, ties=ties).bfloat16()

    def labels(logits: Tensor) -> Tensor:
        return decide(whole(logits, size, resizer(False)), 21).labels

    expected = labels(logits.float())
    assert torch.equal(labels(logits), expected)
    assert torch.equal(labels(logits.float().to(memory_format=torch.channels_last)), expected)
    assert torch.equal(labels(logits.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_tiles_are_averaged_where_they_overlap(align_corners: bool) -> None:
    canvas, size, resize = (96, 120), (150, 190), resizer(align_corners)
    places = windows(canvas, (64, 48), (40, 30))
    tiles = [(place, make_logits(2, 9, 8, 6, seed=number)) for number, place in enumerate(places)]
    total = torch.zeros(2, 9, *canvas)
    count = torch.zeros(canvas)
    for (top, left, height, width), logits in tiles:
        total[:, :, top : top + height, left : left + width] += resize(logits, (height, width))
        count[top : top + height, left : left + width] += 1
    assert count.min() >= 1
    assert count.max() >= 4
    expected = resize(total / count, size)
    scores = stack(tiled(tiles, canvas, size, resize), 9)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_one_tile_over_everything_only_resizes_twice() -> None:
    logits, resize = make_logits(1, 4, 5, 6), resizer(False)
    scores = stack(tiled([(Window(0, 0, 40, 48), logits)], (40, 48), (70, 90), resize), 4)
    expected = resize(resize(logits, (40, 48)), (70, 90))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_mirrored_planes_are_turned_back() -> None:
    scores = make_logits(2, 3, 5, 7)
    assert torch.equal(stack(flipped(lambda k: scores[:, k]), 3), scores.flip(-1))


@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_are_averaged_and_left_alone(views: int) -> None:
    scores = [make_logits(2, 3, 5, 7, seed=view) for view in range(views)]
    copies = [view.clone() for view in scores]
    planes: list[Plane] = [lambda k, view=view: view[:, k] for view in scores]  # type: ignore[misc]
    expected = torch.stack(scores).double().mean(0).float()
    averaged = mean(planes)
    torch.testing.assert_close(stack(averaged, 3), expected)
    decide(averaged, 3, confidence=True)
    assert all(torch.equal(view, copy) for view, copy in zip(scores, copies, strict=True))


def upstream_windows(
    canvas: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int]
) -> list[Window]:
    height, width = canvas
    rows = max(height - tile[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - tile[1] + stride[1] - 1, 0) // stride[1] + 1
    found = []
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride[0] + tile[0], height)
            right = min(column * stride[1] + tile[1], width)
            top, left = max(bottom - tile[0], 0), max(right - tile[1], 0)
            found.append(Window(top, left, bottom - top, right - left))
    return found


length = st.integers(1, 60)


@given(st.tuples(length, length), st.tuples(length, length), st.data())
def test_windows_are_upstreams_and_cover_everything(
    canvas: tuple[int, int], tile: tuple[int, int], data: st.DataObject
) -> None:
    stride = tuple(data.draw(st.integers(1, side)) for side in tile)
    places = windows(canvas, tile, (stride[0], stride[1]))
    assert places == upstream_windows(canvas, tile, (stride[0], stride[1]))
    covered = torch.zeros(canvas, dtype=torch.bool)
    for place in places:
        assert covered[place.area].shape == place.size
        assert place.size == (min(tile[0], canvas[0]), min(tile[1], canvas[1]))
        covered[place.area] = True
    assert covered.all()


PEAK_SCRIPT = """
import re
from pathlib import Path

import torch
import torch.nn.functional as F

from isanet_zoo.inference.upsample import decide, whole


def resize(logits, size):
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) / 2**20


logits = torch.randn(1, 150, 64, 86)
decide(whole(logits, (200, 300), resize), 150)
start = peak()
decide(whole(logits, (2160, 3840), resize), 150)
bounded = peak()
resize(logits, (540, 960)).argmax(1)
print(bounded - start, peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_150_classes_of_an_8_megapixel_picture_need_little_memory() -> None:
    # Not `resource.getrusage`: its peak includes that of the process which starts the new one.
    command = [sys.executable, "-c", PEAK_SCRIPT]
    root = Path(reference.__file__).parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    bounded, plain = map(float, result.stdout.split())
    assert bounded < 0.6
    assert plain > 0.28  # the plain way on 1/16 of the pixels: the meter works
