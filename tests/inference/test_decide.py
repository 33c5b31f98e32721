"""The bounded way to labels, against resizing everything and taking the maximum."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from isanet_zoo.inference.decide import (
    Scores,
    Window,
    _contenders,
    decide,
    flipped,
    mean,
    tiled,
    whole,
    windows,
)
from isanet_zoo.manifest.config import ResizeRule
from isanet_zoo.network.resize import resize
from tests import reference

RULES: tuple[ResizeRule, ...] = ("half_pixel", "corners", "asymmetric")


def make_logits(*shape: int, seed: int = 0, ties: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(-1, 2, shape, generator=generator).float()
    return 4 * torch.randn(shape, generator=generator)


def stack(scores: Scores) -> Tensor:
    planes = [scores.plane(k).clone() for k in range(scores.num_classes)]
    return torch.stack(planes, 1)  # (B, K, H, W)


def given_scores(scores: Tensor) -> Scores:
    num_classes = scores.shape[1]
    return Scores(num_classes, lambda k: scores[:, k], range(num_classes))


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
    rule=st.sampled_from(RULES),
    ties=st.booleans(),
    seed=st.integers(0, 999),
)
@example(shape=(2, 21, 8, 9), size=(60, 68), rule="half_pixel", ties=True, seed=0)
@example(shape=(2, 21, 8, 9), size=(60, 69), rule="half_pixel", ties=True, seed=0)
@example(shape=(1, 3, 12, 12), size=(150, 150), rule="corners", ties=True, seed=0)
@example(shape=(1, 40, 1, 1), size=(150, 150), rule="half_pixel", ties=True, seed=0)
@example(shape=(1, 256, 5, 7), size=(90, 110), rule="half_pixel", ties=False, seed=0)
def test_labels_are_those_of_the_plain_way_to_the_last_bit(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    rule: ResizeRule,
    ties: bool,
    seed: int,
) -> None:
    logits = make_logits(*shape, seed=seed, ties=ties)
    labels = decide(whole(logits, size, rule)).labels
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), resize(logits, size, rule).argmax(1))


@pytest.mark.usefixtures("_threads")
@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 12), st.integers(1, 40), side),
    size=st.tuples(st.integers(0, 1), st.integers(150, 400)),
    rule=st.sampled_from(RULES),
    strip=st.sampled_from([1, 1_000, 10_000]),
    ties=st.booleans(),
    seed=st.integers(0, 999),
)
@example(shape=(1, 5, 9, 12), size=(0, 150), rule="half_pixel", strip=1, ties=False, seed=0)
@example(shape=(2, 5, 40, 1), size=(0, 150), rule="half_pixel", strip=10_000, ties=True, seed=0)
def test_strips_are_what_they_are_strips_of_to_the_last_bit(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    rule: ResizeRule,
    strip: int,
    ties: bool,
    seed: int,
) -> None:
    size = (8 * shape[2] - size[0], size[1])
    logits = make_logits(*shape, seed=seed, ties=ties)
    at_once = decide(whole(logits, size, rule), confidence=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isanet_zoo.inference.decide.STRIP", strip)
        scores = whole(logits, size, rule)
    in_strips = decide(scores, confidence=True)
    if rule == "half_pixel" and size[0] % 8 == 0 and min(shape[1:3]) > 3:
        assert scores.shortcut is not None or strip == 10_000
    assert torch.equal(in_strips.labels, at_once.labels)
    assert in_strips.confidence is not None
    assert at_once.confidence is not None
    assert torch.equal(in_strips.confidence, at_once.confidence)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(4, 30), side, side),
    size=sizes,
    rule=st.sampled_from(RULES),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    seed=st.integers(0, 999),
)
def test_classes_that_do_not_contend_are_nobody_s_label(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    rule: ResizeRule,
    spread: float,
    seed: int,
) -> None:
    """Also where logits are all but equal, so that rounding decides."""
    levels = make_logits(1, shape[1], 1, 1, seed=seed)
    logits = levels + spread * make_logits(*shape, seed=seed + 1)
    contenders = _contenders(logits)
    assert set(resize(logits, size, rule).argmax(1).flatten().tolist()) <= set(contenders)
    if spread == 0:
        assert contenders == [int(levels.argmax())]


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_rule_no_class_out(strange: float) -> None:
    logits = torch.arange(5.0).view(1, 5, 1, 1).repeat(1, 1, 3, 3)
    assert _contenders(logits) == [4]
    logits[0, 2, 1, 1] = strange
    assert _contenders(logits) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [(40, 50), (90, 110)])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_confidence_and_probabilities_are_softmax(size: tuple[int, int], shift: float) -> None:
    logits = make_logits(2, 21, 8, 9) + shift
    expected = resize(logits, size, "half_pixel").double().softmax(1)
    decision = decide(whole(logits, size, "half_pixel"), confidence=True, probabilities=True)
    assert decision.probabilities is not None
    assert decision.confidence is not None
    torch.testing.assert_close(decision.probabilities.double(), expected, rtol=0, atol=5e-4)
    torch.testing.assert_close(decision.confidence.double(), expected.amax(1), rtol=0, atol=5e-4)
    torch.testing.assert_close(decision.probabilities.sum(1), torch.ones(2, *size))
    assert torch.equal(decision.confidence, decision.probabilities.amax(1))


def test_only_what_is_asked_for_is_given() -> None:
    scores = whole(make_logits(1, 3, 4, 4), (9, 9), "half_pixel")
    given = [
        tuple(part is not None for part in decide(scores, confidence=c, probabilities=p))
        for c, p in ((False, False), (True, False), (False, True))
    ]
    assert given == [(True, False, False), (True, True, False), (True, False, True)]


def test_of_equal_scores_the_first_class_wins() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    decision = decide(given_scores(scores.view(1, 5, 1, 1).expand(1, 5, 2, 2)))
    assert decision.labels.tolist() == [[[1, 1], [1, 1]]]


def test_the_last_of_256_classes_can_win() -> None:
    assert decide(given_scores(torch.arange(256.0).view(1, 256, 1, 1))).labels.item() == 255


@pytest.mark.parametrize("size", [(60, 60), (100, 140)])
@pytest.mark.parametrize("ties", [False, True])
def test_memory_format_and_type_of_logits_do_not_matter(size: tuple[int, int], ties: bool) -> None:
    logits = make_logits(2, 21, 12, 17, ties=ties).bfloat16()

    def labels(logits: Tensor) -> Tensor:
        return decide(whole(logits, size, "half_pixel")).labels

    expected = labels(logits.float())
    assert torch.equal(labels(logits), expected)
    assert torch.equal(labels(logits.float().to(memory_format=torch.channels_last)), expected)
    assert torch.equal(labels(logits.to(memory_format=torch.channels_last)), expected)


@settings(max_examples=60, deadline=None)
@given(
    canvas=st.tuples(st.integers(3, 15), st.integers(3, 15)),
    tile=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid=st.sampled_from([8, 7]),
    rule=st.sampled_from(RULES),
    enlarged=st.sampled_from([1, 1.3]),
    level=st.sampled_from([0, 20]),
    seed=st.integers(0, 99),
)
@example((12, 15), (8, 6), (5, 4), 8, "half_pixel", 1, 0, 0)
@example((12, 15), (8, 6), (5, 4), 8, "half_pixel", 1.3, 20, 0)
@example((12, 15), (8, 6), (5, 4), 7, "corners", 1, 0, 0)
def test_tiles_are_averaged_where_they_overlap(
    canvas: tuple[int, int],
    tile: tuple[int, int],
    stride: tuple[int, int],
    grid: int,
    rule: ResizeRule,
    enlarged: float,
    level: int,
    seed: int,
) -> None:
    """On one grid, which joins them before they are resized, and on others."""
    canvas = (grid * canvas[0], grid * canvas[1])
    size = (round(enlarged * canvas[0]), round(enlarged * canvas[1]))
    step = (grid * min(stride[0], tile[0]), grid * min(stride[1], tile[1]))
    places = windows(canvas, (grid * tile[0], grid * tile[1]), step)
    levels = level * make_logits(1, 5, 1, 1, seed=seed)  # so that not all classes contend
    tiles = [
        (
            place,
            levels + make_logits(2, 5, -(-place.height // 8), -(-place.width // 8), seed=number),
        )
        for number, place in enumerate(places)
    ]
    total = torch.zeros(2, 5, *canvas)
    count = torch.zeros(canvas)
    for (top, left, height, width), logits in tiles:
        full = resize(logits, (height, width), rule)
        total[:, :, top : top + height, left : left + width] += full
        count[top : top + height, left : left + width] += 1
    assert count.min() >= 1
    expected = total / count if canvas == size else resize(total / count, size, rule)
    scores = tiled(tiles, canvas, size, rule)
    decision = decide(scores, confidence=True, probabilities=True)
    assert decision.probabilities is not None
    torch.testing.assert_close(decision.probabilities, expected.softmax(1), rtol=0, atol=1e-4)
    best, second = expected.topk(2, 1).values.unbind(1)
    clear = best - second > 1e-3
    assert torch.equal(decision.labels[clear].long(), expected.argmax(1)[clear])
    mirrored = stack(flipped(scores))
    torch.testing.assert_close(mirrored, expected.flip(-1), rtol=1e-5, atol=1e-4)
    both = stack(mean([scores, given_scores(expected)]))
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-4)


def test_a_class_that_wins_nowhere_can_win_once_resized_again() -> None:
    """Where two classes cross steeply, their means fall below what each of them was above."""
    logits = torch.zeros(1, 4, 8, 24)
    logits[:, 0], logits[:, 1], logits[:, 3] = 1, 1, -1
    logits[:, 1, :, :12] = logits[:, 0, :, 13:] = -1000
    tiles = [(Window(0, 0, 64, 192), logits)]
    labels = decide(tiled(tiles, (64, 192), (64, 192), "half_pixel")).labels
    assert set(labels.flatten().tolist()) == {0, 1}
    labels = decide(tiled(tiles, (64, 192), (64, 3 * 192), "half_pixel")).labels
    assert labels[0, 0, 298:302].tolist() == [0, 2, 2, 1]


def test_one_tile_over_everything_only_resizes_twice() -> None:
    logits = make_logits(1, 4, 5, 6)
    scores = stack(tiled([(Window(0, 0, 40, 48), logits)], (40, 48), (70, 90), "corners"))
    expected = resize(resize(logits, (40, 48), "corners"), (70, 90), "corners")
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_mirrored_planes_are_turned_back() -> None:
    scores = make_logits(2, 3, 5, 7)
    assert torch.equal(stack(flipped(given_scores(scores))), scores.flip(-1))


@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_are_averaged_and_left_alone(views: int) -> None:
    scores = [make_logits(2, 3, 5, 7, seed=view) for view in range(views)]
    copies = [view.clone() for view in scores]
    expected = torch.stack(scores).double().mean(0).float()
    averaged = mean([given_scores(view) for view in scores])
    torch.testing.assert_close(stack(averaged), expected)
    decide(averaged, confidence=True)
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

from isanet_zoo.inference.decide import decide, whole


def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) / 2**20


logits = torch.randn(1, 150, 64, 86)
decide(whole(logits, (200, 300), "half_pixel"))
start = peak()
decide(whole(logits, (2160, 3840), "half_pixel"))
bounded = peak()
F.interpolate(logits, (540, 960), mode="bilinear").argmax(1)
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
