"""Tests of the cache of ONNX graphs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isanet_zoo import ISANet, Preprocess
from isanet_zoo.cache import GraphEntry, graph_entries
from isanet_zoo.engines import graphs
from isanet_zoo.engines.graphs import cached_graph
from tests.engines.exported import counted_exports, network
from tests.export.networks import write_images


@pytest.fixture
def exports(exported: Path) -> Iterator[list[dict[str, Any]]]:
    """The options of each export, which is replaced by a copy of a file."""
    with counted_exports(exported / "graph.onnx") as calls:
        yield calls


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _drop_side(path: Path) -> None:
    path.with_suffix(".json").unlink()


def _damage_side(path: Path) -> None:
    path.with_suffix(".json").write_text('{"sha256": 5}')


def test_graph_is_exported_once_and_then_read_from_the_cache(
    exports: list[dict[str, Any]],
) -> None:
    first = cached_graph(network())
    assert cached_graph(copy.deepcopy(network()).train()) == first
    assert len(exports) == 1
    assert exports[0] | {"force": True, "output": "logits_8", "calibrate": None} == exports[0]


@pytest.mark.parametrize("damage", [_flip_bit, _truncate, Path.unlink, _drop_side, _damage_side])
def test_damaged_graph_is_exported_again(
    damage: Callable[[Path], None], exports: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    path = cached_graph(network())
    intact = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.ERROR):
        assert cached_graph(network()) == path
    assert len(exports) == 2
    assert path.read_bytes() == intact
    assert cached_graph(network()) == path
    assert len(exports) == 2


def test_graph_of_other_versions_is_never_used(
    exports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached_graph(network())
    monkeypatch.setattr(graphs, "graph_versions", lambda: "isanet_zoo 9.9, torch 9.9")
    assert cached_graph(network()) != path
    assert len(exports) == 2
    versions = {record.versions for entry in graph_entries() if (record := entry.record())}
    assert len(versions) == 2


def _change_weight(model: ISANet) -> None:
    with torch.no_grad():
        model.head.classifier.bias[0] += 1e-3  # type: ignore[index]


def _exchange_activation(model: ISANet) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.LeakyReLU())


def _change_preprocessing(model: ISANet) -> None:
    model.preprocess = Preprocess(mean=(0, 0, 0), std=(255, 255, 255))


@pytest.mark.parametrize("change", [_change_weight, _exchange_activation, _change_preprocessing])
def test_changed_network_has_another_graph(
    change: Callable[[ISANet], None], exports: list[dict[str, Any]]
) -> None:
    path = cached_graph(network())
    changed = copy.deepcopy(network())
    change(changed)
    assert cached_graph(changed) != path
    assert len(exports) == 2


def test_int8_graph_depends_on_the_images(exports: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    paths = {cached_graph(network()), cached_graph(network(), folder)}
    assert cached_graph(network(), sorted(folder.iterdir())) in paths
    assert len(exports) == 2
    assert exports[1]["calibrate"] == sorted(folder.iterdir())
    arrays = [np.zeros((40, 48, 3), np.uint8), np.zeros((48, 40, 3), np.uint8)]
    for images in (arrays[:1], arrays[1:], iter(arrays)):
        paths.add(cached_graph(network(), images))
    assert len(paths) == len(exports) == 5
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    assert cached_graph(network(), folder) not in paths
    kinds = [record.dtype for entry in graph_entries() if (record := entry.record())]
    assert sorted(kinds) == ["float32"] + 5 * ["int8"]


def test_several_threads_export_a_graph_once(exports: list[dict[str, Any]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: cached_graph(network()), range(4)))
    assert len(paths) == len(exports) == 1


def test_export_that_fails_leaves_no_graph(
    exports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: ISANet, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("isanet_zoo.export.onnx_file.export_onnx", fail)
        with pytest.raises(KeyboardInterrupt):
            cached_graph(network())
    (entry,) = graph_entries()
    assert not GraphEntry.of(entry.name).is_intact()
    assert cached_graph(network()) == entry.model
    assert entry.is_intact()
