"""torch.hub entry points of a checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isanet_zoo

ROOT = Path(isanet_zoo.__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the files that torch.hub downloads and imports."""
    target = tmp_path / "checkout"
    shutil.copytree(ROOT / "isanet_zoo", target / "isanet_zoo")
    for name in ("hubconf.py", "weights_manifest.json"):
        shutil.copy(ROOT / name, target)
    return target


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


def test_load_without_the_package_installed(checkout: Path, tmp_path: Path) -> None:
    code = f"""
import importlib.abc, importlib.machinery, sys, torch

class OnlyInTheCheckout(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "isanet_zoo":
            return None
        if {str(checkout)!r} not in sys.path:
            raise ModuleNotFoundError(name)
        return importlib.machinery.PathFinder.find_spec(name, [{str(checkout)!r}])

sys.meta_path.insert(0, OnlyInTheCheckout())
try:
    import isanet_zoo
except ModuleNotFoundError:
    name = "isanet_resnet50os8_voc"
    model = torch.hub.load({str(checkout)!r}, name, source="local", num_classes=3)
with torch.no_grad():
    print(tuple(model.eval()(torch.zeros(1, 3, 64, 64)).shape))
image = torch.zeros(3, 40, 50, dtype=torch.uint8)
print(sys.modules["isanet_zoo"].predict(model, image).labels.shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["(1, 3, 64, 64)", "(40, 50)"]


def test_load_pretrained_equals_the_factory(
    checkout: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(mirror))
    code = f"""
import sys, torch
name = "isanet_resnet50os8_voc"
model = torch.hub.load({str(checkout)!r}, name, source="local", pretrained=True)
torch.save(model.state_dict(), "loaded.pth")
print(sys.modules["isanet_zoo"].__file__)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == checkout / "isanet_zoo" / "__init__.py"
    loaded = torch.load(tmp_path / "loaded.pth")
    expected = isanet_zoo.isanet_resnet50os8_voc(pretrained=True).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
