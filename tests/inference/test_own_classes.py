"""Predictions with own classes, against sums of the probabilities of all classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from isanet_zoo import ISANet, OwnClasses, Predictor, Segmentation, UnknownModelError, predict
from isanet_zoo.imaging.preprocess import prepare
from isanet_zoo.inference.decide import Flipped, ResizedLogits, decide
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.network.resize import resize
from tests.conftest import TINY_NETWORK
from tests.engines.exported import counted_exports, network

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
CLASSES: OwnClasses = {"even": ["class 0", "class 2"], "one": {"classes": 1, "colour": "#010203"}}
GROUPS = [[0, 2], [1], [3, 4]]


@pytest.fixture(scope="module")
def model() -> ISANet:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = ISANet("test_resnet", num_classes=5, head=TINY_NETWORK.head).train()
        images = prepare(torch.from_numpy(IMAGE.transpose(2, 0, 1)[None].copy()), Preprocess())
        views = torch.cat([images, images.flip(-1), images.flip(-2)])
        with torch.no_grad():
            for _ in range(5):
                made(views)  # collect the statistics of the norms
            made.eval().get_parameter("head.classifier.weight").mul_(20)
            means = made.forward_logits(views).mean((0, 2, 3))
            made.get_parameter("head.classifier.bias").sub_(means)
    return made


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 4), min_size=7, max_size=7),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    views=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_decide_groups_equals_softmax_sum_and_argmax(
    groups: list[int], size: tuple[int, int], views: int, seed: int
) -> None:
    members = [[k for k in range(7) if groups[k] == group] for group in dict.fromkeys(groups)]
    generator = torch.Generator().manual_seed(seed)
    logits = [20 * torch.randn(2, 7, 4, 5, generator=generator) for _ in range(views)]
    maps = [ResizedLogits(view, size, "half_pixel") for view in logits]
    found = decide([*maps, Flipped(maps[0])], members, confidence=True, probabilities=True)
    resized = [resize(view, size, "half_pixel").double() for view in logits]
    mean = torch.stack([*resized, resized[0].flip(-1)]).mean(0)
    sums = torch.stack([mean.softmax(1)[:, group].sum(1) for group in members], 1)
    assert found.probabilities is not None
    torch.testing.assert_close(found.probabilities.double(), sums, rtol=0, atol=2e-5)
    assert found.confidence is not None
    torch.testing.assert_close(found.confidence.double(), sums.amax(1), rtol=0, atol=2e-5)
    chosen = sums.gather(1, found.labels.long()[:, None])[:, 0]
    assert (sums.amax(1) - chosen).max() < 1e-5


OPTIONS: list[dict[str, Any]] = [
    {},
    {"scales": (0.75, 1.0)},
    {"flip": True},
    {"tile": 48},
    {"tile": (41, 60), "overlap": 0.4, "flip": True},
    {"dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", [*OPTIONS, {"engine": "torch"}], ids=str)
def test_predict_own_classes_equals_summed_probabilities(
    model: ISANet, options: dict[str, Any]
) -> None:
    assert_sums(model, options)


def test_predict_own_classes_with_onnxruntime_equals_summed_probabilities(exported: Path) -> None:
    with counted_exports(exported / "graph.onnx") as exports:
        assert_sums(network(), {"engine": "onnxruntime"})
    assert len(exports) == 1


def assert_sums(model: ISANet, options: dict[str, Any]) -> None:
    """Compare own classes with sums of the probabilities of all classes."""
    plain = predict(model, [IMAGE, IMAGE[:60]], probabilities=True, **options)
    own = predict(
        model,
        [IMAGE, IMAGE[:60]],
        classes=CLASSES,
        rest="rest",
        confidence=True,
        probabilities=True,
        **options,
    )
    assert isinstance(plain, list)
    assert isinstance(own, list)
    for of_all, merged in zip(plain, own, strict=True):
        assert of_all.probabilities is not None
        sums = np.stack([of_all.probabilities[group].sum(0) for group in GROUPS])
        best = np.sort(sums, 0)
        clear = best[-1] - best[-2] > 1e-4
        assert clear.mean() > 0.9
        assert len(np.unique(merged.labels)) >= 2
        assert np.array_equal(merged.labels[clear], sums.argmax(0)[clear])
        np.testing.assert_allclose(merged.probabilities, sums, rtol=0, atol=1e-4)  # type: ignore[arg-type]
        np.testing.assert_allclose(merged.confidence, best[-1], rtol=0, atol=1e-4)  # type: ignore[arg-type]
        assert merged.label_set.names == ("even", "one", "rest")
        assert isinstance(merged.to_image(), Image.Image)


def test_decide_groups_adds_before_it_decides() -> None:
    """Two classes of 0.3 each exceed one of 0.4, although none of them is the label."""
    logits = torch.tensor([0.4, 0.3, 0.3]).log().view(1, 3, 1, 1)
    maps = [ResizedLogits(logits, (2, 2), "half_pixel")]
    assert decide(maps).labels.flatten().tolist() == [0] * 4
    assert decide(maps, [[0], [1, 2]]).labels.flatten().tolist() == [1] * 4


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_predict_identity_is_bit_equal_to_plain(model: ISANet, options: dict[str, Any]) -> None:
    mappings: list[dict[str, int]] = [{}, {f"own {k}": k for k in range(5)}]
    for classes in mappings:
        plain, own = (
            predict(model, IMAGE, classes=c, confidence=True, probabilities=True, **options)
            for c in (None, classes)
        )
        assert isinstance(plain, Segmentation)
        assert isinstance(own, Segmentation)
        assert np.array_equal(plain.labels, own.labels)
        assert np.array_equal(plain.confidence, own.confidence)  # type: ignore[arg-type]
        assert np.array_equal(plain.probabilities, own.probabilities)  # type: ignore[arg-type]


def test_predictor_unknown_class_has_a_suggestion(model: ISANet) -> None:
    with pytest.raises(UnknownModelError, match="did you mean class 0"):
        Predictor(model, classes={"a": ["class0"]})
