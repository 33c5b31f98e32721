"""Tests of exported files in place of a network, and of the onnxruntime engine in `Predictor`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isanet_zoo import InputError, Predictor, Segmentation, evaluate, open_dataset, predict
from tests.engines.exported import SIZE, counted_exports, network
from tests.learning import tiny

LABELS_ONLY = ({"scales": (1.0, 1.5)}, {"flip": True}, {"tile": 64}, {"confidence": True})


def make_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of blocks, which has several classes."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    image = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    return image.astype(np.uint8)


def assert_equal_labels(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Compare labels where the two highest probabilities of the expected ones differ."""
    assert isinstance(found, Segmentation)
    assert isinstance(expected, Segmentation)
    assert expected.probabilities is not None
    best = np.sort(expected.probabilities, axis=0)
    clear = best[-1] - best[-2] > tolerance
    assert clear.mean() > 0.95
    assert len(np.unique(expected.labels)) > 1
    assert np.array_equal(found.labels[clear], expected.labels[clear])
    assert found.label_set == expected.label_set


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": True},
        {"scales": (0.7, 1.5)},
        {"tile": 64},
        {"tile": (72, 90), "overlap": 0.5, "batch_size": 3},
        {"confidence": True},
    ],
    ids=str,
)
def test_engines_return_the_same_labels(exported: Path, options: dict[str, Any]) -> None:
    image = make_image(111, 150)
    expected = predict(network(), image, probabilities=True, **options)
    with counted_exports(exported / "graph.onnx") as exports:
        found = predict(network(), image, engine="onnxruntime", **options)
        assert len(exports) == 1
    assert_equal_labels(found, expected)
    again = predict(exported / "graph.onnx", image, **options)
    assert isinstance(found, Segmentation)
    assert isinstance(again, Segmentation)
    assert np.array_equal(again.labels, found.labels)
    if options.get("confidence"):
        assert isinstance(expected, Segmentation)
        assert found.confidence is not None
        assert expected.confidence is not None
        assert np.abs(found.confidence - expected.confidence).max() < 1e-3


def test_images_of_several_sizes_keep_their_order(exported: Path) -> None:
    images = [make_image(40 + 8 * (n % 3), 60, n) for n in range(7)]
    expected = predict(network(), images, probabilities=True)
    found = predict(exported / "graph.onnx", images, batch_size=2)
    assert isinstance(found, list)
    assert isinstance(expected, list)
    for one, other in zip(found, expected, strict=True):
        assert_equal_labels(one, other)


def test_file_for_one_size_is_used_whole_and_as_tiles(exported: Path) -> None:
    image, large = make_image(*SIZE), make_image(120, 200)
    expected = predict(network(), image, probabilities=True)
    assert_equal_labels(predict(exported / "pixels.onnx", image), expected)
    expected = predict(network(), large, tile=SIZE, probabilities=True)
    assert_equal_labels(predict(exported / "pixels.onnx", large, tile=SIZE), expected)


def test_file_for_one_size_refuses_another_image_by_name(exported: Path) -> None:
    predictor = Predictor(exported / "pixels.onnx")
    with pytest.raises(InputError, match=r"image: pixels.onnx is for images of 96x136 only.*tile="):
        predictor(make_image(96, 135))


def test_file_with_labels_returns_them_and_needs_logits_for_the_rest(exported: Path) -> None:
    image = make_image(*SIZE)
    expected = predict(network(), image, probabilities=True)
    assert_equal_labels(predict(exported / "labels.onnx", image), expected)
    for options in (*LABELS_ONLY, {"probabilities": True}):
        (name,) = options
        with pytest.raises(InputError, match=f"returns labels, and {name} needs logits: export"):
            Predictor(exported / "labels.onnx", **options)


def test_evaluate_takes_a_file_or_an_engine(exported: Path, tmp_path: Path) -> None:
    tiny.dataset(tmp_path, "val", sizes=[(64, 80), (80, 64), (64, 80)])
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne")
    dataset = open_dataset("folder", tmp_path, "val")
    expected = evaluate(network(), dataset)
    found = evaluate(exported / "graph.onnx", dataset)
    with counted_exports(exported / "graph.onnx"):
        again = evaluate(network(), dataset, engine="onnxruntime")
    assert (again.miou, again.pixel_accuracy) == (found.miou, found.pixel_accuracy)
    assert found.miou == pytest.approx(expected.miou, abs=0.01)
    predictor = Predictor(network())
    with pytest.raises(InputError, match=re.escape("pass it to Predictor")):
        evaluate(predictor, dataset, engine="onnxruntime")


def test_no_network_is_loaded_for_options_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, pretrained: bool) -> None:
        raise AssertionError("loads weights")

    monkeypatch.setattr("isanet_zoo.inference.predictor.create_model", load)
    for options in ({"dtype": torch.float16}, {"dtype": "int8"}, {"compile": True}):
        with pytest.raises(InputError):
            Predictor("isanet_resnet50os8_voc", engine="onnxruntime", **options)
