"""Names of the tensors in each family's files, and weight changes that make the networks identical.

Names are exchanged part by part. Differences in the computation become part of the weights when a
file is converted: the authors' norms scale by ``|w| + 1e-5``, and their last convolution reads
(features, context), where the other families' reads (context, features).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from isanet_zoo.weights.stored import State

COUNTER = "num_batches_tracked"  # of every norm, in the families that count


@dataclass(frozen=True)
class Layout:
    """Names of the tensors in files of one kind."""

    family: str  # that writes such files
    marker: str  # beginning of a key that only such files have
    prefixes: tuple[tuple[str, str], ...] = ()  # (theirs, ours), one to one; the longest applies
    leaves: tuple[tuple[str, str], ...] = ()  # (theirs, ours) of the last part of a key
    counts: bool = True  # norms have a counter of batches
    head: tuple[tuple[str, object], ...] = ()  # fields of the head that differ in such files
    fold: Callable[[State], State] = dict  # changes weights under our names to those we use

    def ours(self, key: str) -> str:
        """Translate a key of the file to this library's name."""
        return _exchange(key, dict(self.prefixes), dict(self.leaves))

    def theirs(self, key: str) -> str:
        """Translate this library's name to the file's key."""
        return _exchange(key, _inverse(self.prefixes), _inverse(self.leaves))

    def translate(self, state: State) -> State:
        """Return the file's tensors as this library names and uses them."""
        state = self.fold({self.ours(key): tensor for key, tensor in state.items()})
        if not self.counts:
            for norm in [key.rpartition(".")[0] for key in state if key.endswith(".running_var")]:
                zero = torch.zeros((), dtype=torch.int64, device="cpu")
                state[f"{norm}.{COUNTER}"] = zero
        return state


def _inverse(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in pairs}


def _exchange(key: str, prefixes: Mapping[str, str], leaves: Mapping[str, str]) -> str:
    """Return a key with its longest known prefix, and its last part, exchanged."""
    parts = key.split(".")
    parts[-1] = leaves.get(parts[-1], parts[-1])
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in prefixes:
            return ".".join([prefixes[prefix], *parts[length:]])
    return ".".join(parts)


def _head(place: str, convolution: str, norm: str) -> Iterator[tuple[str, str]]:
    """Yield the prefixes of a head in the three toolboxes, whose names are mostly the same.

    Args:
        place: what precedes the head's parts.
        convolution: name of the convolution in each part.
        norm: name of its norm.
    """
    parts = {"in_conv": "head.reduce", "out_conv": "head.fuse"}
    for theirs, ours in (("global_relation", "long_range"), ("local_relation", "short_range")):
        block = f"head.attention.{ours}"
        for number in range(2):
            parts[f"{theirs}.query_project.{number}"] = f"{block}.query.{number}"
            parts[f"{theirs}.key_project.{number}"] = f"{block}.key.{number}"
        parts[f"{theirs}.output_project"] = f"{block}.project"
        yield f"{place}{theirs}.value_project", f"{block}.value"
    for theirs, ours in parts.items():
        yield f"{place}{theirs}.{convolution}", f"{ours}.conv"
        yield f"{place}{theirs}.{norm}", f"{ours}.norm"


ZOO = Layout("zoo", marker="head.attention.")

SSSEG = Layout(
    "ssseg",
    marker="backbone_net.",
    prefixes=(
        ("backbone_net", "backbone"),
        ("backbone_net.stem", "backbone.conv1"),
        ("backbone_net.stem.7", "backbone.bn1"),
        *_head("", "0", "1"),
        ("decoder.1", "head.classifier"),
        ("auxiliary_decoder.0", "aux_head.reduce.conv"),
        ("auxiliary_decoder.1", "aux_head.reduce.norm"),
        ("auxiliary_decoder.4", "aux_head.classifier"),
    ),
)

MMSEG = Layout(
    "mmseg",
    marker="decode_head.global_relation.",
    prefixes=(
        ("backbone.stem", "backbone.conv1"),
        ("backbone.stem.7", "backbone.bn1"),
        *_head("decode_head.", "conv", "bn"),
        ("decode_head.conv_seg", "head.classifier"),
        ("auxiliary_head.convs.0.conv", "aux_head.reduce.conv"),
        ("auxiliary_head.convs.0.bn", "aux_head.reduce.norm"),
        ("auxiliary_head.conv_seg", "aux_head.classifier"),
    ),
)

BPKD = replace(MMSEG, family="bpkd")  # trained with mmsegmentation

DEEPEST = 36  # blocks in a stage of any ResNet up to 152

STEM = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))  # of timm's encoders


def _paddle_encoder() -> Iterator[tuple[str, str]]:
    """Yield the prefixes of Paddle's encoder."""
    parts = {f"conv1_{number}": names for number, names in enumerate(STEM, 1)}
    for stage in range(4):
        ours = f"layer{stage + 1}"
        parts[f"bb_{stage}_0.short"] = (f"{ours}.0.downsample.1", f"{ours}.0.downsample.2")
        for block, number in itertools.product(range(DEEPEST), range(3)):
            names = (f"{ours}.{block}.conv{number + 1}", f"{ours}.{block}.bn{number + 1}")
            parts[f"bb_{stage}_{block}.conv{number}"] = names
    for theirs, (convolution, norm) in parts.items():
        yield f"backbone.{theirs}._conv", f"backbone.{convolution}"
        yield f"backbone.{theirs}._batch_norm", f"backbone.{norm}"


PADDLE = Layout(
    "paddle",
    marker="head.global_relation.",
    prefixes=(
        *_paddle_encoder(),
        *_head("head.", "_conv", "_batch_norm"),
        ("head.cls.1", "head.classifier"),
        ("head.aux.0._conv", "aux_head.reduce.conv"),
        ("head.aux.0._batch_norm", "aux_head.reduce.norm"),
        ("head.aux.2", "aux_head.classifier"),
    ),
    leaves=(("_mean", "running_mean"), ("_variance", "running_var")),
    counts=False,
)


def _fold_fuse(state: State) -> State:
    """Reorder the input channels of the fusing convolution to (context, features)."""
    weight = state["head.fuse.conv.weight"]  # (C, 2·C, k, k)
    features, context = weight.chunk(2, dim=1)
    return state | {"head.fuse.conv.weight": torch.cat([context, features], dim=1)}


def _fold_norms(state: State) -> State:
    """Replace the weights of in-place activated batch norms by their scale, ``|w| + 1e-5``."""
    norms = [key.removesuffix("running_var") for key in state if key.endswith(".running_var")]
    scales = {f"{norm}weight": state[f"{norm}weight"].abs() + 1e-5 for norm in norms}
    return _fold_fuse(state | scales)


def _openseg(norm: str) -> Iterator[tuple[str, str]]:
    """Yield the authors' prefixes; `norm` follows the place of a norm in the heads."""
    for number, (convolution, bn) in enumerate(STEM, 1):
        yield f"backbone.resinit.conv{number}", f"backbone.{convolution}"
        yield f"backbone.resinit.bn{number}", f"backbone.{bn}"
    for ours in ("long_range", "short_range"):
        theirs, block = f"isa_head.2.stages.0.{ours}_sa", f"head.attention.{ours}"
        for number in range(2):
            for projection in ("query", "key"):
                part = f"{theirs}.f_{projection}"
                yield f"{part}.{2 * number}", f"{block}.{projection}.{number}.conv"
                yield f"{part}.{2 * number + 1}{norm}", f"{block}.{projection}.{number}.norm"
        yield f"{theirs}.W.0", f"{block}.project.conv"
        yield f"{theirs}.W.1{norm}", f"{block}.project.norm"
        yield f"{theirs}.f_value", f"{block}.value"
    yield "isa_head.0", "head.reduce.conv"
    yield f"isa_head.1{norm}", "head.reduce.norm"
    yield "isa_head.2.conv_bn.0", "head.fuse.conv"
    yield f"isa_head.2.conv_bn.1{norm}", "head.fuse.norm"
    yield "cls_head", "head.classifier"
    yield "dsn_head.0", "aux_head.reduce.conv"
    yield f"dsn_head.1{norm}", "aux_head.reduce.norm"
    yield "dsn_head.3", "aux_head.classifier"


OPENSEG = Layout(
    "openseg",
    marker="isa_head.1.weight",
    prefixes=tuple(_openseg("")),
    counts=False,
    fold=_fold_norms,
)

# The same code, trained with torch's norms.
OPENSEG_TORCH = Layout(
    "openseg",
    marker="isa_head.1.0.weight",
    prefixes=tuple(_openseg(".0")),
    head=(("activation", "relu"),),
    fold=_fold_fuse,
)

LAYOUTS = (ZOO, SSSEG, MMSEG, BPKD, PADDLE, OPENSEG, OPENSEG_TORCH)
