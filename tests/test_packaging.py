"""Contents and metadata of the two distributions, of an editable install and of a checkout."""

from __future__ import annotations

import email
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt

import isanet_zoo
from isanet_zoo.manifest.lookup import manifest_path

ROOT = Path(isanet_zoo.__file__).parents[1]

if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("not a checkout", allow_module_level=True)


BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
REPOSITORY = "https://example.org/owner/isanet_zoo"


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the code."""
    return build("wheel", tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def wheel_of_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the built-in model's weights."""
    return build("wheel", tmp_path_factory.mktemp("weights"), ROOT / "camvid")


def test_checkout_has_the_manifest_at_its_top() -> None:
    assert manifest_path() == ROOT / "weights_manifest.json"


def test_wheel_has_all_files_and_lists_models(wheel: Path, tmp_path: Path) -> None:
    assert wheel.stat().st_size < 500 * 1024
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {
        "isanet_zoo/weights_manifest.json",
        "isanet_zoo/py.typed",
        "isanet_zoo/hub/model_card.md.jinja",
        "isanet_zoo/hub/mirror_card.md.jinja",
    } <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"isanet_zoo"}
    assert not any(name.endswith(".safetensors") for name in names)
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
    assert not (source / "camvid").exists()
    assert not list(source.rglob(f"{BUILT_IN}*"))
    for name in ("weights_manifest.json", "hubconf.py", "LICENSE", "tests/reference.py"):
        assert (source / name).is_file(), name
    with zipfile.ZipFile(build("wheel", tmp_path / "again", source)) as archive:
        packed = archive.read("isanet_zoo/weights_manifest.json")
    assert packed == (ROOT / "weights_manifest.json").read_bytes()


def test_editable_install_has_the_manifest_of_its_checkout(tmp_path: Path) -> None:
    checkout, environment = tmp_path / "checkout", tmp_path / "environment"
    shutil.copytree(ROOT / "isanet_zoo", checkout / "isanet_zoo")
    files = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "weights_manifest.json")
    for name in files:
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


# Licences: the code's distribution has none but Apache-2.0


def read_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_licence_of_the_code_is_apache_alone(wheel: Path) -> None:
    metadata = read_metadata(wheel)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    text = str(metadata).partition("\n\n")[0]
    assert "CC-BY-NC" not in text
    assert "ommercial" not in text


def test_weights_are_a_distribution_that_the_package_finds(
    wheel: Path, wheel_of_weights: Path, tmp_path: Path
) -> None:
    metadata = read_metadata(wheel_of_weights)
    assert metadata["License-Expression"] == "CC-BY-NC-4.0"
    assert metadata.get_all("Requires-Dist") is None
    site = tmp_path / "site"
    code = f"import isanet_zoo as z; p = z.get_weights({BUILT_IN!r}).path(); print(p, p.exists())"
    found = []
    for built in (wheel, wheel_of_weights):
        with zipfile.ZipFile(built) as archive:
            archive.extractall(site)
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, cwd=site, capture_output=True, text=True, check=True)
        found.append(run.stdout.split())
    assert found[0] == [str(site / f"camvid/isanet_zoo_camvid/{BUILT_IN}.safetensors"), "False"]
    assert found[1] == [str(site / f"isanet_zoo_camvid/{BUILT_IN}.safetensors"), "True"]
    assert {file.name for file in (site / "isanet_zoo_camvid").iterdir()} >= {
        "NOTICE.md",
        "training.csv",
    }


# Package page


HOOK = SimpleNamespace(**runpy.run_path(str(ROOT / "hatch_build.py")))


def targets(markdown: str) -> list[str]:
    """Return the targets of all links and images."""
    tokens = [token for block in MarkdownIt().parse(markdown) for token in block.children or ()]
    found = (token.attrs.get("href", token.attrs.get("src")) for token in tokens)
    return [str(target) for target in found if target is not None]


@pytest.mark.parametrize("repository", ["", REPOSITORY])
def test_long_description_has_no_relative_link(repository: str) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    before, after = targets(readme), targets(HOOK.long_description(readme, repository))
    relative = [target for target in before if not target.startswith(("https://", "http://", "#"))]
    assert relative
    assert all(target.startswith(("https://", "http://", "#")) for target in after)
    assert len(after) == len(before) - (0 if repository else len(relative))


@given(st.text("ab c", min_size=1), st.text("ab/._", min_size=1))
def test_long_description_makes_links_absolute(text: str, target: str) -> None:
    link = f"[{text}]({target})"
    assert HOOK.long_description(link, REPOSITORY) == f"[{text}]({REPOSITORY}/blob/main/{target})"
    assert HOOK.long_description(f"!{link}", REPOSITORY) == (
        f"![{text}]({REPOSITORY}/raw/main/{target})"
    )
    assert HOOK.long_description(link, "") == text
    assert HOOK.long_description(f"!{link}", "") == ""


def test_project_urls_are_absolute_or_none() -> None:
    assert HOOK.REPOSITORY == "" or HOOK.REPOSITORY.startswith("https://")
    assert HOOK.project_urls("") == {}
    urls = HOOK.project_urls(REPOSITORY)
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(REPOSITORY) for url in urls.values())


def test_package_index_renders_the_descriptions(wheel: Path, wheel_of_weights: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict"]
    command += [str(wheel), str(wheel_of_weights)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == 2
