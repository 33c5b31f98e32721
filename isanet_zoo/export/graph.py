"""The graph of an exported file, and its trace.

Letters in shapes: B batch, C channels, K classes, D key channels, H W image, h w feature map,
P places in a window, Q windows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from isanet_zoo.errors import EnvironmentProblem
from isanet_zoo.imaging.preprocess import prepare
from isanet_zoo.network import backbones
from isanet_zoo.network.attention import InterlacedAttention, SelfAttention
from isanet_zoo.network.isanet import ISANet

Output: TypeAlias = Literal["logits", "labels", "logits_8"]

OPSET = 18
TESTED_TORCH = "2.15"
AXES = {0: "batch", 2: "height", 3: "width"}  # of the input of a dynamic file
OUTPUT_AXES: dict[Output, dict[int, str]] = {
    "logits": AXES,
    "labels": {0: "batch", 1: "height", 2: "width"},
    "logits_8": {0: "batch", 2: "rows", 3: "columns"},
}


class Graph(nn.Module):
    """The computation of the file, from its input to its output."""

    def __init__(
        self,
        network: ISANet,
        output: Output,
        preprocess: bool,
        groups: Sequence[Sequence[int]] | None = None,  # of classes that are merged
    ) -> None:
        super().__init__()
        self.groups = groups
        self.network = network
        self.output = output
        self.preprocess = preprocess
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to the output: see `logits`, or labels (B, H, W)."""
        logits = self.logits(images)
        return logits.argmax(1).to(torch.uint8) if self.output == "labels" else logits

    def logits(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, K, H, W) float32, or (B, K, h, w) for the output `logits_8`.

        K is the number of groups if there are some. The softmax of merged logits is the sum of the
        probabilities of their classes.
        """
        size = (images.shape[-2], images.shape[-1])
        if self.preprocess:
            images = prepare(images, self.network.preprocess, resize=False)
        logits = self.network.forward_logits(images.to(self.dtype))  # (B, K, h, w)
        logits = logits.float()
        if self.output != "logits_8":
            logits = self.network.resize(logits, size)
        if self.groups is None:
            return logits
        return torch.stack([logits[:, list(group)].logsumexp(1) for group in self.groups], 1)


class _Attention(SelfAttention):
    """`SelfAttention` in basic operators, with the same parameters.

    The exporter supports the fused operator for four dimensions only.
    """

    def __init__(self, original: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.query, self.key, self.value = original.query, original.key, original.value
        self.project = original.project

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, h·w, D)
        key = self.key(x).flatten(2)  # (B, D, h·w)
        value = self.value(x).flatten(2)  # (B, C, h·w)
        weights = (query * query.shape[-1] ** -0.5 @ key).softmax(-1)  # (B, h·w, h·w)
        out: Tensor = self.project((value @ weights.transpose(1, 2)).reshape(x.shape))
        return out


class _InterlacedAttention(InterlacedAttention):
    """`InterlacedAttention` with the same parameters, for runtimes.

    They transpose two neighbouring axes many times faster than six axes in any order.
    """

    def __init__(self, original: InterlacedAttention) -> None:
        nn.Module.__init__(self)
        self.partition = original.partition
        self.long_range = _Attention(original.long_range)
        self.short_range = _Attention(original.short_range)

    def to_places(self, x: Tensor, windows_h: int, windows_w: int) -> Tensor:
        """Map (B, C, h, w) to (B·P_h·P_w, C, Q_h, Q_w)."""
        batch, channels = x.shape[:2]
        window_h, window_w = self.partition
        x = x.reshape(batch, channels * windows_h, window_h, windows_w * window_w)
        x = x.transpose(1, 2)  # (B, P_h, C·Q_h, w)
        x = x.reshape(batch * window_h, channels * windows_h * windows_w, window_w)
        x = x.transpose(1, 2)  # (B·P_h, P_w, C·Q)
        return x.reshape(-1, channels, windows_h, windows_w)

    def to_windows(self, x: Tensor, windows_h: int, windows_w: int) -> Tensor:
        """Map (B·P_h·P_w, C, Q_h, Q_w) to (B·Q_h·Q_w, C, P_h, P_w)."""
        channels = x.shape[1]
        places = self.partition[0] * self.partition[1]
        x = x.reshape(-1, places * channels, windows_h * windows_w)
        x = x.transpose(1, 2)  # (B, Q, P·C)
        x = x.reshape(-1, places, channels).transpose(1, 2)  # (B·Q, C, P)
        return x.reshape(-1, channels, *self.partition)


def for_onnx(graph: Graph, dtype: torch.dtype) -> Graph:
    """Return a copy in which every operator has a counterpart in ONNX."""
    graph = copy.deepcopy(graph)
    for parent in list(graph.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InterlacedAttention):
                setattr(parent, name, _InterlacedAttention(child))
    backbones.replace_same_padding(graph.network.backbone)
    graph.network.to(dtype)
    graph.dtype = dtype
    return graph.eval()


def trace(graph: Graph, images: Tensor, dynamic: bool) -> Any:
    """Return the graph as an ONNX model.

    Args:
        graph: see `for_onnx`.
        images: the input to trace.
        dynamic: leave batch, height and width open.

    Raises:
        EnvironmentProblem: this version of torch cannot export the network.
    """
    axes = dict.fromkeys(AXES, torch.export.Dim.DYNAMIC) if dynamic else None
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                graph,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(axes,),
                input_names=["images"],
                output_names=[graph.output],
                verbose=False,
            )
    except RuntimeError as error:  # the base class of the exporter's errors
        cause = error.__cause__ or error
        raise EnvironmentProblem(
            f"torch {torch.__version__} cannot export this network "
            f"({str(cause).splitlines()[0]}); the export is tested with torch {TESTED_TORCH}: "
            "pip install --upgrade torch torchvision"
        ) from error
    assert program is not None
    proto = program.model_proto
    # The exporter stores paths and lines of source files on this machine.
    for item in (*proto.graph.node, *proto.graph.input, *proto.graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    del proto.graph.value_info[:]  # runtimes infer them
    for value, names in (
        (proto.graph.input[0], AXES),
        (proto.graph.output[0], OUTPUT_AXES[graph.output]),
    ):
        sides = value.type.tensor_type.shape.dim
        for axis, name in names.items():
            if sides[axis].dim_param:
                sides[axis].dim_param = name
    return proto
