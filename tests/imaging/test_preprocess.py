"""Preprocessing against upstream's tensors and against cv2."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image

from isanet_zoo.imaging.preprocess import input_size, pad, prepare, resize_pixels
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.lookup import get_weights
from tests.reference import CLASSES, IMAGES, golden, make_image

GOLDEN = golden("preprocess")
TARGETS = {"voc": (2048, 512), "cityscapes": (2048, 1024)}


def resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) with the code under test."""
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    return np.ascontiguousarray(resize_pixels(batch, size)[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("dataset", CLASSES)
def test_input_equals_that_of_upstream(dataset: str, image: str) -> None:
    case = f"{dataset}/{image}"
    tensor = get_weights(f"isanet_resnet50os8_{dataset}").transforms()(make_image(image))
    assert tensor.dtype == torch.float32
    assert tensor.shape == (1, *GOLDEN[f"{case}/shape"])
    values = tensor[0].numpy()
    samples = values.reshape(-1)[GOLDEN[f"{case}/idx"]]
    for ours, theirs in (
        (values[:, :24, :24], "crop_tl"),
        (values[:, -24:, -24:], "crop_br"),
        (samples, "samples"),
    ):
        np.testing.assert_allclose(ours, GOLDEN[f"{case}/{theirs}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("dataset", CLASSES)
def test_resized_pixels_equal_those_of_upstream(dataset: str, image: str) -> None:
    case = f"{dataset}/{image}"
    _, height, width = GOLDEN[f"{case}/shape"]
    levels = resized(make_image(image), (int(height), int(width)))
    assert np.array_equal(levels[:24, :24], GOLDEN[f"{case}/resized_rgb_crop_tl"])
    assert np.array_equal(levels[-24:, -24:], GOLDEN[f"{case}/resized_rgb_crop_br"])
    digest = hashlib.sha256(levels.tobytes()).hexdigest()
    assert digest == GOLDEN[f"{case}/resized_rgb_sha256"].item()


def test_array_and_pil_image_have_equal_inputs() -> None:
    image = make_image("img256x512")
    transforms = get_weights("isanet_resnet50os8_voc").transforms()
    assert torch.equal(transforms(image), transforms(Image.fromarray(image)))


side = st.integers(1, 90)


@settings(max_examples=300, deadline=None)
@given(height=side, width=side, to_height=side, to_width=side, seed=st.integers(0, 99))
@example(height=64, width=48, to_height=32, to_width=24, seed=0)
@example(height=20, width=30, to_height=40, to_width=60, seed=0)
@example(height=300, width=7, to_height=11, to_width=260, seed=0)
def test_resize_equals_cv2_in_every_bit(
    height: int, width: int, to_height: int, to_width: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    expected = cv2.resize(image, (to_width, to_height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resized(image, (to_height, to_width)), expected)


def upstream_size(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    scale = min(max(target) / max(height, width), min(target) / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(sorted(TARGETS.values())))
def test_input_size_equals_that_of_upstream_and_is_never_empty(
    height: int, width: int, target: tuple[int, int]
) -> None:
    size = input_size((height, width), Preprocess(resize=target))
    assert size == tuple(max(length, 1) for length in upstream_size(height, width, target))
    assert input_size((width, height), Preprocess(resize=target)) == size[::-1]


@pytest.mark.parametrize(("dataset", "target"), TARGETS.items())
def test_portrait_and_landscape_fit_both_sides(dataset: str, target: tuple[int, int]) -> None:
    config = get_weights(f"isanet_resnet50os8_{dataset}").preprocess
    assert input_size((375, 500), config) == upstream_size(375, 500, target)
    assert input_size((500, 375), config) == upstream_size(500, 375, target)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (2, 4097)])
def test_very_thin_image_is_prepared(size: tuple[int, int]) -> None:
    config = Preprocess(resize=(256, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    tensor = prepare(torch.from_numpy(image.transpose(2, 0, 1).copy())[None], config)
    height, width = (max(length, 1) for length in upstream_size(*size, (256, 64)))
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(tensor[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("resize", [True, False])
def test_size_is_kept_without_resize(resize: bool) -> None:
    pixels = torch.from_numpy(make_image("img100x1000").transpose(2, 0, 1).copy())[None]
    config = Preprocess(resize=None if resize else (256, 64))
    mean, std = np.array(config.mean), np.array(config.std)
    expected = (make_image("img100x1000") - mean) / std
    values = prepare(pixels, config, resize=resize)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


@pytest.fixture
def _double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double_by_default")
def test_input_of_each_family_equals_its_publishers() -> None:
    """The authors use BGR minus a mean, PaddleSeg (x / 255 - 0.5) / 0.5, padded with zeros."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3)).astype(np.uint8)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]

    authors = get_weights("isanet_resnet101os8_cityscapes.openseg").preprocess
    bgr = pixels[..., ::-1] - np.array([102.9801, 115.9465, 122.7717])
    expected = torch.from_numpy(bgr).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(prepare(image, authors, resize=False), expected)

    paddle = get_weights("isanet_resnet50os8_voc.paddle_512x512_40k").preprocess
    filled = pad(prepare(image, paddle, resize=False), paddle)
    plain = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    assert filled.shape == (1, 3, 512, 512)
    torch.testing.assert_close(filled[..., :10, :12], plain, rtol=1e-5, atol=1e-5)
    assert not filled[..., 10:, :].any()
    assert not filled[..., 12:].any()
    large = torch.ones(1, 3, 600, 300)
    assert pad(large, paddle).shape == (1, 3, 600, 512)


def test_input_is_float32_for_any_default_type_of_torch() -> None:
    assert prepare(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), Preprocess()).dtype == torch.float32
