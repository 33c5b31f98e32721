"""A folded network computes what the network computes, in other types nearly so."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from isanet_zoo.engines import folding
from isanet_zoo.engines.folding import FoldedInterlacedAttention, fold
from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.network.attention import InterlacedAttention
from isanet_zoo.network.isanet import ISANet

HEAD = HeadConfig(channels=16, key_channels=8, partition=(4, 3), aux_channels=12)
NORMS = (nn.modules.batchnorm._NormBase,)


def settle(network: nn.Module, seed: int = 0) -> None:
    """Give norms statistics and scales of their own, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            with torch.no_grad():
                norm.running_mean.normal_(0, 0.2, generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
                norm.weight.uniform_(-1, 1.5, generator=generator)
                norm.bias.normal_(0, 0.2, generator=generator)
    network.eval()


def make_network(backbone: str = "test_resnet", head: HeadConfig = HEAD) -> ISANet:
    torch.manual_seed(0)
    network = ISANet(backbone, 7, head=head)
    settle(network)
    return network


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    batch=st.integers(1, 3),
    partition=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    value_bias=st.booleans(),
    activation=st.sampled_from(["relu", "leaky_relu"]),
    positions=st.sampled_from([1, 30, 1024]),
    channels_last=st.booleans(),
)
def test_attention_is_the_same_map(
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
    untouched = x.clone()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(folding, "POSITIONS", positions)
        torch.testing.assert_close(
            FoldedInterlacedAttention(attention)(x), attention(x), rtol=1e-4, atol=1e-5
        )
    assert torch.equal(x, untouched)


# Plain, with norms that hold an activation, with norms before convolutions, without any, with
# pooling that depends on the size, with attention of its own.
BACKBONES = {
    "resnet18d": True,
    "tf_efficientnet_lite0": True,
    "mobilenetv3_small_050": True,
    "test_resnet": True,
    "resnetv2_50": False,
    "convnext_atto": True,
    "seresnet18": True,
    "resnest14d": None,
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_networks_are_the_same_map(backbone: str) -> None:
    network = make_network(backbone)
    folded = copy.deepcopy(network)
    fold(folded)
    images = torch.randn(2, 3, 97, 85)
    with torch.no_grad():
        assert relative(folded.forward_logits(images), network.forward_logits(images)) < 2e-5
        folded.to(memory_format=torch.channels_last)
        assert relative(folded.forward_logits(images), network.forward_logits(images)) < 2e-5
    left = sum(isinstance(module, NORMS) for module in folded.modules())
    before = sum(isinstance(module, NORMS) for module in network.backbone.modules())
    if (everything := BACKBONES[backbone]) is not None:
        assert (left == 0) == everything
    assert left <= before


class Shared(nn.Module):
    """Reads a convolution twice, and uses another one for two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.norms = nn.Conv2d(4, 4, 1), nn.ModuleList(nn.BatchNorm2d(4) for _ in "ab")
        self.last, self.last_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(x)
        x = x + self.first_norm(x)
        for norm in self.norms:
            x = norm(self.again(x)).relu()
        out: Tensor = self.last_norm(self.last(x))
        return [x, out]


def test_only_a_convolution_that_nothing_else_reads_takes_in_a_norm() -> None:
    network = Shared()
    settle(network)
    folded = copy.deepcopy(network)
    graph = folding._fold_backbone(folded)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[1], network(x)[1], rtol=1e-4, atol=1e-5)
    assert isinstance(folded.last_norm, nn.Identity)
    assert isinstance(folded.first_norm, nn.BatchNorm2d)
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in folded.norms)


class Various(nn.Module):
    """Adds numbers, and has norms whose statistics are those of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.instance = nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)
        self.two, self.batch = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.three, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = 1 + self.instance(self.one(x))
        low = self.batch(self.two(x))
        high = self.norm(self.three(low))
        return [low, high + low]


def test_what_cannot_be_folded_is_left_and_sums_may_be_written_in_place() -> None:
    network = Various()
    nn.init.uniform_(network.norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    network.eval()
    folded = copy.deepcopy(network)
    graph = folding._fold_backbone(folded)
    x = torch.randn(2, 3, 8, 8)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[1], network(x)[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)
    assert isinstance(folded.instance, nn.InstanceNorm2d)
    assert isinstance(folded.batch, nn.BatchNorm2d)
    assert isinstance(folded.norm, nn.Identity)
    assert "iadd" in str(graph.graph)


class Sharing(nn.Module):
    """Adds to a map that is read again, and to one that is the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dropout = nn.Conv2d(3, 3, 1), nn.Dropout()

    def forward(self, x: Tensor) -> list[Tensor]:
        again = self.conv(x)
        total = self.dropout(x) + (again + x)
        return [x, total * again]


def test_sums_do_not_overwrite_what_others_read() -> None:
    network = Sharing().eval()
    x = torch.randn(2, 3, 8, 8)
    before, expected = x.clone(), network(x)[1]
    with torch.no_grad():
        actual = folding._fold_backbone(copy.deepcopy(network))(x)[1]
    torch.testing.assert_close(actual, expected)
    assert torch.equal(x, before)


class Branching(nn.Module):
    """Does what fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x if x.sum() > 0 else -x))
        return out


def test_what_cannot_be_followed_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network = Branching()
    with caplog.at_level("INFO"):
        assert folding._fold_backbone(network) is network
    assert isinstance(network.norm, nn.BatchNorm2d)
    assert "Branching keeps its norms" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_stay_float32(dtype: torch.dtype) -> None:
    network = make_network()
    folded = copy.deepcopy(network)
    fold(folded, dtype)
    images = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        logits = folded.forward_logits(images.to(dtype))
        assert logits.dtype == torch.float32
        assert relative(logits, network.forward_logits(images)) < 0.05
    kinds = {name: p.dtype for name, p in folded.named_parameters() if "aux" not in name}
    assert {kind for name, kind in kinds.items() if "classifier" not in name} == {dtype}


@pytest.mark.parametrize(
    "part", ["backbone.layer1.0.conv1", "head.reduce.conv", "head.attention.long_range.key.0.conv"]
)
@pytest.mark.parametrize("kind", ["hook", "weight_norm"])
def test_what_has_hooks_stays_as_it_is(part: str, kind: str) -> None:
    network = make_network()
    convolution = network.get_submodule(part)
    if kind == "hook":
        convolution.register_forward_hook(lambda module, args, output: 0.5 * output)
    else:
        parametrizations.weight_norm(convolution)
    folded = copy.deepcopy(network)
    fold(folded)
    images = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert relative(folded.forward_logits(images), network.forward_logits(images)) < 2e-5


def test_an_encoder_whose_maps_come_by_hooks_is_safe_to_share() -> None:
    network = make_network("xception41")
    folded = copy.deepcopy(network)
    fold(folded)
    pictures = [torch.randn(1, 3, 33 + 8 * i, 40) for i in range(6)]

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return folded.forward_logits(images)

    with torch.no_grad():
        expected = [network.forward_logits(images) for images in pictures]
    with ThreadPoolExecutor(4) as pool:
        for actual, alone in zip(pool.map(logits, 3 * pictures), 3 * expected, strict=True):
            assert relative(actual, alone) < 2e-5


def test_parts_of_the_user_s_own_are_left_alone() -> None:
    class Doubling(InterlacedAttention):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    network = make_network()
    network.head.attention = Doubling(16, 8, partition=(4, 3)).eval()
    folded = copy.deepcopy(network)
    fold(folded)
    images = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert relative(folded.forward_logits(images), network.forward_logits(images)) < 2e-5
