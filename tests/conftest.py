"""Fixtures: a private cache, reference checkpoints of the published models, a zoo of one model."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from isanet_zoo.manifest import lookup
from isanet_zoo.manifest.config import HeadConfig, NetworkConfig
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights import checkpoints, sources
from isanet_zoo.weights.layouts import SSSEG
from tests import reference

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(torch.get_num_threads() // workers, 1))

# pytest adds its handlers to each logger that does not propagate, and torch describes every graph
# that it traces while this logger has handlers.
logging.getLogger("torch.__trace").propagate = True


@pytest.fixture(autouse=True)
def _private_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's cache, mirrors and network."""
    monkeypatch.setattr(sources, "_unreachable", set())
    monkeypatch.setenv("ISANET_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ISANET_ZOO_OFFLINE", "1")
    monkeypatch.delenv("ISANET_ZOO_MIRROR", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def forget() -> Iterator[Callable[..., None]]:
    """Return a function that makes packages be imported anew, until the end of the test."""
    known = dict(sys.modules)
    forgotten: list[str] = []

    def remove(*packages: str) -> None:
        forgotten.extend(packages)
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            del sys.modules[name]

    yield remove
    remove(*forgotten)
    sys.modules.update(known)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def mirror(shared_folder: Path) -> Path:
    """A folder with reference checkpoints of three models, under their published names."""
    folder = shared_folder / "mirror"
    state: dict[str, torch.Tensor] = {}
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        for name in reference.WITH_VECTORS:
            path = folder / lookup.get_weights(name).filename
            if not path.exists():
                shapes = reference.upstream_shapes(name)
                state = reference.fill(shapes, known=state)
                torch.save({"model": state}, path)
    return folder


@pytest.fixture(scope="session")
def zoo_cache(shared_folder: Path) -> Path:
    """A cache that is kept between tests, so that each of the models is converted once."""
    return shared_folder / "zoo_cache"


@pytest.fixture
def zoo(mirror: Path, zoo_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `pretrained=True` find the reference checkpoints."""
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(mirror))
    monkeypatch.setenv("ISANET_ZOO_CACHE", str(zoo_cache))


@dataclass(frozen=True)
class TinyZoo:
    """A zoo of one small model, `isanet_tiny`.

    Attributes:
        weights: its record in the manifest. Its only source is on a host that does not exist.
        state: the tensors of its published file, under upstream's names.
        published: that file.
        mirror: the folder that contains it.
        manifest: the manifest's file.
    """

    weights: Weights
    state: dict[str, torch.Tensor]
    published: Path
    mirror: Path
    manifest: Path


@pytest.fixture
def small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the built-in model resize images to 200 x 150 pixels instead of 800 x 600."""
    weights = lookup.get_weights("isanet_efficientnet_lite0os8_camvid")
    assert weights.preprocess.resize == (800, 600)
    small = replace(weights, preprocess=replace(weights.preprocess, resize=(200, 150)))
    monkeypatch.setitem(lookup.load_manifest(), weights.name, small)


TINY_NETWORK = NetworkConfig(
    backbone="test_resnet",
    num_classes=5,
    head=HeadConfig(channels=16, key_channels=8, partition=(4, 4), aux_channels=12),
)


@pytest.fixture
def tiny_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyZoo]:
    """Replace the manifest by one with a single small model; its published file is made as well."""
    document = json.loads(lookup.manifest_path().read_text("utf-8"))
    document["label_sets"] = {
        "tiny": {
            "title": "Tiny",
            "names": ["sky", "road, street", "tree", "car", "person"],
            "palette": ["#000000", "#ff0000", "#00ff00", "#0000ff", "#ffffff"],
            "official_ids": [7, 8, 11, 12, 13],
            "ignore_index": 255,
        }
    }
    entry = document["models"]["isanet_resnet50os8_voc"]["weights"]["ssseg"]
    entry |= {
        "dataset": "tiny",
        "network": {
            "backbone": TINY_NETWORK.backbone,
            "num_classes": TINY_NETWORK.num_classes,
            "in_chans": 3,
            "head": vars(TINY_NETWORK.head),
        },
        "preprocess": entry["preprocess"] | {"resize": [128, 64]},
        "filename": "isanet_tiny.pth",
        "sources": ["https://weights.invalid/isanet_tiny.pth"],
        "structure_digest": checkpoints.structure_digest(TINY_NETWORK),
    }
    document["models"] = {"isanet_tiny": {"default": "ssseg", "weights": {"ssseg": entry}}}
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(document))
    monkeypatch.setattr(lookup, "manifest_path", lambda: path)
    lookup.load_manifest.cache_clear()
    specs = checkpoints.structure(TINY_NETWORK, aux_loss=True)
    state = reference.fill({SSSEG.theirs(key): spec.shape for key, spec in specs.items()})
    folder = tmp_path / "mirror"
    folder.mkdir()
    torch.save({"model": state}, folder / "isanet_tiny.pth")
    weights = lookup.get_weights("isanet_tiny")
    yield TinyZoo(weights, state, folder / "isanet_tiny.pth", folder, path)
    lookup.load_manifest.cache_clear()
