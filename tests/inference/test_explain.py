"""Attention of a pixel: from the image to the map and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from isanet_zoo import Explanation, InputError, ISANet, Predictor, Preprocess
from isanet_zoo.inference.explain import positions
from isanet_zoo.manifest.config import ResizeRule
from isanet_zoo.network.affinity import affinity_rows
from isanet_zoo.network.resize import resize
from tests.engines.networks import HEAD, make_network

RULES: tuple[ResizeRule, ...] = ("half_pixel", "corners", "asymmetric")


def make_image(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def explain(
    network: ISANet, size: tuple[int, int], at: tuple[int, int], **options: Any
) -> Explanation:
    return Predictor(network, **options).explain(make_image(*size), at)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rule=st.sampled_from(RULES), length=st.integers(2, 60), cells=st.integers(1, 12), data=st.data()
)
def test_map_at_image_size_is_resized_like_logits(
    rule: ResizeRule, length: int, cells: int, data: st.DataObject
) -> None:
    found = positions(length, (length, length), cells, rule)
    ramp = torch.arange(cells, dtype=torch.float32).view(1, 1, 1, cells)
    found = found.clip(0, cells - 1)
    np.testing.assert_allclose(found, resize(ramp, (1, length), rule).flatten(), atol=1e-4)


def test_explanation_is_the_attention_of_the_network_itself() -> None:
    network = make_network()
    network.preprocess = Preprocess(resize=(96, 64))
    found = explain(network, (45, 70), (33, 20))
    image = make_image(45, 70)
    prepared = Predictor(network)._prepare([Predictor(network)._read(image)])
    assert prepared.shape[2:] == (62, 96)
    with torch.no_grad():
        features = network.head.reduce(network.forward_features(prepared)[1])
        expected = affinity_rows(network.head.attention, features, found.cell)
    for name, row in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), row, atol=1e-5)
    # x = 33 of 70 pixels is 0.479 of the width: 12 cells · 0.479 - 0.5 = 5.24
    assert found.cell == (round(8 * 20.5 / 45 - 0.5), 5)
    assert found.padding == pytest.approx(1 - found.affinity.sum(), abs=1e-6)


def test_uniform_attention_has_the_entropy_and_radius_of_the_whole_image() -> None:
    network = make_network()
    attention: Any = network.head.attention
    for hop in (attention.long_range, attention.short_range):
        hop.query[1].norm.weight.data.zero_()
        hop.query[1].norm.bias.data.zero_()
    found = explain(network, (64, 96), (50, 20))  # a map of 8 x 12: whole windows of 4 x 3
    np.testing.assert_allclose(found.affinity, 1 / 96, rtol=1e-5)
    assert found.entropy == pytest.approx(np.log2(96), abs=1e-4)
    assert found.padding == pytest.approx(0, abs=1e-6)
    centres = [np.arange(n) * 8 + 3.5 for n in (8, 12)]
    squares = (centres[0][:, None] - 20) ** 2 + (centres[1] - 50) ** 2
    assert found.effective_radius == pytest.approx(np.sqrt(squares.mean()), abs=0.1)
    assert (found.short_range > 0).sum() == 12  # a window
    rows, columns = np.nonzero(found.long_range)
    assert set(rows % 4) == {found.cell[0] % 4}
    assert set(columns % 3) == {found.cell[1] % 3}


def test_padding_of_the_image_counts_as_padding() -> None:
    network = make_network()
    network.preprocess = Preprocess(pad=(128, 96))
    found = explain(network, (64, 96), (10, 60))
    assert found.affinity.shape == (8, 12)
    assert found.at_image_size().shape == (64, 96)
    assert 0.05 < found.padding < 0.95
    assert found.cell == (7, 1)


@pytest.mark.parametrize("rule", RULES)
def test_maps_at_image_size_cover_the_image(rule: ResizeRule) -> None:
    network = make_network(head=replace(HEAD, resize=rule))
    found = explain(network, (50, 70), (69, 49))
    values = found.at_image_size("long_range")
    assert values.dtype == np.float32
    expected = resize(torch.from_numpy(found.long_range)[None, None], (50, 70), rule)[0, 0]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert found.cell == (found.affinity.shape[0] - 1, found.affinity.shape[1] - 1)


def test_overlay_is_brightest_where_the_map_is() -> None:
    found = explain(make_network(), (64, 96), (5, 5))
    overlay = np.asarray(found.overlay(alpha=1), np.float64).sum(-1)
    values = found.at_image_size()
    far = np.hypot(*(np.indices((64, 96)) - 5)) > 12  # beyond the ring
    order = np.argsort(values[far])
    assert np.all(np.diff(overlay[far][order][::200]) >= -3)
    plain = np.asarray(found.overlay(alpha=0))[far]
    assert np.array_equal(plain, make_image(64, 96)[far])
    with pytest.raises(InputError, match="hop is 'depth'; choose one of affinity, long_range"):
        found.overlay("depth")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"alpha is 2; it must be within 0\.\.1"):
        found.overlay(alpha=2)


def test_figures_are_plain_numbers() -> None:
    found = explain(make_network(), (64, 96), (np.int64(5), 7))  # type: ignore[arg-type]
    figures = found.to_dict()
    assert figures["at"] == (5, 7)
    assert all(type(figures[n]) is float for n in ("entropy", "effective_radius", "padding"))
    assert "pixel (5, 7): entropy" in repr(found)


def test_explanation_in_bfloat16_is_close() -> None:
    network = make_network()
    exact, rough = (
        explain(network, (64, 96), (40, 40), dtype=dtype) for dtype in (None, torch.bfloat16)
    )
    np.testing.assert_allclose(rough.affinity, exact.affinity, atol=0.1 * exact.affinity.max())


@pytest.mark.parametrize(
    ("options", "at", "message"),
    [
        ({}, (96, 0), r"at is \(96, 0\); it must be \(x, y\), a pixel of the image of 96 x 64"),
        ({}, (0, 64), "a pixel of the image"),
        ({}, (-1, 0), "a pixel of the image"),
        ({}, (0.5, 0), "a pixel of the image"),
        ({}, 3, "a pixel of the image"),
        ({}, (1, 2, 3), "a pixel of the image"),
        ({}, None, "a pixel of the image"),
        ({"flip": True}, (0, 0), "attention is that of one view: drop both options"),
        ({"scales": [0.5]}, (0, 0), "attention is that of one view"),
        ({"tile": 64}, (0, 0), r"in tiles of \(64, 64\).* choose tile='whole'"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    options: dict[str, Any], at: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        explain(make_network(), (64, 96), at, **options)


def test_weights_with_tiles_are_explained_as_a_whole_on_request() -> None:
    network = make_network()
    network.preprocess = Preprocess(window=(64, 64), stride=(64, 64))
    with pytest.raises(InputError, match="choose tile='whole' to explain the image as a whole"):
        explain(network, (64, 96), (0, 0))
    assert explain(network, (64, 96), (0, 0), tile="whole").affinity.shape == (8, 12)


def test_engine_or_network_without_attention_is_refused() -> None:
    class Own(ISANet):
        def forward_logits(self, images: torch.Tensor) -> torch.Tensor:
            return F.relu(super().forward_logits(images))

    with pytest.raises(InputError, match="Own has its own forward pass or another head"):
        explain(Own("test_resnet", 7, head=HEAD), (64, 96), (0, 0))
    predictor = Predictor(make_network())
    engine = predictor.engine

    class LogitsOnly:
        name, device, preprocess = "other", engine.device, engine.preprocess

    predictor.engine = LogitsOnly()  # type: ignore[assignment]
    with pytest.raises(InputError, match="engine 'other' computes logits only; attention needs"):
        predictor.explain(make_image(64, 96), (0, 0))
