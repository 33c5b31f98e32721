"""Tests of the losses, compared with sssegmentation's values, torch's mean, loops and formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from isanet_zoo import InputError, create_model
from isanet_zoo.learning.losses import (
    LOSSES,
    balanced_weights,
    segmentation_loss,
    total_weight,
)
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


def naive(loss: str, logits: Tensor, target: Tensor, weights: Tensor | None) -> float:
    """Return a loss by loops over pixels and classes, in float64."""
    scores, labels = logits.double().numpy(), target.numpy()
    weight = np.ones(scores.shape[1]) if weights is None else weights.double().numpy()
    pixels = []  # (probabilities of the classes, class)
    for b, y, x in np.argwhere(labels != 255):
        powers = np.exp(scores[b, :, y, x] - scores[b, :, y, x].max())
        pixels.append((powers / powers.sum(), int(labels[b, y, x])))
    if loss == "dice":
        top = bottom = 0.0
        for c in {label for _, label in pixels}:
            hit = sum(p[c] for p, label in pixels if label == c)
            both = sum(p[c] for p, _ in pixels) + sum(label == c for _, label in pixels)
            top, bottom = top + weight[c] * (1 - 2 * hit / both), bottom + weight[c]
        return float(top / bottom)
    if loss == "ohem":
        ordered = sorted(p[label] for p, label in pixels)
        threshold = max(0.7, ordered[max(round(len(pixels) / 12), 1) - 1])
        pixels = [(p, label) for p, label in pixels if p[label] <= threshold]
    power = 2 if loss == "focal" else 0
    terms = [-weight[c] * (1 - p[c]) ** power * math.log(p[c]) for p, c in pixels]
    return float(sum(terms) / sum(weight[c] for _, c in pixels))


@given(
    loss=st.sampled_from(["cross_entropy", "dice", "focal", "ohem"]),
    seed=st.integers(0, 9999),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
    scale=st.sampled_from([0.3, 1.0, 20.0]),  # with 20, OHEM keeps few pixels
    weighted=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_losses_equal_loops_over_pixels(
    loss: str, seed: int, ignored: float, scale: float, weighted: bool
) -> None:
    logits, target, weights = noise(seed, ignored=ignored)
    weight = weights if weighted else None
    hot = F.one_hot(target.clamp(max=4), 5).movedim(-1, 1)
    for scores in (scale * logits, scale * (logits + hot)):
        scores = scores.clamp(-30, 30)
        found = segmentation_loss(scores, target, loss=loss, class_weights=weight)
        expected = naive(loss, scores, target, weight)
        assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "focal", "ohem"])
def test_gradient_of_a_loss_equals_differences(loss: str) -> None:
    logits, target, weights = noise(3)
    logits.requires_grad_()
    found = segmentation_loss(logits, target, loss=loss, class_weights=weights)
    (gradient,) = torch.autograd.grad(found, logits)
    values = logits.detach()
    for place in [(0, 1, 2, 3), (2, 4, 5, 6), (3, 0, 0, 0)]:
        step = torch.zeros_like(values)
        step[place] = 0.01
        pair = [naive(loss, values + sign * step, target, weights) for sign in (1, -1)]
        assert gradient[place].item() == pytest.approx((pair[0] - pair[1]) / 0.02, abs=1e-5)


def test_sum_of_losses_and_unknown_losses() -> None:
    logits, target, _ = noise(0)
    parts = [segmentation_loss(logits, target, loss=name) for name in ("cross_entropy", "dice")]
    both = segmentation_loss(logits, target, loss="cross_entropy+dice")
    torch.testing.assert_close(both, parts[0] + parts[1])
    with pytest.raises(InputError, match=r"no loss is called 'dise'; did you mean dice\?"):
        segmentation_loss(logits, target, loss="cross_entropy+dise")


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
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_without_counted_pixels_is_zero(loss: str, weighted: bool) -> None:
    logits, _, weights = noise(0)
    logits.requires_grad_()
    target = torch.full((4, 6, 7), 255)
    zero = segmentation_loss(
        ISANetOutput(logits, 2 * logits),
        target,
        loss=loss,
        class_weights=weights if weighted else None,
    )
    assert zero.item() == 0
    zero.backward()  # type: ignore[no-untyped-call]
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


@given(
    seed=st.integers(0, 9999),
    chunks=st.integers(1, 4),
    weighted=st.booleans(),
    name=st.sampled_from(["cross_entropy", "focal"]),
)
@settings(max_examples=30, deadline=None)
def test_losses_of_chunks_add_up(seed: int, chunks: int, weighted: bool, name: str) -> None:
    logits, target, weights = noise(seed)
    target[0] = 255  # a chunk without counted pixels
    weight = weights if weighted else None
    logits.requires_grad_()
    whole = segmentation_loss(logits, target, loss=name, class_weights=weight)
    (gradient,) = torch.autograd.grad(whole, logits)
    total = total_weight(target, weight)
    parts = [
        segmentation_loss(part, part_target, loss=name, class_weights=weight, total=total)
        for part, part_target in zip(logits.chunk(chunks), target.chunk(chunks), strict=True)
    ]
    loss = torch.stack(parts).sum()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient)


@pytest.mark.parametrize("name", ["dice", "ohem"])
def test_other_losses_of_chunks_are_averaged_over_their_pixels(name: str) -> None:
    logits, target, weights = noise(5)
    total = total_weight(target, weights)
    pairs = list(zip(logits.chunk(2), target.chunk(2), strict=True))
    parts = [
        segmentation_loss(*pair, loss=name, class_weights=weights, total=total) for pair in pairs
    ]
    own = [segmentation_loss(*pair, loss=name, class_weights=weights) for pair in pairs]
    sizes = [total_weight(labels, weights) for _, labels in pairs]
    expected = sum(loss * size for loss, size in zip(own, sizes, strict=True)) / total
    torch.testing.assert_close(torch.stack(parts).sum(), expected)


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
