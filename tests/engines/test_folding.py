"""Tests that a folded network computes the same as the network."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn.utils import parametrizations

from isanet_zoo.engines import folding
from isanet_zoo.engines.encoder import FoldedEncoder
from isanet_zoo.engines.folding import FoldedInterlacedAttention, fold
from isanet_zoo.network.attention import InterlacedAttention
from isanet_zoo.network.isanet import ISANet
from tests.engines.networks import NORM, make_network, relative, settle


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    batch=st.integers(1, 3),
    partition=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    value_bias=st.booleans(),
    activation=st.sampled_from(["relu", "leaky_relu"]),
    positions=st.sampled_from([1, 30, 1024]),
    channels_last=st.booleans(),
)
def test_folded_attention_equals_attention_and_keeps_its_input(
    size: tuple[int, int],
    batch: int,
    partition: tuple[int, int],
    value_bias: bool,
    activation: str,
    positions: int,
    channels_last: bool,
) -> None:
    torch.manual_seed(0)
    attention = InterlacedAttention(
        12,
        6,
        partition=partition,
        value_bias=value_bias,
        activation=activation,  # type: ignore[arg-type]
    )
    settle(attention)
    x = 4 * torch.randn(batch, 12, *size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    original = x.clone()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(folding, "POSITIONS", positions)
        torch.testing.assert_close(
            FoldedInterlacedAttention(attention)(x), attention(x), rtol=1e-4, atol=1e-5
        )
    assert torch.equal(x, original)


def assert_folds_to_the_same(network: ISANet, *, folds_head: bool = True) -> ISANet:
    folded = copy.deepcopy(network)
    fold(folded)
    images = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert relative(folded.forward_logits(images), network.forward_logits(images)) < 2e-5
    norms = [name for name, part in folded.head.named_modules() if isinstance(part, NORM)]
    assert bool(norms) != folds_head
    return folded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fold_to_a_small_type_keeps_logits_in_float32(dtype: torch.dtype) -> None:
    network = make_network()
    folded = copy.deepcopy(network)
    fold(folded, dtype)
    images = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        logits = folded.forward_logits(images.to(dtype))
        assert logits.dtype == torch.float32
        assert relative(logits, network.forward_logits(images)) < 0.05
    types = {name: p.dtype for name, p in folded.named_parameters()}
    assert {kind for name, kind in types.items() if "classifier" not in name} == {dtype}


@pytest.mark.parametrize("kind", ["hook", "weight_norm", "forward"])
@pytest.mark.parametrize("part", ["reduce.conv", "attention.long_range.key.0.conv"])
def test_fold_of_a_head_with_hooks_keeps_the_head(
    part: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = make_network()
    convolution = network.head.get_submodule(part)
    if kind == "hook":
        convolution.register_forward_hook(lambda module, args, output: 0.5 * output)
    elif kind == "weight_norm":
        parametrizations.weight_norm(convolution)
    else:
        weight = convolution.get_parameter("weight")
        padding = tuple(side // 2 for side in weight.shape[2:])
        convolution.forward = lambda x: 0.5 * torch.nn.functional.conv2d(x, weight, padding=padding)
    with caplog.at_level("INFO"):
        folded = assert_folds_to_the_same(network, folds_head=False)
    assert "the head is not folded: it has hooks or other layers" in caplog.text
    assert isinstance(folded.backbone, FoldedEncoder)


def test_fold_of_a_head_with_another_attention_keeps_the_head() -> None:
    class Doubling(InterlacedAttention):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    network = make_network()
    network.head.attention = Doubling(
        16, 8, partition=(4, 3), value_bias=True, activation="relu"
    ).eval()
    assert_folds_to_the_same(network, folds_head=False)


def test_fold_of_a_subclass_with_its_own_forward_keeps_the_network(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sum(ISANet):
        def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
            low, high = super().forward_features(images)
            return low, high + low.mean(1, keepdim=True)

    network = make_network()
    network.__class__ = Sum
    with caplog.at_level("INFO"):
        assert_folds_to_the_same(network, folds_head=False)
    assert "Sum is not folded: it has its own forward pass" in caplog.text


def test_fold_of_a_subclass_with_other_methods_folds_the_network() -> None:
    class Named(ISANet):
        title = "mine"

    network = make_network()
    network.__class__ = Named
    assert isinstance(assert_folds_to_the_same(network).backbone, FoldedEncoder)
