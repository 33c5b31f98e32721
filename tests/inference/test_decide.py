"""Labels of `decide`, against resizing all classes and taking the maximum."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from isanet_zoo.engines.fast_path import FastPath
from isanet_zoo.inference import decide as decide_module
from isanet_zoo.inference.decide import (
    Canvas,
    Decision,
    Flipped,
    ResizedLogits,
    decide,
    find_candidates,
)
from isanet_zoo.manifest.config import ResizeRule
from isanet_zoo.network.resize import resize
from tests import processes

RULES: tuple[ResizeRule, ...] = ("half_pixel", "corners", "asymmetric")


def make_logits(*shape: int, seed: int = 0, ties: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(-1, 2, shape, generator=generator).float()
    return 4 * torch.randn(shape, generator=generator)


class Given:
    """Scores (B, K, H, W) that exist already."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.num_classes = scores.shape[1]

    def of_class(self, k: int) -> Tensor:
        return self.scores[:, k]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


side = st.integers(1, 12)
sizes = st.tuples(st.integers(1, 150), st.integers(1, 150))


@pytest.mark.usefixtures("_threads")
@settings(max_examples=100, deadline=None)
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
def test_labels_equal_those_of_eager_resizing(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    rule: ResizeRule,
    ties: bool,
    seed: int,
) -> None:
    logits = make_logits(*shape, seed=seed, ties=ties)
    labels = decide([ResizedLogits(logits, size, rule)]).labels
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), resize(logits, size, rule).argmax(1))


@settings(max_examples=60, deadline=None)
@given(
    canvas=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    inside=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    size=st.none() | sizes,
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 999),
)
@example(canvas=(20, 20), inside=(0.5, 1.0), size=None, rule="asymmetric", seed=0)
@example(canvas=(20, 20), inside=(0.5, 1.0), size=(99, 150), rule="half_pixel", seed=0)
def test_labels_on_a_canvas_are_those_of_its_cropped_part(
    canvas: tuple[int, int],
    inside: tuple[float, float],
    size: tuple[int, int] | None,
    rule: ResizeRule,
    seed: int,
) -> None:
    logits = make_logits(2, 5, *canvas, seed=seed)
    whole = (8 * canvas[0], 8 * canvas[1])
    height, width = (
        max(int(fraction * length), 1) for fraction, length in zip(inside, whole, strict=True)
    )
    expected = resize(logits, whole, rule)[..., :height, :width]
    if size:
        expected = resize(expected.contiguous(), size, rule)
    place = Canvas(whole, torch.arange(height), torch.arange(width))
    scores = ResizedLogits(logits, size or (height, width), rule, place)
    decision = decide([scores], confidence=True, probabilities=True)
    assert decision.probabilities is not None
    assert decision.confidence is not None
    softmax = expected.softmax(1)
    torch.testing.assert_close(decision.probabilities, softmax, rtol=0, atol=1e-4)
    torch.testing.assert_close(decision.confidence, softmax.amax(1), rtol=0, atol=1e-4)
    best, second = expected.topk(2, 1).values.unbind(1)
    clear = best - second > 1e-3
    assert torch.equal(decision.labels[clear].long(), expected.argmax(1)[clear])


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(4, 30), side, side),
    size=sizes,
    rule=st.sampled_from(RULES),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    seed=st.integers(0, 999),
)
def test_candidates_include_every_label(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    rule: ResizeRule,
    spread: float,
    seed: int,
) -> None:
    """With a small spread, logits are nearly equal and rounding decides."""
    levels = make_logits(1, shape[1], 1, 1, seed=seed)
    logits = levels + spread * make_logits(*shape, seed=seed + 1)
    candidates = find_candidates(logits)
    assert set(resize(logits, size, rule).argmax(1).flatten().tolist()) <= set(candidates)
    if spread == 0:
        assert (levels.max() - levels.flatten()[candidates]).max() < 1e-3


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
def test_candidates_are_all_classes_if_a_logit_is_not_finite(strange: float) -> None:
    logits = torch.arange(5.0).view(1, 5, 1, 1).repeat(1, 1, 3, 3)
    assert find_candidates(logits) == [4]
    logits[0, 2, 1, 1] = strange
    assert find_candidates(logits) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [(40, 50), (90, 110)])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_confidence_and_probabilities_are_softmax(size: tuple[int, int], shift: float) -> None:
    logits = make_logits(2, 21, 8, 9) + shift
    expected = resize(logits, size, "half_pixel").double().softmax(1)
    decision = decide(
        [ResizedLogits(logits, size, "half_pixel")], confidence=True, probabilities=True
    )
    assert decision.probabilities is not None
    assert decision.confidence is not None
    torch.testing.assert_close(decision.probabilities.double(), expected, rtol=0, atol=5e-4)
    torch.testing.assert_close(decision.confidence.double(), expected.amax(1), rtol=0, atol=5e-4)
    torch.testing.assert_close(decision.probabilities.sum(1), torch.ones(2, *size))
    assert torch.equal(decision.confidence, decision.probabilities.amax(1))


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
def test_decide_returns_only_what_is_requested(confidence: bool, probabilities: bool) -> None:
    scores = ResizedLogits(make_logits(1, 3, 4, 4), (9, 9), "half_pixel")
    decision = decide([scores], confidence=confidence, probabilities=probabilities)
    assert (decision.confidence is not None) == confidence
    assert (decision.probabilities is not None) == probabilities


def test_first_class_of_equal_scores_is_the_label() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    decision = decide([Given(scores.view(1, 5, 1, 1).expand(1, 5, 2, 2))])
    assert decision.labels.tolist() == [[[1, 1], [1, 1]]]


def test_last_of_256_classes_can_be_the_label() -> None:
    assert decide([Given(torch.arange(256.0).view(1, 256, 1, 1))]).labels.item() == 255


@pytest.mark.parametrize("size", [(60, 60), (100, 140)])
@pytest.mark.parametrize("ties", [False, True])
def test_labels_do_not_depend_on_layout_and_type_of_logits(
    size: tuple[int, int], ties: bool
) -> None:
    logits = make_logits(2, 21, 12, 17, ties=ties).bfloat16()

    def labels(logits: Tensor) -> Tensor:
        return decide([ResizedLogits(logits, size, "half_pixel")]).labels

    expected = labels(logits.float())
    assert torch.equal(labels(logits), expected)
    assert torch.equal(labels(logits.float().to(memory_format=torch.channels_last)), expected)
    assert torch.equal(labels(logits.to(memory_format=torch.channels_last)), expected)


def test_flipped_reverses_columns() -> None:
    scores = make_logits(2, 3, 5, 7)
    for k in range(3):
        assert torch.equal(Flipped(Given(scores)).of_class(k), scores[:, k].flip(-1))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_views_are_averaged_and_not_changed(count: int) -> None:
    views = [make_logits(2, 3, 5, 7, seed=seed) for seed in range(count)]
    copies = [view.clone() for view in views]
    mean = torch.stack(views).double().mean(0)
    decision = decide([Given(view) for view in views], confidence=True, probabilities=True)
    assert torch.equal(decision.labels.long(), mean.argmax(1))
    assert decision.probabilities is not None
    torch.testing.assert_close(decision.probabilities.double(), mean.softmax(1))
    assert all(torch.equal(view, copy) for view, copy in zip(views, copies, strict=True))


def test_decision_map_applies_to_all_tensors_but_none() -> None:
    labels, confidence = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    mapped = Decision(labels, confidence, None).map(lambda x: x + 1)
    assert torch.equal(mapped.labels, labels + 1)
    assert mapped.confidence is not None
    assert torch.equal(mapped.confidence, confidence + 1)
    assert mapped.probabilities is None


def peak() -> float:
    """Return the largest memory of this process so far, in GiB."""
    # Not `resource.getrusage`: its peak includes that of the parent process.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return int(found[1]) / 2**20


def measure_peaks() -> tuple[float, float]:
    """Return how much the peak rises when 2 megapixels are decided, and in eager resizing."""
    logits = make_logits(1, 150, 64, 86)
    decide([ResizedLogits(logits, (200, 300), "half_pixel")])
    start = peak()
    decide([ResizedLogits(logits, (1080, 1920), "half_pixel")])
    bounded = peak()
    resize(logits, (540, 960), "half_pixel").argmax(1)
    return bounded - start, peak() - start


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_of_150_classes_at_2_megapixels() -> None:
    bounded, eager = processes.call(measure_peaks)
    assert bounded < 0.15
    assert eager > 0.28  # eager resizing to a quarter of the pixels: the measurement works


class Kernel:
    """Decides like the GPU kernel, with errors."""

    def __init__(self, *, wrong: int = 0, error: float = 0.0, raises: Exception | None = None):
        self.wrong, self.error, self.raises, self.calls = wrong, error, raises, 0

    def decide(
        self, logits: Tensor, size: tuple[int, int], rule: ResizeRule, confidence: bool
    ) -> tuple[Tensor, Tensor | None]:
        self.calls += 1
        if self.raises:
            raise self.raises
        scores = resize(logits, size, rule)
        labels = scores.argmax(1).to(torch.uint8)
        labels.view(-1)[: self.wrong] += 1
        return labels, scores.softmax(1).amax(1) + self.error if confidence else None


@pytest.fixture
def use_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    """Make `decide` use a kernel, which has not been compared yet."""

    def use(**errors: Any) -> Kernel:
        kernel = Kernel(**errors)
        monkeypatch.setattr(decide_module, "_gpu_kernel", lambda logits: kernel)
        monkeypatch.setattr(decide_module, "_fused", FastPath("The kernel", decide_module._compare))
        return kernel

    return use


def decide_logits(logits: Tensor) -> Decision:
    return decide([ResizedLogits(logits, (40, 50), "half_pixel")], confidence=True)


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ({"wrong": 5}, "5 of 2000 labels differ"),
        ({"error": 0.01}, "confidence differs"),
        ({"error": float("nan")}, "confidence differs"),
        ({"raises": RuntimeError("PTX too new")}, "RuntimeError: PTX too new"),
    ],
)
def test_failing_kernel_is_replaced_by_the_plain_operations(
    errors: dict[str, Any],
    reason: str,
    use_kernel: Callable[..., Kernel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel, logits = use_kernel(**errors), make_logits(1, 6, 9, 11)
    labels = resize(logits, (40, 50), "half_pixel").argmax(1)
    for _ in range(3):
        assert torch.equal(decide_logits(logits).labels.long(), labels)
    assert kernel.calls == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(f"The kernel failed ({reason}). ")


@pytest.mark.parametrize("errors", [{}, {"wrong": 2}, {"error": 5e-4}])
def test_kernel_within_the_tolerance_is_compared_once_for_each_size(
    errors: dict[str, Any], use_kernel: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = use_kernel(**errors)
    compared: list[tuple[int, ...]] = []
    plain = decide_module.find_candidates

    def record(logits: Tensor) -> list[int]:
        compared.append(logits.shape)
        return plain(logits)

    monkeypatch.setattr(decide_module, "find_candidates", record)
    for shape in ((1, 6, 9, 11), (1, 6, 9, 11), (2, 6, 9, 11), (1, 6, 9, 11)):
        decide_logits(make_logits(*shape))
    assert compared == [(1, 6, 9, 11), (2, 6, 9, 11)]
    assert kernel.calls == 4
