"""Small networks for the tests of the engines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.network.isanet import ISANet

HEAD = HeadConfig(channels=16, key_channels=8, partition=(4, 3), aux_channels=12)
NORM = nn.modules.batchnorm._NormBase


def settle(network: nn.Module, seed: int = 0) -> None:
    """Set the statistics and parameters of batch norms to random values, as training does."""
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
    """Return a small network of 7 classes in evaluation mode."""
    torch.manual_seed(0)
    network = ISANet(backbone, 7, head=head)
    settle(network)
    return network


def relative(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())
