"""The README's table, code, commands and links."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import isanet_zoo
from isanet_zoo.commands.main import main, make_parser
from isanet_zoo.manifest.lookup import load_manifest
from tests import reference

ROOT = Path(isanet_zoo.__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def test_table_of_models_is_the_manifest_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table in README, "put the output of `isanet-zoo list --markdown` there"
    assert len(table.splitlines()) == 2 + len(load_manifest())


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = reference.DATA / "images" / "home.jpg"
    (tmp_path / "photos").mkdir()
    for target in ("photo.jpg", "photos/1.jpg", "photos/2.jpg"):
        shutil.copy(picture, tmp_path / target)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace('load(".",', f"load({str(ROOT)!r},"), "README.md", "exec"), {})


def test_recipes_are_short() -> None:
    assert max(len(code.strip().splitlines()) for code in PYTHON) <= 10


def test_commands_are_understood() -> None:
    lines = [line for block in SHELL for line in block.splitlines()]
    commands = [line.partition("isanet-zoo ")[2] for line in lines if "isanet-zoo " in line]
    assert len(commands) == 15
    for command in commands:
        make_parser().parse_args(shlex.split(command))


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_test_command_is_what_continuous_integration_runs() -> None:
    assert "<!-- tests -->\n```bash\npip install -e '.[dev]' && pytest\n```" in README
    assert "/<!-- tests -->/" in (ROOT / ".ci" / "run").read_text("utf-8")
