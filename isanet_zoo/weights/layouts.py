"""How each family names its tensors, and what is folded into them so that one network serves all.

Names are exchanged part by part. What a family computes otherwise is folded into its weights, once,
when a file is converted: the authors' norms scale by ``|w| + 1e-5``, and they fuse (features,
context) where the others fuse (context, features).
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
    """How files of one kind name their tensors.

    Attributes:
        family: who writes such files.
        marker: how some key starts that only such files have.
        prefixes: (theirs, ours), one to one; the longest that fits counts.
        leaves: (theirs, ours) for the last part of a key.
        counts: whether norms have a counter of batches.
        head: numbers of the head in which such files differ from the rest of their family.
        fold: turns their numbers, under our names, into ours.
    """

    family: str
    marker: str
    prefixes: tuple[tuple[str, str], ...] = ()
    leaves: tuple[tuple[str, str], ...] = ()
    counts: bool = True
    head: tuple[tuple[str, object], ...] = ()
    fold: Callable[[State], State] = dict

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
            norms = [key for key in state if key.endswith(".running_var")]
            for key in norms:
                state[f"{key.rpartition('.')[0]}.{COUNTER}"] = torch.tensor(0)
        return state


def _inverse(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in pairs}


def _exchange(key: str, prefixes: Mapping[str, str], leaves: Mapping[str, str]) -> str:
    parts = key.split(".")
    parts[-1] = leaves.get(parts[-1], parts[-1])
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in prefixes:
            return ".".join([prefixes[prefix], *parts[length:]])
    return ".".join(parts)


def _attention(
    ranges: tuple[str, str], projections: Mapping[str, tuple[str, str]], value: str
) -> tuple[tuple[str, str], ...]:
    """Return the prefixes of both attention blocks.

    Args:
        ranges: their names of the long-range and the short-range block.
        projections: our name of a convolution and its norm -> their two.
        value: their name of the value's projection.
    """
    pairs = []
    for theirs, ours in zip(ranges, ("long_range", "short_range"), strict=True):
        block = f"head.attention.{ours}"
        for projection, (conv, norm) in projections.items():
            pairs.append((f"{theirs}.{conv}", f"{block}.{projection}.conv"))
            pairs.append((f"{theirs}.{norm}", f"{block}.{projection}.norm"))
        pairs.append((f"{theirs}.{value}", f"{block}.value"))
    return tuple(pairs)


ZOO = Layout("zoo", marker="head.attention.")

SSSEG = Layout(
    "ssseg",
    marker="backbone_net.",
    prefixes=(
        ("backbone_net", "backbone"),
        ("backbone_net.stem", "backbone.conv1"),
        ("backbone_net.stem.7", "backbone.bn1"),
        ("in_conv.0", "head.reduce.conv"),
        ("in_conv.1", "head.reduce.norm"),
        *_attention(
            ("global_relation", "local_relation"),
            {
                "query.0": ("query_project.0.0", "query_project.0.1"),
                "query.1": ("query_project.1.0", "query_project.1.1"),
                "key.0": ("key_project.0.0", "key_project.0.1"),
                "key.1": ("key_project.1.0", "key_project.1.1"),
                "project": ("output_project.0", "output_project.1"),
            },
            "value_project",
        ),
        ("out_conv.0", "head.fuse.conv"),
        ("out_conv.1", "head.fuse.norm"),
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
        ("decode_head.in_conv.conv", "head.reduce.conv"),
        ("decode_head.in_conv.bn", "head.reduce.norm"),
        *_attention(
            ("decode_head.global_relation", "decode_head.local_relation"),
            {
                "query.0": ("query_project.0.conv", "query_project.0.bn"),
                "query.1": ("query_project.1.conv", "query_project.1.bn"),
                "key.0": ("key_project.0.conv", "key_project.0.bn"),
                "key.1": ("key_project.1.conv", "key_project.1.bn"),
                "project": ("output_project.conv", "output_project.bn"),
            },
            "value_project",
        ),
        ("decode_head.out_conv.conv", "head.fuse.conv"),
        ("decode_head.out_conv.bn", "head.fuse.norm"),
        ("decode_head.conv_seg", "head.classifier"),
        ("auxiliary_head.convs.0.conv", "aux_head.reduce.conv"),
        ("auxiliary_head.convs.0.bn", "aux_head.reduce.norm"),
        ("auxiliary_head.conv_seg", "aux_head.classifier"),
    ),
)

BPKD = replace(MMSEG, family="bpkd")  # it trained with mmsegmentation

DEEPEST = 36  # blocks in a stage of any ResNet up to 152


def _paddle_encoder() -> Iterator[tuple[str, str]]:
    parts = {  # theirs, with a convolution and a norm in each -> ours of the two
        "conv1_1": ("conv1.0", "conv1.1"),
        "conv1_2": ("conv1.3", "conv1.4"),
        "conv1_3": ("conv1.6", "bn1"),
    }
    for stage in range(4):
        ours = f"layer{stage + 1}"
        parts[f"bb_{stage}_0.short"] = (f"{ours}.0.downsample.1", f"{ours}.0.downsample.2")
        for block, number in itertools.product(range(DEEPEST), range(3)):
            convolution, norm = f"conv{number + 1}", f"bn{number + 1}"
            parts[f"bb_{stage}_{block}.conv{number}"] = (
                f"{ours}.{block}.{convolution}",
                f"{ours}.{block}.{norm}",
            )
    for theirs, (convolution, norm) in parts.items():
        yield f"backbone.{theirs}._conv", f"backbone.{convolution}"
        yield f"backbone.{theirs}._batch_norm", f"backbone.{norm}"


PADDLE = Layout(
    "paddle",
    marker="head.global_relation.",
    prefixes=(
        *_paddle_encoder(),
        ("head.in_conv._conv", "head.reduce.conv"),
        ("head.in_conv._batch_norm", "head.reduce.norm"),
        *_attention(
            ("head.global_relation", "head.local_relation"),
            {
                "query.0": ("query_project.0._conv", "query_project.0._batch_norm"),
                "query.1": ("query_project.1._conv", "query_project.1._batch_norm"),
                "key.0": ("key_project.0._conv", "key_project.0._batch_norm"),
                "key.1": ("key_project.1._conv", "key_project.1._batch_norm"),
                "project": ("output_project._conv", "output_project._batch_norm"),
            },
            "value_project",
        ),
        ("head.out_conv._conv", "head.fuse.conv"),
        ("head.out_conv._batch_norm", "head.fuse.norm"),
        ("head.cls.1", "head.classifier"),
        ("head.aux.0._conv", "aux_head.reduce.conv"),
        ("head.aux.0._batch_norm", "aux_head.reduce.norm"),
        ("head.aux.2", "aux_head.classifier"),
    ),
    leaves=(("_mean", "running_mean"), ("_variance", "running_var")),
    counts=False,
)


def _fold_fuse(state: State) -> State:
    """Let the fusing convolution read (context, features); theirs reads (features, context)."""
    weight = state["head.fuse.conv.weight"]  # (C, 2·C, k, k)
    features, context = weight.chunk(2, dim=1)
    return state | {"head.fuse.conv.weight": torch.cat([context, features], dim=1)}


def _fold_norms(state: State) -> State:
    """Write out the scale of in-place activated batch norms, ``|w| + 1e-5``."""
    norms = [key.removesuffix("running_var") for key in state if key.endswith(".running_var")]
    scales = {f"{norm}weight": state[f"{norm}weight"].abs() + 1e-5 for norm in norms}
    return _fold_fuse(state | scales)


def _openseg(norm: str) -> tuple[tuple[str, str], ...]:
    """Return the authors' prefixes; `norm` is what follows the place of a norm in the heads."""
    stage = "isa_head.2.stages.0"
    return (
        ("backbone.resinit.conv1", "backbone.conv1.0"),
        ("backbone.resinit.bn1", "backbone.conv1.1"),
        ("backbone.resinit.conv2", "backbone.conv1.3"),
        ("backbone.resinit.bn2", "backbone.conv1.4"),
        ("backbone.resinit.conv3", "backbone.conv1.6"),
        ("backbone.resinit.bn3", "backbone.bn1"),
        ("isa_head.0", "head.reduce.conv"),
        (f"isa_head.1{norm}", "head.reduce.norm"),
        *_attention(
            (f"{stage}.long_range_sa", f"{stage}.short_range_sa"),
            {
                "query.0": ("f_query.0", f"f_query.1{norm}"),
                "query.1": ("f_query.2", f"f_query.3{norm}"),
                "key.0": ("f_key.0", f"f_key.1{norm}"),
                "key.1": ("f_key.2", f"f_key.3{norm}"),
                "project": ("W.0", f"W.1{norm}"),
            },
            "f_value",
        ),
        ("isa_head.2.conv_bn.0", "head.fuse.conv"),
        (f"isa_head.2.conv_bn.1{norm}", "head.fuse.norm"),
        ("cls_head", "head.classifier"),
        ("dsn_head.0", "aux_head.reduce.conv"),
        (f"dsn_head.1{norm}", "aux_head.reduce.norm"),
        ("dsn_head.3", "aux_head.classifier"),
    )


OPENSEG = Layout(
    "openseg", marker="isa_head.1.weight", prefixes=_openseg(""), counts=False, fold=_fold_norms
)

# The same code, trained with torch's own norms instead.
OPENSEG_TORCH = Layout(
    "openseg",
    marker="isa_head.1.0.weight",
    prefixes=_openseg(".0"),
    head=(("activation", "relu"),),
    fold=_fold_fuse,
)

LAYOUTS = (ZOO, SSSEG, MMSEG, BPKD, PADDLE, OPENSEG, OPENSEG_TORCH)
