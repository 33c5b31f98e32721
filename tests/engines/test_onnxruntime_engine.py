"""Tests of the engine that runs exported files, compared with the torch engine."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from onnx import TensorProto, helper

from isanet_zoo import CheckpointError, EnvironmentProblem, InputError
from isanet_zoo.engines.engine import create_engine
from isanet_zoo.engines.onnxruntime_engine import OnnxruntimeEngine
from isanet_zoo.export.int8 import calibration_inputs
from isanet_zoo.imaging.preprocess import prepare
from tests.engines.exported import PREPROCESS, SIZE, network

TOLERANCE = 1e-4  # of logits


def make_images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return random images as the network's input, (B, 3, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch, 3, height, width), generator=generator)
    return prepare(pixels.to(torch.uint8), PREPROCESS)


@pytest.fixture(scope="module")
def engine(exported: Path) -> OnnxruntimeEngine:
    return OnnxruntimeEngine(exported / "graph.onnx")


@settings(max_examples=20, deadline=None)
@example(batch=2, height=100, width=140, seed=0)
@example(batch=1, height=256, width=341, seed=0)
@example(batch=3, height=64, width=200, seed=0)
@example(batch=1, height=64, width=64, seed=0)
@example(batch=2, height=9, width=70, seed=0)
@example(batch=1, height=1, width=1, seed=0)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 160),
    width=st.integers(1, 160),
    seed=st.integers(0, 9),
)
def test_engines_agree_at_random_sizes(
    engine: OnnxruntimeEngine, batch: int, height: int, width: int, seed: int
) -> None:
    images = make_images(batch, height, width, seed)
    expected = create_engine(network())(images)
    found = engine(images.contiguous(memory_format=torch.channels_last))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 2 * TOLERANCE
    assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def test_engine_has_the_attributes_of_the_network(engine: OnnxruntimeEngine) -> None:
    ours, theirs = engine, create_engine(network())
    for name in ("device", "dtype", "label_set", "preprocess", "resize", "output", "input_size"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_engine_is_safe_from_several_threads(engine: OnnxruntimeEngine) -> None:
    images = [make_images(1, 40 + 9 * n, 120 - 7 * n, n) for n in range(8)]
    expected = [engine(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(engine, 3 * images), 3 * expected, strict=True):
            assert torch.equal(found, alone)


def test_engine_uses_as_many_threads_as_torch(exported: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            options = OnnxruntimeEngine(exported / "graph.onnx")._session.get_session_options()
            assert options.intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)


def test_arena_releases_its_memory_when_the_shape_changes(exported: Path) -> None:
    engine = OnnxruntimeEngine(exported / "graph.onnx")
    entry = "memory.enable_memory_arena_shrinkage"
    with mock.patch.object(engine, "_session") as session:
        session.run.return_value = [np.zeros((1, 5, 8, 8), np.float32)]
        for width in (64, 64, 72, 72, 64):
            engine(make_images(1, 64, width))
    options = [call.args[2] for call in session.run.call_args_list]
    released = [one is not None and one.get_run_config_entry(entry) == "cpu:0" for one in options]
    assert released == [True, False, True, False, True]


def test_pickled_engine_opens_its_file_again(engine: OnnxruntimeEngine) -> None:
    images = make_images(1, 40, 50)
    assert torch.equal(pickle.loads(pickle.dumps(engine))(images), engine(images))


def test_file_with_normalisation_returns_the_logits_of_the_network(exported: Path) -> None:
    engine, images = OnnxruntimeEngine(exported / "pixels.onnx"), make_images(2, *SIZE)
    with torch.no_grad():
        expected = network()(images)
    found = engine(images)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE
    labels = OnnxruntimeEngine(exported / "labels.onnx")
    assert labels.output == "labels"
    assert torch.equal(labels(images).long(), found.argmax(1))


def test_file_for_one_size_refuses_others(exported: Path) -> None:
    engine = OnnxruntimeEngine(exported / "pixels.onnx")
    assert engine.input_size == SIZE
    with pytest.raises(InputError, match=r"pixels.onnx is for images of 96x136 only, .* 96x137"):
        engine(make_images(1, 96, 137))


def test_int8_file_states_its_type_and_agrees_on_most_labels(exported: Path) -> None:
    engine = OnnxruntimeEngine(exported / "int8.onnx")
    assert engine.dtype == torch.int8
    (images, *_) = calibration_inputs(exported / "images", PREPROCESS, None, prepared=True)
    expected, found = create_engine(network())(images), engine(images)
    assert not torch.equal(found, expected)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.8


def _write(path: Path, metadata: dict[str, str], inputs: list[Any], outputs: list[Any]) -> Path:
    """Write a valid ONNX file that returns its inputs."""
    nodes = [
        helper.make_node("Identity", [one.name], [other.name])
        for one, other in zip(inputs, outputs, strict=True)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def _tensor(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def test_foreign_file_is_refused_with_what_is_missing(exported: Path, tmp_path: Path) -> None:
    (entry,) = onnx.load(exported / "graph.onnx").metadata_props
    images, logits = _tensor("images", "b", 3, "h", "w"), _tensor("logits", "b", 3, "h", "w")
    infrared = [_tensor("images", "b", 4, "h", "w")], [_tensor("logits", "b", 4, "h", "w")]
    cases: list[tuple[dict[str, str], Any, Any, str]] = [
        ({}, [images], [logits], "It lacks the metadata `isanet_zoo` with classes"),
        ({entry.key: entry.value}, *infrared, "It lacks the only input `images`"),
        ({entry.key: entry.value}, [images], [_tensor("out", "b", 3, "h", "w")], "single output"),
        ({}, [_tensor("x", 1, 10)], [_tensor("y", 1, 10)], "metadata.*input `images`.*output"),
    ]
    for metadata, inputs, outputs, message in cases:
        path = _write(tmp_path / "foreign.onnx", metadata, inputs, outputs)
        with pytest.raises(InputError, match=f"was not written by isanet_zoo .*{message}"):
            create_engine(path)
    path = _write(tmp_path / "wrong.onnx", {entry.key: "{}"}, [images], [logits])
    with pytest.raises(CheckpointError, match=r"wrong\.onnx: isanet_zoo"):
        create_engine(path)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _page(path: Path) -> None:
    path.write_text("<!doctype html>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty, "is no ONNX file that onnxruntime can run"),
        (_page, "is no ONNX file that onnxruntime can run"),
        (Path.mkdir, "cannot be read: it is a folder"),
        (lambda path: None, "cannot be read: No such file"),
    ],
)
def test_path_without_an_onnx_file_is_refused(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=f"model.onnx {message}"):
        create_engine(tmp_path / "model.onnx")


def test_missing_onnxruntime_is_an_error_with_the_command(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'isanet-zoo\[onnx\]'"):
        create_engine(exported / "graph.onnx")
