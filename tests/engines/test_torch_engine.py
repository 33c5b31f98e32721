"""Tests of the torch engine: threads, hooks, and the network that it was made from."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from isanet_zoo.engines import cuda, torch_engine
from isanet_zoo.engines.cuda_graphs import GraphedForward
from isanet_zoo.engines.depthwise import DepthwiseConv2d, speed_up_depthwise
from isanet_zoo.engines.engine import DTYPES, create_engine
from isanet_zoo.network.isanet import ISANet
from tests.engines.networks import make_network, relative


@torch.no_grad()
def logits_of(network: ISANet, images: Tensor) -> Tensor:
    return copy.deepcopy(network).eval().forward_logits(images)


@pytest.mark.parametrize("dtype", DTYPES)
def test_engine_computes_the_logits_and_keeps_the_network_unchanged(dtype: torch.dtype) -> None:
    network = make_network().train()
    before = copy.deepcopy(network.state_dict())
    engine = create_engine(network, dtype=dtype)
    images = torch.randn(2, 3, 64, 90)
    with torch.autocast("cpu", torch.bfloat16):
        logits = engine(images)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 7, 8, 12)
    expected = logits_of(network, images)
    assert relative(logits, expected) < (2e-5 if dtype == torch.float32 else 0.05)
    assert network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_engine_has_the_classes_and_rules_of_the_network() -> None:
    network = make_network()
    engine = create_engine(network, dtype=torch.bfloat16)
    assert (engine.name, engine.device, engine.dtype) == (
        "torch",
        torch.device("cpu"),
        torch.bfloat16,
    )
    assert (engine.label_set, engine.preprocess) == (network.label_set, network.preprocess)
    assert engine.resize == network.config.head.resize


def test_engine_of_a_network_in_training_on_a_cpu_folds_its_depthwise_layers() -> None:
    network = make_network("mobilenetv3_small_050")
    images = torch.randn(1, 3, 64, 72)
    expected = logits_of(network, images)
    speed_up_depthwise(network)
    layers = sum(isinstance(module, DepthwiseConv2d) for module in network.modules())
    assert relative(create_engine(network)(images), expected) < 2e-5
    assert sum(isinstance(module, DepthwiseConv2d) for module in network.modules()) == layers > 0


def test_engine_of_an_encoder_with_hooks_may_be_shared_by_threads() -> None:
    network = make_network()
    # It stores its maps on the module, where several threads would overwrite them.
    network.backbone = timm.create_model(
        "test_resnet",
        features_only=True,
        output_stride=8,
        out_indices=(-2, -1),
        feature_cls="hook",
    ).eval()
    images = [torch.randn(1, 3, 33 + 8 * index, 40) for index in range(6)]
    expected = [logits_of(network, one) for one in images]
    engine = create_engine(network)
    with ThreadPoolExecutor(4) as pool:
        for actual, alone in zip(pool.map(engine, 10 * images), 10 * expected, strict=True):
            assert actual.shape == alone.shape
            assert relative(actual, alone) < 2e-5


def test_engine_does_not_depend_on_the_default_device_and_type() -> None:
    network, images = make_network(), torch.randn(1, 3, 64, 72)
    expected = create_engine(network)(images)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(create_engine(network)(images), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("kind", ["graphs", "hooks", "compiled"])
def test_copy_of_an_engine_has_new_graphs_and_locks(
    kind: str, copied: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = make_network(), torch.randn(1, 3, 40, 48)
    if kind == "hooks":
        network.register_forward_hook(print_nothing)
    compiles: list[Any] = []

    def compile_(forward: Any) -> Any:
        compiles.append(forward)
        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    for name in ("current", "graph_pool"):
        monkeypatch.setattr(cuda, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "Graph", lambda function, images, pool: function)
    engine: Any = create_engine(network, compile=kind == "compiled")
    if kind == "graphs":  # what the engine has on a GPU
        monkeypatch.setattr(torch_engine, "uses_graphs", lambda device: True)
        engine._connect()
    expected = [engine(images) for _ in range(3)]
    again = copied(engine)
    assert (again.name, again.device, again.dtype) == (engine.name, engine.device, engine.dtype)
    assert (again.label_set, again.preprocess) == (engine.label_set, engine.preprocess)
    for _ in range(3):
        assert torch.equal(again(images), expected[0])
    assert again.network is not engine.network
    assert again._forward is not engine._forward
    assert again._turn is not engine._turn or kind != "hooks"
    assert isinstance(again._forward, GraphedForward) == (kind == "graphs")
    assert len(compiles) == (2 if kind == "compiled" else 0)


def print_nothing(*_: object) -> None:
    """A hook that can be pickled."""


def test_folded_network_compiles_to_one_graph() -> None:
    network, images = make_network(), torch.randn(2, 3, 64, 80)
    folded = create_engine(network).network  # type: ignore[attr-defined]
    compiled: Any = torch.compile(folded.forward_logits, fullgraph=True, backend="eager")
    with torch.inference_mode():
        logits: Tensor = compiled(images)
        assert relative(logits, logits_of(network, images)) < 2e-5
