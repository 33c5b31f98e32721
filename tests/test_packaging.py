"""Contents of wheel, sdist, editable install and checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import isanet_zoo
from isanet_zoo.manifest.lookup import manifest_path

ROOT = Path(isanet_zoo.__file__).parents[1]

if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("not a checkout", allow_module_level=True)


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


def test_checkout_has_the_manifest_at_its_top() -> None:
    assert manifest_path() == ROOT / "weights_manifest.json"


def test_wheel_has_all_files_and_lists_models(tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path / "dist")
    assert wheel.stat().st_size < 15e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {
        "isanet_zoo/weights_manifest.json",
        "isanet_zoo/py.typed",
        "isanet_zoo/embedded/NOTICE.md",
        "isanet_zoo/hub/model_card.md.jinja",
        "isanet_zoo/hub/mirror_card.md.jinja",
        "isanet_zoo/embedded/isanet_efficientnet_lite0os8_camvid.safetensors",
    } <= names
    assert not any(name.startswith(("tests", "examples", "benchmarks")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    installed = subprocess.run(
        [sys.executable, "-c", "import isanet_zoo as z; print(z.__file__, len(z.list_models()))"],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    count = str(len(isanet_zoo.list_models()))
    assert installed.split() == [str(tmp_path / "site" / "isanet_zoo" / "__init__.py"), count]


def test_sdist_has_the_tests_and_builds_a_wheel(tmp_path: Path) -> None:
    sdist = build("sdist", tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("isanet_zoo-*")
    for name in ("weights_manifest.json", "hubconf.py", "LICENSE", "tests/reference.py"):
        assert (source / name).is_file(), name
    wheel = build("wheel", tmp_path / "again", source)
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read("isanet_zoo/weights_manifest.json")
    assert packed == (ROOT / "weights_manifest.json").read_bytes()


def test_editable_install_has_the_manifest_of_its_checkout(tmp_path: Path) -> None:
    checkout, environment = tmp_path / "checkout", tmp_path / "environment"
    shutil.copytree(ROOT / "isanet_zoo", checkout / "isanet_zoo")
    for name in ("pyproject.toml", "README.md", "LICENSE", "weights_manifest.json"):
        shutil.copy(ROOT / name, checkout)
    venv.create(environment)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    command = [sys.executable, "-m", "pip", "install", *options, "--prefix", str(environment)]
    subprocess.run([*command, "--editable", str(checkout)], check=True, capture_output=True)
    (python,) = environment.glob("*/python")
    code = "from isanet_zoo.manifest import lookup; print(lookup.manifest_path())"
    found = subprocess.run(
        [python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert Path(found.strip()) == checkout / "weights_manifest.json"
