"""Command `predict`: result files, errors of single images, files that are never replaced."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isanet_zoo import ISANet
from isanet_zoo.commands.main import main
from isanet_zoo.imaging.writing import is_marked
from isanet_zoo.inference import predictor
from isanet_zoo.manifest import lookup
from tests import reference
from tests.conftest import TinyZoo

HOME = reference.DATA / "images" / "home.jpg"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three good images, two bad ones and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(HOME) as home:
        home.resize((72, 54)).save(folder / "a.jpg")
        home.resize((64, 48)).save(folder / "b.png")
        home.resize((60, 50)).save(folder / "c.PNG")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:700])
    (folder / "text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("left alone")
    return folder


def predict(*arguments: object, out: Path | None = None) -> int:
    """Run `isanet-zoo predict` with the tiny model."""
    where = ["-o", str(out)] if out else []
    return main(["predict", *map(str, arguments), "-m", "isanet_tiny", *where])


def records(capsys: Captured) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what `--json` printed: the results and the errors."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    results = [line for line in lines if "error" not in line]
    return results, [line["error"] for line in lines if "error" in line]


def results(out: Path, *stems: str) -> list[Path]:
    return [out / f"{stem}.{part}.png" for stem in stems for part in ("labels", "overlay")]


@pytest.mark.usefixtures("tiny")
def test_photo_becomes_an_index_png_and_an_overlay(tmp_path: Path, capsys: Captured) -> None:
    assert predict(HOME, out=tmp_path / "out") == 0
    labels, overlay = results(tmp_path / "out", "home")
    assert capsys.readouterr().out.splitlines() == [str(labels), str(overlay)]
    with Image.open(labels) as index, Image.open(overlay) as image, Image.open(HOME) as photo:
        assert index.size == image.size == photo.size
        assert index.mode == "P"
        palette = np.array(index.getpalette()).reshape(-1, 3)
        label_set = lookup.get_weights("isanet_tiny").label_set
        np.testing.assert_array_equal(palette[:5], label_set.colours)
        blend = (np.asarray(photo.convert("RGB")) + palette[np.asarray(index)]) / 2
        difference = np.abs(np.asarray(image) - blend).max(axis=2)
    assert (difference[200:, 200:] <= 0.5).all()  # outside the legend
    assert (difference[:100, :100] > 50).any()  # inside it


@pytest.mark.usefixtures("small_inputs")
def test_built_in_model_is_the_default_and_logs_no_unused_tensors(
    photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = ["predict", str(photos / "b.png"), "-o", str(tmp_path)]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "using isanet_efficientnet_lite0os8_camvid" in lines[0]
    assert lines[1].endswith(": verified weights")
    assert main([*arguments, "--overwrite", "-v"]) == 0
    assert "aux" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_own_classes_are_named_in_a_file(tmp_path: Path, capsys: Captured) -> None:
    own = {"traffic": {"classes": ["car", "road"], "colour": "#102030"}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    options = ("--classes", tmp_path / "own.json", "--rest", "other", "--json", "--overwrite")
    assert predict(HOME, *options, out=tmp_path / "out") == 0
    (found,), _ = records(capsys)
    assert {entry["name"] for entry in found["classes"]} <= {"traffic", "other"}
    with Image.open(tmp_path / "out" / "home.labels.png") as index:
        assert (index.getpalette() or [])[:3] == [0x10, 0x20, 0x30]
        assert np.asarray(index).max() <= 1
    assert predict(HOME, "--rest", "other", "--overwrite", out=tmp_path / "out") == 1
    assert "--rest needs --classes FILE" in capsys.readouterr().err
    (tmp_path / "own.json").write_text('{"traffic": ["cra"]}')
    assert predict(HOME, *options, out=tmp_path / "out") == 1
    assert "Tiny has no class 'cra'; did you mean car?" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
class TestFolderRun:
    def test_bad_files_are_listed_at_the_end(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        out = tmp_path / "out"
        (photos / "more").mkdir()
        assert predict(photos, out=out) == 1
        captured = capsys.readouterr()
        expected = results(out, "a", "b", "c")
        assert captured.out.splitlines() == [str(path) for path in expected]
        assert sorted(out.iterdir()) == expected
        assert "2 of 5 images could not be segmented:" in captured.err
        assert f"{photos / 'broken.jpg'} is damaged" in captured.err
        assert f"{photos / 'text.jpg'} is not an image file" in captured.err
        assert "1 other files are skipped, 1 subfolders are not searched" in captured.err
        assert "5/5" in captured.err  # the progress bar

    def test_every_supported_format_is_segmented(self, tmp_path: Path, capsys: Captured) -> None:
        folder, out = tmp_path / "photos", tmp_path / "out"
        folder.mkdir()
        names = ("a.jpg", "b.avif", "c.jfif", "d.gif", "e.jp2", "f.ppm")
        with Image.open(HOME) as home:
            for name in names:
                home.resize((64, 48)).save(folder / name)
                home.resize((9, 9)).save(folder / f"._{name}")
        assert predict(folder, out=out) == 0
        assert sorted(out.iterdir()) == results(out, *(name[0] for name in names))

    def test_special_files_are_reported(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        os.mkfifo(photos / "pipe.png")
        (photos / "zero.png").symlink_to("/dev/zero")
        assert predict(photos, "--json", out=tmp_path / "out") == 1
        found, errors = records(capsys)
        assert len(found) == 3
        assert sum("not a regular file" in error for error in errors) == 2

    def test_image_that_the_options_do_not_fit_is_reported(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        Image.new("RGB", (9, 9)).save(photos / "small.png")
        options = ["--no-resize", "--scales", "0.07", "--batch-size", "4", "--json"]
        assert predict(photos, *options, out=tmp_path / "out") == 1
        found, errors = records(capsys)
        assert [Path(result["image"]).name for result in found] == [
            "a.jpg",
            "b.png",
            "c.PNG",
        ]
        assert sum("small.png: scale 0.07 makes 0 x 0 " in e for e in errors) == 1
        assert len(errors) == 3

    def test_summary_is_printed_when_the_run_fails(
        self, photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = predictor.Predictor._segment

        def fail_for_one(self: Any, items: Any) -> Any:
            if any(image.size == (50, 60) for *_, image in items):  # that of c.PNG
                raise RuntimeError("CUDA out of memory")
            return real(self, items)

        monkeypatch.setattr(predictor.Predictor, "_segment", fail_for_one)
        with pytest.raises(RuntimeError, match="out of memory"):
            predict(photos, "--json", out=tmp_path / "out")
        captured = capsys.readouterr()
        found = [json.loads(line) for line in captured.out.splitlines()]
        assert [Path(line["image"]).name for line in found if "files" in line] == ["a.jpg", "b.png"]
        assert "of 5 images could not be segmented" in captured.err

    def test_image_that_is_named_twice_is_segmented_once(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        assert predict(photos / "b.png", photos / "b.png", out=tmp_path / "out") == 0
        assert len(capsys.readouterr().out.splitlines()) == 2

    def test_options_reach_the_predictor(
        self, photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Any] = {}

        class Watched(predictor.Predictor):
            def __init__(self, model: ISANet, **options: Any) -> None:
                seen.update(options)
                super().__init__(model, **options)

        monkeypatch.setattr(predictor, "Predictor", Watched)
        options = ["--flip", "--scales", "0.5", "1", "--tile", "48", "--overlap", "0.5"]
        options += [
            "--dtype",
            "bfloat16",
            "--labels",
            "--confidence",
            "--batch-size",
            "2",
            "--device",
            "cpu",
        ]
        images = (photos / "a.jpg", photos / "b.png")
        assert predict(*images, *options, "--no-resize", "--json", out=tmp_path) == 0
        assert seen == {
            "engine": None,
            "device": "cpu",
            "calibrate": None,
            "dtype": torch.bfloat16,
            "batch_size": 2,
            "scales": (0.5, 1.0),
            "flip": True,
            "tile": 48,
            "overlap": 0.5,
            "resize": False,
            "confidence": True,
            "classes": None,
            "rest": None,
        }
        (first, second), _ = records(capsys)
        assert first["image"] == str(photos / "a.jpg")
        assert sum(entry["fraction"] for entry in first["classes"]) == pytest.approx(1)
        assert {"id", "name", "fraction"} == second["classes"][0].keys()
        with Image.open(tmp_path / "b.confidence.png") as confidence:
            assert (confidence.mode, confidence.size) == ("L", (64, 48))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--device", "gpu"], "device 'gpu' is not available; torch"),
            (["--device", ""], "device '' is not available; torch"),
            (["--scales", "1e9"], "factors from 0.0625 to 16.0"),
            (["--overlap", "1"], "overlap is 1.0; it must be at least 0 and less than 1"),
            (["--tile", "99999999"], "from 1 to 65536, or 'whole'"),
            (["--batch-size", "0"], "--batch-size is 0; it must be a whole number from 1 to 4096"),
            (["-m", ""], "no model is called ''"),
            (["-m", __file__], "test_predict.py is neither a model of the zoo nor a weight file"),
        ],
        ids=" ".join,
    )
    def test_bad_option_is_one_line_of_error(
        self, photos: Path, tmp_path: Path, capsys: Captured, options: list[str], message: str
    ) -> None:
        capsys.readouterr()
        image = str(photos / "a.jpg")
        assert main(["predict", image, "-m", "isanet_tiny", "-o", str(tmp_path), *options]) == 1
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1

    def test_own_weights_are_used(
        self, tiny_zoo: TinyZoo, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        own = tmp_path / "own.safetensors"
        assert main(["convert", str(tiny_zoo.published), str(own), "-m", "isanet_tiny"]) == 0
        assert capsys.readouterr().out == f"{own}\n"
        assert predict(photos / "b.png", "-w", own, out=tmp_path / "out") == 0


@pytest.mark.usefixtures("tiny")
class TestExistingFiles:
    def test_second_run_is_refused_before_the_start(
        self, photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        assert predict(photos / "b.png", out=out) == 0
        results(out, "b")[1].unlink()
        before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
        monkeypatch.setattr(predictor, "Predictor", None)  # the network is not prepared
        assert predict(photos / "a.jpg", photos / "b.png", out=out) == 1
        message = f"{out} has results of 1 of these 2 images, such as {photos / 'b.png'}; skip"
        assert message in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before

    def test_overwrite_replaces_results(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        out = tmp_path / "out"
        options = ["--overlay", "--confidence", "--labels"]
        assert predict(photos / "b.png", *options, out=out) == 0
        stamps = [path.stat().st_ino for path in sorted(out.iterdir())]
        assert predict(photos / "b.png", *options, "--overwrite", out=out) == 0
        assert [path.stat().st_ino for path in sorted(out.iterdir())] != stamps
        assert len(stamps) == 3
        assert all(is_marked(path) for path in out.iterdir())

    def test_foreign_file_is_never_replaced(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        foreign, _ = results(out, "b")
        foreign.write_bytes((photos / "b.png").read_bytes())
        images = (photos / "b.png", photos / "a.jpg")
        for option in ("--overwrite", "--resume"):
            capsys.readouterr()
            assert predict(*images, option, "--json", out=out) == 1
            _, (error,) = records(capsys)
            assert f"{foreign} exists and was not written by isanet_zoo; move it" in error
            assert foreign.read_bytes() == (photos / "b.png").read_bytes()
            assert sorted(out.iterdir()) == [*results(out, "a"), foreign]

    def test_input_is_never_replaced(
        self, photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(photos)
        assert predict("b.png", "-o", ".") == 0
        before = {path: path.read_bytes() for path in photos.iterdir()}
        assert predict("b.png", "b.labels.png", "--overwrite", "-o", ".") == 1
        assert "b.labels.png, a result of b.png, would replace an image" in capsys.readouterr().err
        (tmp_path / "out").mkdir()
        results(tmp_path / "out", "b")[1].hardlink_to(photos / "a.jpg")
        assert predict("b.png", "a.jpg", "--overwrite", out=tmp_path / "out") == 1
        assert "exists and was not written by isanet_zoo" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in photos.iterdir()} == before

    def test_folder_of_the_images_is_refused_for_results(
        self, photos: Path, capsys: Captured
    ) -> None:
        before = sorted(photos.iterdir())
        assert predict(photos, out=photos) == 1
        assert "is the folder of the images" in capsys.readouterr().err
        assert sorted(photos.iterdir()) == before

    def test_full_disk_is_the_error_of_that_image(
        self, photos: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        assert predict(photos / "b.png", out=out) == 0
        capsys.readouterr()
        before = {path: path.read_bytes() for path in out.iterdir()}
        save = Image.Image.save

        def fill_disk(image: Image.Image, target: Path, *rest: Any, **options: Any) -> None:
            save(image, target, *rest, **options)
            if image.size == (64, 48):  # that of b.png
                target.write_bytes(b"half")
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", fill_disk)
        assert predict(photos, "--json", "--overwrite", out=out) == 1
        found, errors = records(capsys)
        assert [Path(result["image"]).name for result in found] == ["a.jpg", "c.PNG"]
        assert sum("b.labels.png cannot be written: No space" in e for e in errors) == 1
        assert {path: path.read_bytes() for path in before} == before
        assert sorted(out.iterdir()) == results(out, "a", "b", "c")


@pytest.mark.usefixtures("tiny")
class TestNames:
    def test_results_of_one_stem_keep_the_suffix(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        with Image.open(photos / "a.jpg") as image:
            image.save(photos / "A.png")
        images = [photos / "a.jpg", photos / "A.png"]
        assert predict(*images, out=tmp_path / "out") == 0
        assert sorted((tmp_path / "out").iterdir()) == sorted(
            results(tmp_path / "out", "a.jpg", "A.png")
        )

    @pytest.mark.parametrize(("first", "second"), [("a.jpg", "a.jpg"), ("ä.JPG", "A\u0308.jpg")])
    def test_two_images_of_one_result_are_refused_before_the_start(
        self, first: str, second: str, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        (photos / "more").mkdir()
        images = [photos / first, photos / "more" / second]
        for image in images:
            image.write_bytes((photos / "b.png").read_bytes())
        assert predict(*images, out=tmp_path / "out") == 1
        assert f"{images[0]} and {images[1]} would have the same results" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_name_that_has_no_result_is_the_error_of_that_image(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        (photos / f"{'x' * 251}.png").write_bytes((photos / "b.png").read_bytes())
        assert predict(photos, "--json", out=tmp_path / "out") == 1
        found, errors = records(capsys)
        assert len(found) == 3
        assert sum("cannot be written: File name too long" in e for e in errors) == 1

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
    def test_name_outside_the_encoding_is_printed_escaped(
        self, encoding: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [b"\xff\x1b[31m.png", "字.png".encode()]
        for name in names:
            Path(os.fsdecode(os.fsencode(photos) + b"/" + name)).write_bytes(
                (photos / "b.png").read_bytes()
            )
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert predict(photos, out=tmp_path / "out") == 1
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)
        assert len(text.splitlines()) == 10
        assert "\\udcff\\x1b[31m.labels.png" in text
        assert ("字" if encoding == "utf-8" else "\\u5b57") in text

    def test_json_is_valid_for_a_name_that_is_not_utf8(
        self, photos: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        image = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
        image.write_bytes((photos / "b.png").read_bytes())
        assert predict(image, "--json", out=tmp_path / "out") == 0
        output = capsys.readouterr().out
        assert output.isascii()
        result = json.loads(output)
        assert result["image"] == str(image)
        assert Path(result["files"][0]).exists()


class TestWrongArguments:
    def test_out_that_is_a_file_is_an_error(self, photos: Path, capsys: Captured) -> None:
        assert predict(photos / "a.jpg", out=photos / "notes.txt") == 1
        assert "cannot be a folder: File exists" in capsys.readouterr().err
        assert predict(photos / "a.jpg", out=photos / "null\0") == 1
        assert "cannot be a folder: embedded null" in capsys.readouterr().err

    def test_empty_path_is_an_error(self, photos: Path, capsys: Captured) -> None:
        assert predict("", photos / "a.jpg") == 1
        assert "a path is empty" in capsys.readouterr().err

    @pytest.mark.parametrize("value", ["abc", "", "4.5", "0", "-3", "64x"])
    def test_tile_that_is_none_shows_the_syntax(self, value: str, capsys: Captured) -> None:
        with pytest.raises(SystemExit, match="2"):
            predict("a.jpg", f"--tile={value}")
        assert f"argument --tile: {value!r} is not a side in pixels" in capsys.readouterr().err
