"""Tests of the loss, compared with sssegmentation's values, torch's mean, and formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from isanet_zoo import create_model
from isanet_zoo.learning.losses import balanced_weights, segmentation_loss, total_weight
from isanet_zoo.network.isanet import ISANetOutput
from isanet_zoo.weights.layouts import SSSEG
from tests import reference

GOLDEN = json.loads((reference.DATA / "golden" / "ssseg_losses_eval.json").read_text())


def noise(seed: int, *, ignored: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (4, 5, 6, 7), a target, and weights of the classes."""
    torch.manual_seed(seed)
    target = torch.randint(0, 5, (4, 6, 7))
    target[torch.rand(target.shape) < ignored] = 255
    return torch.randn(4, 5, 6, 7), target, torch.rand(5) + 0.1


@pytest.mark.parametrize("name", GOLDEN["losses"])
def test_losses_equal_those_of_sssegmentation(name: str) -> None:
    state = reference.fill(reference.upstream_shapes(name))
    model = create_model(name, aux_loss=True).eval()
    model.load_state_dict({SSSEG.ours(key): value for key, value in state.items()})
    assert model.aux_head is not None
    size = (97, 141)
    with torch.no_grad():
        low, high = model.forward_features(reference.make_input(GOLDEN["case"]))
        output = ISANetOutput(
            model.resize(model.head(high), size), model.resize(model.aux_head(low), size)
        )
    classes = model.config.num_classes
    rng = np.random.Generator(np.random.PCG64(77))
    target = torch.from_numpy(rng.integers(0, classes + 2, (1, *size)))
    target[target >= classes] = 255
    expected = GOLDEN["losses"][name]
    assert (target == 255).double().mean().item() == pytest.approx(expected["ignored_frac"])
    total = segmentation_loss(output, target).item()
    main = segmentation_loss(output.out, target).item()
    aux = segmentation_loss(output.aux, target).item()
    assert total == pytest.approx(expected["loss_total"], abs=1e-4)
    assert main == pytest.approx(expected["loss_cls"], abs=1e-4)
    assert 0.4 * aux == pytest.approx(expected["loss_aux"], abs=1e-4)


@given(seed=st.integers(0, 9999), ignored=st.sampled_from([0.0, 0.3, 0.9]), weighted=st.booleans())
@settings(max_examples=30, deadline=None)
def test_loss_equals_torch_s_weighted_mean(seed: int, ignored: float, weighted: bool) -> None:
    logits, target, weights = noise(seed, ignored=ignored)
    weight = weights if weighted else None
    loss = segmentation_loss(logits, target, class_weights=weight)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, weight, ignore_index=255))
    torch.testing.assert_close(
        segmentation_loss(logits.bfloat16(), target),  # computed in float32
        F.cross_entropy(logits.bfloat16().float(), target, ignore_index=255),
    )


def test_auxiliary_loss_is_multiplied_by_its_weight() -> None:
    logits, target, weights = noise(0)
    other = noise(1)[0]
    output = ISANetOutput(logits, other)
    for weight in (0.0, 0.4, 1.0):
        expected = segmentation_loss(logits, target, class_weights=weights)
        expected = expected + weight * segmentation_loss(other, target, class_weights=weights)
        loss = segmentation_loss(output, target, aux_weight=weight, class_weights=weights)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_without_counted_pixels_is_zero(weighted: bool) -> None:
    logits, _, weights = noise(0)
    logits.requires_grad_()
    target = torch.full((4, 6, 7), 255)
    loss = segmentation_loss(
        ISANetOutput(logits, 2 * logits), target, class_weights=weights if weighted else None
    )
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_ignored_id_is_an_option() -> None:
    logits, target, weights = noise(0)
    other = torch.where(target == 255, 9, target)
    for weight in (None, weights):
        torch.testing.assert_close(
            segmentation_loss(logits, other, class_weights=weight, ignore_index=9),
            segmentation_loss(logits, target, class_weights=weight),
        )


@given(seed=st.integers(0, 9999), chunks=st.integers(1, 4), weighted=st.booleans())
@settings(max_examples=30, deadline=None)
def test_losses_of_chunks_add_up(seed: int, chunks: int, weighted: bool) -> None:
    logits, target, weights = noise(seed)
    target[0] = 255  # a chunk without counted pixels
    weight = weights if weighted else None
    logits.requires_grad_()
    whole = segmentation_loss(logits, target, class_weights=weight)
    (gradient,) = torch.autograd.grad(whole, logits)
    total = total_weight(target, weight)
    parts = [
        segmentation_loss(part, part_target, class_weights=weight, total=total)
        for part, part_target in zip(logits.chunk(chunks), target.chunk(chunks), strict=True)
    ]
    loss = torch.stack(parts).sum()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient)


def test_total_weight_is_the_sum_over_counted_pixels() -> None:
    target = torch.tensor([[[0, 1, 1], [255, 2, 255]]])
    assert total_weight(target).item() == 4
    assert total_weight(target).dtype == torch.float32
    weights = torch.tensor([0.5, 2.0, 8.0])
    assert total_weight(target, weights).item() == 12.5
    assert total_weight(target, ignore_index=1).item() == 4
    ignored = torch.full((1, 2, 2), 255)
    for weight in (None, weights):
        assert 0 < total_weight(ignored, weight).item() < 1e-3


@given(
    pixels=st.lists(st.integers(0, 10**9), min_size=2, max_size=9).filter(any),
    offset=st.floats(1.01, 2.0),
)
@settings(max_examples=40, deadline=None)
def test_balanced_weights_are_enet_s_with_mean_1(pixels: list[int], offset: float) -> None:
    weights = balanced_weights(torch.tensor(pixels), offset)
    raw = [1 / math.log(offset + count / sum(pixels)) for count in pixels]
    expected = torch.tensor([value * len(raw) / sum(raw) for value in raw])
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=0)
    assert weights.mean().item() == pytest.approx(1)
