"""A network for inference alone: the same function in fewer operations.

- A batch norm after a convolution is part of the convolution.
- A group's attention weights sum to one, so the value projection V and the output projection W are
  two linear maps in a row, W·(A·(V·x)) = A·((W·V)·x), and become one.
- The groups of interlaced attention know nothing of each other: on a CPU they are worked off a few
  at a time, in place, so that what belongs to them stays in the cache.
- A map that is read for the last time leaves its memory to the next one.

Letters in shapes: B batch, C channels, D key channels, h w feature map, P window, Q number of
windows per side, G groups, N positions in a group.
"""

from __future__ import annotations

import copy
import logging
import operator
import threading
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from isanet_zoo.engines.hooks import has_hooks
from isanet_zoo.engines.row_blocks import StripBottleneck, StripConvolution
from isanet_zoo.network.attention import ConvNormAct, InterlacedAttention, SelfAttention
from isanet_zoo.network.backbones import bottlenecks
from isanet_zoo.network.isanet import ISANet

logger = logging.getLogger(__name__)

POSITIONS = 1024  # at a time on a CPU: 512 channels of them are 2 MiB

_Norm = nn.modules.batchnorm._BatchNorm  # timm's with an activation, too


@torch.no_grad()
def fold(network: ISANet, dtype: torch.dtype = torch.float32) -> None:
    """Fold a network that is in evaluation mode, and let it compute in `dtype`.

    What is not built from the parts that this library knows is left as it is. Logits stay float32:
    in a smaller type, classes would tie.

    Args:
        network: changed in place; its tensors are not, they are replaced.
        dtype: type of all arithmetic but the classifier's.
    """
    network.backbone = _fold_backbone(network.backbone)
    head: Any = network.head
    for name in ("reduce", "fuse"):
        if type(part := getattr(head, name)) is ConvNormAct and not has_hooks(part):
            setattr(head, name, StripConvolution(*_folded(part)))
    if type(head.attention) is InterlacedAttention and not has_hooks(head.attention):
        head.attention = FoldedInterlacedAttention(head.attention)
    network.to(dtype)
    head.classifier.float()
    head.dropout = _ToFloat32()


def _folded(part: Any) -> nn.Sequential:
    """Return a `ConvNormAct` as a convolution and an activation."""
    return nn.Sequential(fuse_conv_bn_eval(part.conv, part.norm), part.act)


class _ToFloat32(nn.Module):
    """Takes the place of dropout, which does nothing in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class _InTurn(nn.Module):
    """Lets one thread at a time into an encoder: where hooks put maps, all threads put theirs."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> list[Tensor]:
        with self.lock:
            maps: list[Tensor] = self.backbone(x)
            return maps


class _Tracer(fx.Tracer):
    """Looks into whatever holds convolutions or norms, and no further."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inner = [part for part in m.modules() if isinstance(part, (nn.Conv2d, _Norm))]
        return not inner or inner[0] is m or isinstance(m, StripBottleneck)


def _fold_backbone(backbone: nn.Module) -> nn.Module:
    """Return an encoder with folded norms that lets go of each map once it is read.

    Of its two maps the first, for the auxiliary head, is not kept: both are the last one.
    """
    if has_hooks(backbone):
        logger.info("%s keeps its norms: it has hooks", type(backbone).__name__)
        return _InTurn(backbone)
    try:
        graph = _Tracer().trace(backbone)
    except Exception as error:  # a network can do anything that fx cannot follow
        logger.info("%s keeps its norms: %s", type(backbone).__name__, error)
        return backbone
    _fold_norms(backbone, graph)
    for name, block in bottlenecks(backbone):
        backbone.set_submodule(name, StripBottleneck(block))
    graph = _Tracer().trace(backbone)
    output: Any = next(node for node in graph.nodes if node.op == "output")
    *_, last = output.args[0]
    output.args = ((last, last),)
    _overwrite(graph, _calls(backbone, graph))
    return fx.GraphModule(backbone, graph)


def _calls(backbone: nn.Module, graph: fx.Graph) -> dict[fx.Node, nn.Module]:
    """Return the module that each node calls, if it does."""
    modules = dict(backbone.named_modules())
    return {node: modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}


def _fold_norms(backbone: nn.Module, graph: fx.Graph) -> None:
    """Fold each norm into the convolution before it, where nothing else reads that."""
    calls = _calls(backbone, graph)
    times = Counter(calls.values())
    for node, norm in calls.items():
        if not isinstance(norm, _Norm) or norm.running_mean is None:
            continue
        source: Any = node.args[0]
        convolution = calls.get(source)
        if not isinstance(convolution, nn.Conv2d):
            continue
        if len(source.users) == times[norm] == times[convolution] == 1:
            convolution.weight, convolution.bias = _fused(convolution, norm)
            backbone.set_submodule(str(node.target), _after(norm))


def _overwrite(graph: fx.Graph, calls: dict[fx.Node, nn.Module]) -> None:
    """Let sums and bottlenecks write over an operand that nothing reads afterwards."""
    for node in graph.nodes:
        if node.target is operator.add and _is_fresh(node.args[0], calls):
            node.target = operator.iadd
        elif isinstance(calls.get(node), StripBottleneck):
            (source,) = node.args
            # Of these it is known that their output's memory is nobody else's.
            fresh = isinstance(calls.get(source), (StripBottleneck, nn.MaxPool2d))
            node.kwargs = {"overwrite": fresh and len(source.users) == 1}


def _is_fresh(node: Any, calls: dict[fx.Node, nn.Module]) -> bool:
    """Say whether a value is a convolution's output, possibly handed on, and read only once."""
    while isinstance(node, fx.Node) and len(node.users) == 1:  # and not a number
        module = calls.get(node)
        if not isinstance(module, nn.Identity):
            return isinstance(module, nn.Conv2d)
        (node,) = node.args
    return False


def _fused(convolution: nn.Conv2d, norm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Return weight (C_out, C_in, k, k) and bias (C_out,) of a convolution with its norm."""
    return fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


def _after(norm: nn.Module) -> nn.Module:
    """Return what is left of a norm: timm's bring an activation along."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


class FoldedSelfAttention(nn.Module):
    """`SelfAttention` among the positions of each group."""

    def __init__(self, original: SelfAttention) -> None:
        super().__init__()
        self.query = nn.Sequential(*(_folded(part) for part in original.query))
        self.key = nn.Sequential(*(_folded(part) for part in original.key))
        project: Any = _folded(original.project)
        convolution, self.act = project
        self.value = copy.deepcopy(original.value)
        weight, value = convolution.weight.flatten(1), original.value.weight.flatten(1)
        self.value.weight = nn.Parameter((weight @ value)[..., None, None])
        self.value.bias = None
        self.bias = convolution.bias  # (C,)
        if original.value.bias is not None:
            self.bias = nn.Parameter(self.bias + weight @ original.value.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (G, N, C) to (G, N, C)."""
        # Convolutions, as their kernels are the fastest on all CPUs; this is a view.
        image = x[None].permute(0, 3, 1, 2)  # (1, C, G, N), channels last
        parts: tuple[nn.Module, ...] = (self.query, self.key, self.value)
        # (G, N, D), (G, N, D), (G, N, C)
        query, key, value = (part(image).permute(0, 2, 3, 1)[0] for part in parts)
        context = F.scaled_dot_product_attention(query, key, value)  # (G, N, C)
        out: Tensor = self.act(context + self.bias)
        return out


class FoldedInterlacedAttention(nn.Module):
    """`InterlacedAttention`; it works on maps whose channels lie together in memory."""

    def __init__(self, original: InterlacedAttention) -> None:
        super().__init__()
        self.partition = original.partition
        self.long_range = FoldedSelfAttention(original.long_range)
        self.short_range = FoldedSelfAttention(original.short_range)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w), for any h and w."""
        batch, channels, height, width = x.shape
        window_h, window_w = self.partition
        windows_h, windows_w = -(-height // window_h), -(-width // window_w)
        pad_h, pad_w = windows_h * window_h - height, windows_w * window_w - width
        top, left = pad_h // 2, pad_w // 2
        x = x.permute(0, 2, 3, 1)
        x = F.pad(x, (0, 0, left, pad_w - left, top, pad_h - top)).contiguous()  # never `x` itself
        grid = x.view(batch, windows_h, window_h, windows_w, window_w, channels)
        # (B, P_h, P_w, Q_h, Q_w, C): a group for each place in a window
        _attend(self.long_range, grid.permute(0, 2, 4, 1, 3, 5))
        # (B, Q_h, Q_w, P_h, P_w, C): a group for each window
        _attend(self.short_range, grid.permute(0, 1, 3, 2, 4, 5))
        return x[:, top : top + height, left : left + width].permute(0, 3, 1, 2)


def _attend(attention: FoldedSelfAttention, grid: Tensor) -> None:
    """Replace the values of all groups of a grid, (B, G_h, G_w, N_h, N_w, C).

    A group reads and writes its own positions only, so it can be done in place, part by part.
    """
    positions = grid.shape[3] * grid.shape[4]
    if grid.device.type != "cpu" or torch.compiler.is_compiling():
        parts = [grid]
    else:
        step = max(POSITIONS // positions, 1)
        parts = [part for image in grid for row in image for part in row.split(step)]
    for part in parts:
        tokens = part.reshape(-1, positions, grid.shape[-1])  # (G, N, C)
        part.copy_(attention(tokens).reshape(part.shape))
