"""torch.hub entry points of a checkout."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import isanet_zoo
from tests.processes import call

ROOT = Path(isanet_zoo.__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the files that torch.hub downloads and imports."""
    target = tmp_path / "checkout"
    for folder in ("isanet_zoo", "camvid"):
        shutil.copytree(ROOT / folder, target / folder)
    for name in ("hubconf.py", "weights_manifest.json"):
        shutil.copy(ROOT / name, target)
    return target


class OnlyInTheCheckout(importlib.abc.MetaPathFinder):
    """Finds isanet_zoo while torch.hub has the checkout in `sys.path`, and nowhere else."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = str(checkout)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "isanet_zoo_camvid":  # not installed either
            return importlib.machinery.ModuleSpec(name, None)
        if name != "isanet_zoo":
            return None
        if self.checkout not in sys.path:
            raise ModuleNotFoundError(name)
        return importlib.machinery.PathFinder.find_spec(name, [self.checkout])


def load(checkout: Path, name: str, **options: Any) -> Any:
    """Return `torch.hub.load` of a checkout, where the package is not installed.

    Call it in a separate process: it replaces the package by that of the checkout.
    """
    sys.meta_path.insert(0, OnlyInTheCheckout(checkout))
    for module in [name for name in sys.modules if name.startswith("isanet_zoo")]:
        del sys.modules[module]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("isanet_zoo")
    model = torch.hub.load(str(checkout), name, source="local", **options)  # type: ignore[no-untyped-call]
    assert sys.modules["isanet_zoo"].__file__ == str(checkout / "isanet_zoo" / "__init__.py")
    assert str(checkout) not in sys.path
    return model


def sizes_of_results(checkout: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the logits and of the labels of a model of three classes."""
    model = load(checkout, "isanet_resnet50os8_voc", num_classes=3)
    with torch.no_grad():
        logits = model.eval()(torch.zeros(1, 3, 64, 64))
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    package: Any = sys.modules["isanet_zoo"]
    return tuple(logits.shape), package.predict(model, image).labels.shape


def built_in_tensors(checkout: Path) -> dict[str, NDArray[Any]]:
    """Return the parameters and buffers of the built-in model, whose weights are the checkout's."""
    model = load(checkout, "isanet_efficientnet_lite0os8_camvid", pretrained=True)
    assert model.weights.path().is_relative_to(checkout)
    return {key: tensor.numpy() for key, tensor in model.state_dict().items()}


def test_list_returns_the_factories_only(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # torch.hub's folder of downloads, so that nothing is downloaded.
    shutil.copytree(checkout, tmp_path / "hub" / "someone_isanet_zoo_main")
    names = torch.hub.list(  # type: ignore[no-untyped-call]
        "someone/isanet_zoo:main", skip_validation=True, trust_repo=True
    )
    assert sorted(names) == sorted(n for n in isanet_zoo.__all__ if n.startswith("isanet_"))


def test_load_without_the_package_installed(checkout: Path) -> None:
    assert call(sizes_of_results, checkout) == ((1, 3, 64, 64), (40, 50))


def test_load_pretrained_equals_the_factory(checkout: Path) -> None:
    loaded = call(built_in_tensors, checkout)
    expected = isanet_zoo.isanet_efficientnet_lite0os8_camvid(pretrained=True).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[key], expected[key].numpy()) for key in expected)
