"""Public names of the package, and the cost of importing it."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

import isanet_zoo

ROOT = Path(isanet_zoo.__file__).parents[1]


def test_names_at_run_time_equal_those_for_editors() -> None:
    seen = {}
    for node in ast.walk(ast.parse(Path(isanet_zoo.__file__).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isanet_zoo."):
            for alias in node.names:
                if alias.name != "__version__":  # imported, not resolved on first use
                    assert alias.asname == alias.name
                    seen[alias.name] = (node.module or "").removeprefix("isanet_zoo.")
    assert seen == isanet_zoo._HOMES
    assert sorted(isanet_zoo.__all__) == sorted(seen)


@pytest.mark.parametrize("name", isanet_zoo.__all__)
def test_name_can_be_imported_and_is_documented(name: str) -> None:
    assert name in dir(isanet_zoo)
    value = getattr(isanet_zoo, name)
    if getattr(value, "__module__", "").startswith("isanet_zoo"):
        assert value.__doc__
    else:  # a type alias, whose docstring is the statement after it
        module = importlib.import_module(f"isanet_zoo.{isanet_zoo._HOMES[name]}")
        statements = ast.parse(Path(str(module.__file__)).read_text("utf-8")).body
        (after,) = [
            after
            for alias, after in itertools.pairwise(statements)
            if isinstance(alias, ast.AnnAssign) and ast.unparse(alias.target) == name
        ]
        assert isinstance(after, ast.Expr)
        assert isinstance(after.value, ast.Constant)


@pytest.mark.parametrize("name", ["create_model", "download", "list_models", "predict"])
def test_annotations_of_functions_resolve(name: str) -> None:
    assert "return" in typing.get_type_hints(getattr(isanet_zoo, name))


def test_module_names_differ_from_public_names() -> None:
    # Importing a submodule sets it as an attribute of the package, in place of a function.
    modules = {path.stem for path in Path(isanet_zoo.__file__).parent.iterdir()}
    assert not modules & set(isanet_zoo.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'isanet_resnet18'"):
        isanet_zoo.isanet_resnet18  # noqa: B018


def test_listing_and_records_import_no_torch() -> None:
    code = (
        "import sys, json, isanet_zoo;"
        "isanet_zoo.list_models(); isanet_zoo.get_weights('isanet_resnet50os8_voc').trust;"
        "isanet_zoo.ZooError; isanet_zoo.LabelSet;"
        "print(json.dumps([m for m in ('torch', 'timm', 'numpy', 'PIL') if m in sys.modules]))"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == []


def test_timm_that_cannot_be_imported_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[..., None]
) -> None:
    (tmp_path / "timm.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    forget("isanet_zoo", "timm")
    package = importlib.import_module("isanet_zoo")
    assert package is not isanet_zoo
    assert package.list_models()
    with pytest.raises(package.EnvironmentProblem, match="torchvision::nms") as caught:
        package.create_model("isanet_resnet50os8_voc")
    assert "pip install --force-reinstall torch torchvision timm" in str(caught.value)
