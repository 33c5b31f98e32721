"""Command `explain`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isanet_zoo import create_model
from isanet_zoo.commands.main import main
from isanet_zoo.inference.predictor import Predictor


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.usefixtures("tiny")
def test_explain_writes_three_maps_and_prints_them(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["explain", str(photo), "--at", "30,20", "-m", "isanet_tiny", "-o", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    files = [out / f"photo.{hop}.png" for hop in ("affinity", "long_range", "short_range")]
    assert printed.out.splitlines() == [str(file) for file in files]
    assert "pixel (30, 20): entropy" in printed.err
    expected = Predictor(create_model("isanet_tiny", pretrained=True)).explain(photo, (30, 20))
    with Image.open(files[0]) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected.overlay()))
    assert main([*command, "--json"]) == 0  # over its own files
    found = json.loads(capsys.readouterr().out)
    assert found["at"] == [30, 20]
    assert found["files"]["affinity"] == str(files[0])
    assert found["entropy"] == pytest.approx(expected.entropy, rel=1e-3)


@pytest.mark.usefixtures("tiny")
def test_explain_of_a_pixel_outside_the_image_fails(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain", str(photo), "-m", "isanet_tiny", "-o", str(tmp_path / "out")]
    assert main([*command, "--at", "80,0"]) == 1
    assert "a pixel of the image of 80 x 60 pixels" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    for text in ("80", "a,b", "1,2,3", "-1,2"):
        with pytest.raises(SystemExit, match="2"):
            main([*command, f"--at={text}"])
        assert "is not a pixel such as 320,200" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_explain_keeps_files_of_other_programs(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "photo.affinity.png"
    mine.write_bytes(b"mine")
    command = ["explain", str(photo), "-m", "isanet_tiny", "-o", str(tmp_path), "--at", "0,0"]
    assert main(command) == 1
    assert "was not written by isanet_zoo" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"
