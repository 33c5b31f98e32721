"""The examples run as they are written."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import isanet_zoo

EXAMPLES = Path(isanet_zoo.__file__).parents[1] / "examples"


@pytest.mark.usefixtures("zoo")
def test_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, target = EXAMPLES / "street.jpg", tmp_path / "overlay.png"
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(photo), str(target)])
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    assert "%" in capsys.readouterr().out
    with Image.open(photo) as before, Image.open(target) as after:
        assert before.size == after.size
