"""Names of tensors are exchanged one to one, and changed weights compute the same."""

from __future__ import annotations

import pytest
import torch

from isanet_zoo.manifest.lookup import load_manifest
from isanet_zoo.weights import checkpoints
from isanet_zoo.weights.layouts import (
    BPKD,
    COUNTER,
    LAYOUTS,
    MMSEG,
    OPENSEG,
    OPENSEG_TORCH,
    PADDLE,
    SSSEG,
    Layout,
)
from tests import reference

ENTRIES = [weights for weights in load_manifest().values() if weights.family != "zoo"]


@pytest.mark.parametrize("weights", ENTRIES, ids=lambda weights: weights.name)
def test_keys_and_shapes_equal_those_of_the_publisher(weights: object) -> None:
    assert isinstance(weights, type(ENTRIES[0]))
    backbone = weights.model.split("_")[1].removesuffix("os8")
    published = reference.shapes(weights.family, backbone, weights.num_classes)
    layout = next(layout for layout in LAYOUTS if layout.family == weights.family)
    ours = checkpoints.structure(weights.network, aux_loss=True)
    if not layout.counts:
        ours = {key: spec for key, spec in ours.items() if not key.endswith(COUNTER)}
    assert {layout.theirs(key): spec.shape for key, spec in ours.items()} == published
    assert {layout.ours(key) for key in published} == set(ours)


def test_names_of_the_authors_code_with_torch_norms_equal_its_table() -> None:
    network = next(weights.network for weights in ENTRIES if weights.family == "openseg")
    published = reference.shapes("openseg_torchbn", "resnet101", 19)
    ours = checkpoints.structure(network, aux_loss=True)
    assert {OPENSEG_TORCH.theirs(key): spec.shape for key, spec in ours.items()} == published


def test_marker_occurs_in_one_layout_alone() -> None:
    """BPKD and mmsegmentation have the same names."""
    tables = {
        "ssseg": [SSSEG], "mmseg": [MMSEG, BPKD], "bpkd": [MMSEG, BPKD], "paddle": [PADDLE],
        "openseg": [OPENSEG], "openseg_torchbn": [OPENSEG_TORCH],
    }  # fmt: skip
    for table, layouts in tables.items():
        keys = reference.shapes(table, "resnet101", 19)
        assert [o for o in LAYOUTS if any(key.startswith(o.marker) for key in keys)] == layouts


@pytest.mark.parametrize("layout", [OPENSEG, OPENSEG_TORCH])
def test_translated_fusion_of_the_authors_computes_the_same(layout: Layout) -> None:
    features, context = torch.rand(1, 3, 5, 5), torch.rand(1, 3, 5, 5)
    theirs = torch.rand(4, 6, 1, 1)
    key = layout.theirs("head.fuse.conv.weight")
    ours = layout.translate({key: theirs})["head.fuse.conv.weight"]
    expected = torch.conv2d(torch.cat([features, context], 1), theirs)
    found = torch.conv2d(torch.cat([context, features], 1), ours)
    torch.testing.assert_close(found, expected)


def test_translated_in_place_norms_scale_by_the_absolute_weight() -> None:
    stem = OPENSEG.theirs("head.reduce.norm")
    norm = {"weight": torch.tensor([-2.0, 0.0, 3.0]), "running_var": torch.ones(3)}
    state = {f"{stem}.{key}": value for key, value in norm.items()}
    state[OPENSEG.theirs("head.fuse.conv.weight")] = torch.zeros(1, 2, 1, 1)
    ours = OPENSEG.translate(state)
    expected = torch.tensor([2.0, 0.0, 3.0]) + 1e-5
    assert torch.equal(ours["head.reduce.norm.weight"], expected)
    assert torch.equal(norm["weight"], torch.tensor([-2.0, 0.0, 3.0]))
    assert ours[f"head.reduce.norm.{COUNTER}"] == 0
    torch_norm = OPENSEG_TORCH.theirs("head.reduce.norm.weight")
    fuse = {OPENSEG_TORCH.theirs("head.fuse.conv.weight"): torch.zeros(1, 2, 1, 1)}
    kept = OPENSEG_TORCH.translate({torch_norm: norm["weight"]} | fuse)
    assert torch.equal(kept["head.reduce.norm.weight"], norm["weight"])


def test_statistics_of_paddle_are_renamed_and_counters_are_zero() -> None:
    state = {"head.in_conv._batch_norm._variance": torch.ones(2)}
    assert PADDLE.translate(state).keys() == {
        "head.reduce.norm.running_var",
        f"head.reduce.norm.{COUNTER}",
    }
