"""What is attached to modules from outside: a faster module in their place would lose it."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize


def has_hooks(network: nn.Module) -> bool:
    """Say whether any part does more, when it is called, than what its class says."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module)
        for module in network.modules()
    )
