"""The command: data on stdout, all else on stderr, and an exit status that can be trusted."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isanet_zoo import ISANet
from isanet_zoo.cache import CacheEntry
from isanet_zoo.commands.main import main, make_parser
from isanet_zoo.inference import predictor
from isanet_zoo.manifest import lookup
from tests import reference
from tests.conftest import TinyZoo

HOME = reference.DATA / "pictures" / "home.jpg"


@pytest.fixture
def tiny(tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch) -> TinyZoo:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    return tiny_zoo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three good pictures and two bad ones."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(HOME) as home:
        home.save(folder / "a.jpg")
        home.resize((64, 48)).save(folder / "b.png")
        home.resize((60, 50)).save(folder / "c.PNG")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:2000])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("left alone")
    return folder


def test_list_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "*resnet50*", "--dataset", "voc"]) == 0
    header, *rows = (re.split(" {2,}", row) for row in capsys.readouterr().out.splitlines())
    assert header == [
        "name", "by", "classes", "params M", "crop", "schedule", "mIoU", "ms+flip", "trust"
    ]  # fmt: skip
    own = "isanet_resnet50os8_voc"
    assert [(name, by, miou, multi) for name, by, *_, miou, multi, _ in rows] == [
        (own, "ssseg", "76.99", "-"),
        (f"{own}.mmseg_512x512_20k", "mmseg", "76.78", "77.79"),
        (f"{own}.mmseg_512x512_40k", "mmseg", "76.20", "77.22"),
        (f"{own}.paddle_512x512_40k", "paddle", "79.69", "80.54"),
    ]
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 28
    assert entries[-1]["metrics"][0]["reproduced"] is None


def test_info_names_what_is_known_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "isanet_resnet101os8_cityscapes"]) == 0
    out = capsys.readouterr().out
    assert "sha256: not known" in out
    assert "value: 80.58" in out
    assert "reproduced: not known" in out
    assert "trust: unverified" in out
    assert "Apache-2.0" in out
    assert "pan.baidu.com" in out
    assert main(["info", "isanet_resnet101os8_cityscapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label_set"]["official_ids"][0] == 7


def test_unknown_name_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "isanet_resnet50_voc"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("isanet-zoo: error: no model is called 'isanet_resnet50_voc'")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["fly"], ["download"], ["predict"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_download_prints_paths_and_goes_on_past_failures(
    tiny: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "nonsense", "isanet_tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tiny.weights.path())]
    assert "nonsense" in captured.err
    assert "isanet_tiny.pth" in captured.err  # the progress bar
    assert main(["download", "--all"]) == 0
    assert capsys.readouterr().err == "isanet-zoo: isanet_tiny: pinned weights\n"  # no bar


def test_offline_failure_says_the_ways_out(
    tiny_zoo: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "isanet_tiny"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("isanet-zoo: error: isanet_tiny.pth is not on this machine")  # no bar
    assert "ISANET_ZOO_OFFLINE" in err
    assert "ISANET_ZOO_MIRROR" in err
    assert str(tiny_zoo.weights.path().with_name("isanet_tiny.pth")) in err


@pytest.mark.usefixtures("zoo")
def test_photo_becomes_an_index_png_and_an_overlay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "isanet_resnet50os8_ade20k"
    assert main(["predict", str(HOME), "-m", name, "-o", str(tmp_path / "out")]) == 0
    labels, overlay = (tmp_path / "out" / f"home.{part}.png" for part in ("labels", "overlay"))
    assert capsys.readouterr().out.splitlines() == [str(labels), str(overlay)]
    ade = lookup.get_weights(name).label_set
    with Image.open(labels) as index, Image.open(overlay) as picture, Image.open(HOME) as photo:
        assert index.size == picture.size == photo.size
        assert index.mode == "P"
        palette = np.array(index.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette[:150], ade.colours)
        ids = np.asarray(index)
        blend = (np.asarray(photo.convert("RGB")) + palette[ids]) / 2
        difference = np.abs(np.asarray(picture) - blend).max(axis=2)
    assert (difference[200:, 200:] <= 0.5).all()  # outside the legend
    assert (difference[:100, :100] > 100).any()  # inside it


@pytest.mark.usefixtures("tiny")
def test_folder_run_goes_on_past_bad_files(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(photos), "-m", "isanet_tiny", "-o", str(out)]) == 1
    captured = capsys.readouterr()
    expected = [out / f"{stem}.{part}.png" for stem in "abc" for part in ("labels", "overlay")]
    assert captured.out.splitlines() == [str(path) for path in expected]
    assert sorted(out.iterdir()) == expected
    assert "2 of 5 pictures could not be used:" in captured.err
    assert str(photos / "broken.jpg") in captured.err
    assert str(photos / "text.jpg") in captured.err
    assert "5/5" in captured.err  # the progress bar


@pytest.mark.usefixtures("tiny")
def test_predict_options_reach_the_predictor(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    class Watched(predictor.Predictor):
        def __init__(self, model: ISANet, **options: Any) -> None:
            seen.update(options)
            super().__init__(model, **options)

    monkeypatch.setattr(predictor, "Predictor", Watched)
    arguments = ["predict", str(photos / "a.jpg"), str(photos / "b.png"), "-m", "isanet_tiny"]
    options = ["--flip", "--scales", "0.5", "1", "--tile", "48", "--overlap", "0.5"]
    options += ["--dtype", "bfloat16"]
    more = ["--confidence", "--batch-size", "2", "--device", "cpu", "--no-resize", "--json"]
    assert main([*arguments, *options, *more, "-o", str(tmp_path)]) == 0
    assert seen == {
        "device": "cpu",
        "dtype": torch.bfloat16,
        "batch_size": 2,
        "scales": [0.5, 1.0],
        "flip": True,
        "tile": 48,
        "overlap": 0.5,
        "resize": False,
        "confidence": True,
    }
    first, second = json.loads(capsys.readouterr().out)["results"]
    assert first["image"] == str(photos / "a.jpg")
    assert sum(entry["fraction"] for entry in first["classes"]) == pytest.approx(1)
    assert {"id", "name", "fraction"} == second["classes"][0].keys()
    with Image.open(tmp_path / "b.confidence.png") as confidence:
        assert (confidence.mode, confidence.size) == ("L", (64, 48))


@pytest.mark.usefixtures("tiny_zoo")
def test_results_never_lie_among_the_pictures(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(photos.iterdir())
    assert main(["predict", str(photos), "-m", "isanet_tiny", "-o", str(photos)]) == 1
    assert "is the folder of the pictures" in capsys.readouterr().err
    assert sorted(photos.iterdir()) == before


@pytest.mark.usefixtures("tiny")
def test_a_picture_that_is_named_twice_is_segmented_once(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(photos / "b.png")
    assert main(["predict", picture, picture, "-m", "isanet_tiny", "-o", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.usefixtures("tiny")
def test_finished_pictures_are_printed_before_a_later_failure(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = Image.Image.save

    def full_disk(image: Image.Image, target: Path) -> None:
        if target.name.startswith("b."):
            raise OSError(28, "No space left on device")
        save(image, target)

    monkeypatch.setattr(Image.Image, "save", full_disk)
    assert main(["predict", str(photos), "-m", "isanet_tiny", "-o", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "b.labels.png cannot be written" in captured.err
    assert "No space left" in captured.err


@pytest.mark.usefixtures("tiny")
def test_results_of_equal_names_are_kept_apart(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(HOME) as home:
        home.resize((40, 30)).save(photos / "a.png")
    pictures = [str(photos / name) for name in ("a.jpg", "a.png")]
    assert main(["predict", *pictures, "-m", "isanet_tiny", "-o", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.labels.png")} == {
        "a.jpg.labels.png",
        "a.png.labels.png",
    }
    (photos / "more").mkdir()
    (photos / "more" / "a.png").write_bytes((photos / "a.png").read_bytes())
    pictures.append(str(photos / "more" / "a.png"))
    assert main(["predict", *pictures, "-m", "isanet_tiny", "-o", str(tmp_path)]) == 1
    assert "several pictures are called a.png" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_out_that_is_a_file_is_an_error(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(photos / "notes.txt")
    assert main(["predict", str(photos / "a.jpg"), "-m", "isanet_tiny", "-o", out]) == 1
    assert "cannot be a folder" in capsys.readouterr().err


def test_convert_then_predict_with_the_file(
    tiny_zoo: TinyZoo, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = str(tmp_path / "own.safetensors")
    assert main(["convert", str(tiny_zoo.published), own, "-m", "isanet_tiny"]) == 0
    assert capsys.readouterr().out == f"{own}\n"
    picture, out = str(photos / "b.png"), str(tmp_path / "o")
    assert main(["predict", picture, "-m", "isanet_tiny", "-w", own, "-o", out]) == 0


def test_verify_and_cache(tiny: TinyZoo, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    assert "nothing is cached" in capsys.readouterr().err
    assert main(["download", "isanet_tiny"]) == 0
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1]) == {"isanet_tiny": None}
    model = CacheEntry.of("isanet_tiny").model
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    assert main(["verify"]) == 1
    assert "sha256" in capsys.readouterr().out
    assert main(["cache"]) == 0
    folder, row = capsys.readouterr().out.splitlines()
    assert folder == str(model.parents[1])
    assert row.split()[0] == "isanet_tiny"
    assert main(["cache", "--remove", "isanet_tiny", "../photos"]) == 1
    assert not model.parent.exists()
    assert "../photos is not cached" in capsys.readouterr().err
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == {}


def test_env_reports_versions_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__.partition('+')[0]}" in out
    assert "ISANET_ZOO_OFFLINE: 1" in out
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ISANET_ZOO_MIRROR"] == "not set"


def test_list_and_env_answer_where_torch_is_broken(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from isanet_zoo.commands.main import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(command: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", code, command]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    assert run("list").returncode == 0
    assert run("download").returncode == 2
    assert run("env").returncode == 1
    assert "problem: libcudart.so.13" in run("env").stdout


@pytest.mark.parametrize("arguments", [["-v", "download"], ["download", "-v"]])
def test_verbose_logs_to_stderr_and_leaves_no_handler(
    arguments: list[str], tiny: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "isanet_tiny"]) == 0
    assert f"ssseg weights from {tiny.published}" in capsys.readouterr().err
    logger = logging.getLogger("isanet_zoo")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)


@pytest.mark.parametrize(
    ("command", "default"),
    [
        (["list"], False),
        (["predict", "a.jpg"], False),
        (["train", "isanet_tiny", "--data", "."], False),
        (["convert", "a.pth", "a.safetensors", "-m", "isanet_tiny"], True),
        (["export", "isanet_tiny", "a.onnx"], True),
    ],
)
def test_only_convert_and_export_are_verbose_by_default(command: list[str], default: bool) -> None:
    parser = make_parser()
    assert parser.parse_args(command).verbose is default
    assert parser.parse_args(["-v", *command]).verbose is True
    assert parser.parse_args([*command, "-v"]).verbose is True


@pytest.mark.parametrize("command", ["list", "--help"])
def test_answers_without_loading_anything_large(command: str) -> None:
    code = (
        "import sys; from isanet_zoo.commands.main import main\n"
        f"try: main([{command!r}])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'numpy', 'PIL', 'safetensors'} & sys.modules.keys()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert out.splitlines()[-1] == "[]"
