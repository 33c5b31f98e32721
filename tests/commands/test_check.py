"""Tests of the command `check`: it names the file of each mistake that was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from isanet_zoo.commands import check as command
from isanet_zoo.commands.main import main

CLASSES = ("sky", "road", "tree")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A correct data set: six images for training and two for validation, all different."""
    root = tmp_path / "data"
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            rng = np.random.default_rng((len(split), number))
            write(root, "images", split, number, rng.integers(0, 256, (24, 32, 3)))
            mask = np.zeros((24, 32))
            mask[4:, :8], mask[8:, 8:], mask[0] = 1, 2, 255
            write(root, "masks", split, number, mask)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def write(root: Path, folder: str, split: str, number: int, values: Any, **options: Any) -> Path:
    path = root / folder / split / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values).astype(np.uint8)).save(path, **options)
    return path


def mask(root: Path, values: Any, **options: Any) -> str:
    """Replace mask 1 of the training images."""
    return write(root, "masks", "train", 1, values, **options).name


@pytest.fixture
def check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, ...]]:
    """Run the command without a contact sheet; return its status, output and error output."""
    monkeypatch.setattr(command, "_draw", lambda *_: None)

    def call(root: Path, *options: str) -> tuple[Any, ...]:
        status = main(["check", str(root), "-o", str(tmp_path / "check.png"), *options])
        return (status, *capsys.readouterr())

    return call


def test_correct_data_set_is_counted(data: Path, check: Any) -> None:
    status, out, err = check(data)
    assert status == 0, err
    assert "perhaps a mistake" not in err
    assert "data train: 6 images, 6 masks can be used\n  32 x 24 (6)" in out
    rows = [line.split() for line in out.splitlines() if line.strip()][-4:]
    pixels = (3 * 32 + 4 * 24, 20 * 8, 16 * 24, 32)  # of the three classes, and of none
    sky, road, _, nothing = (f"{100 * count / 768:.2f}" for count in pixels)
    assert rows[0] == ["0", "sky", sky, "6", sky, "2"]
    assert rows[1] == ["1", "road", road, "6", road, "2"]
    assert rows[3] == ["no", "class", nothing, "6", nothing, "2"]


def test_contact_sheet_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged_image(data)
    path = tmp_path / "check.png"
    assert main(["check", str(data), "-o", str(path)]) == 1
    assert f"{path} shows images of data train with their masks" in capsys.readouterr().err
    with Image.open(path) as sheet:
        assert sheet.info["Software"] == "isanet-zoo"


def test_report_is_json_on_request(data: Path, check: Any) -> None:
    report = json.loads(check(data, "--json")[1])
    train, val = report["splits"]
    assert (train["name"], train["images"], train["usable"]) == ("data train", 6, 6)
    assert val["sizes"] == {"32 x 24": 2}
    assert train["classes"][1] == {"id": 1, "name": "road", "pixels": 6 * 160, "images": 6}
    assert train["classes"][-1] == {"id": None, "name": "no class", "pixels": 6 * 32, "images": 6}
    assert report["problems"] == report["suspicions"] == []


def no_mask(root: Path) -> str:
    (root / "masks" / "train" / "1.png").unlink()
    return "images/train/1.png has no mask"


def no_image(root: Path) -> str:
    (root / "images" / "train" / "1.png").unlink()
    return "masks/train/1.png has no image"


def damaged_image(root: Path) -> str:
    (root / "images" / "train" / "1.png").write_bytes(b"damaged")
    return "images/train/1.png is not an image"


def damaged_mask(root: Path) -> str:
    path = root / "masks" / "train" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    return "masks/train/1.png is damaged"


def unknown_id(root: Path) -> str:
    mask(root, np.full((24, 32), 9))
    return "masks/train/1.png contains 9"


def colours(root: Path) -> str:
    mask(root, np.full((24, 32, 3), (128, 64, 128)))
    return "masks/train/1.png contains #804080 (100.00% of its pixels)"


def jpeg(root: Path) -> str:
    mask(root, np.zeros((24, 32)), format="JPEG")
    return "masks/train/1.png contains JPEG data"


def other_size(root: Path) -> str:
    mask(root, np.zeros((24, 30)))
    return "masks/train/1.png is 30 x 24, its image"


def rotated(root: Path) -> str:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    write(root, "images", "train", 1, np.zeros((24, 32, 3)), exif=exif)
    return "masks/train/1.png is 32 x 24, its image"


def no_split(root: Path) -> str:
    (root / "images" / "val").rename(root / "images" / "validation")
    return "images/val does not exist"


def all_binary(root: Path) -> str:
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            write(root, "masks", split, number, np.eye(24, 32) * 255)
    return "the 6 masks of data train contain only 0 and 255"


PROBLEMS = (
    no_mask,
    no_image,
    damaged_image,
    damaged_mask,
    unknown_id,
    colours,
    jpeg,
    other_size,
    rotated,
    no_split,
    all_binary,
)


@pytest.mark.parametrize("plant", PROBLEMS)
def test_planted_problem_is_found_with_its_file(
    data: Path, check: Any, plant: Callable[[Path], str]
) -> None:
    expected = plant(data)
    status, _, err = check(data)
    assert status == 1
    (line,) = [
        line for line in err.splitlines() if "error: " in line and "of data val contain" not in line
    ]
    assert expected in line


def one_binary(root: Path) -> str:
    mask(root, np.eye(24, 32) * 255)
    return "1 masks contain only 0 and 255, which marks pixels without a class: "


def nothing_labelled(root: Path) -> str:
    mask(root, np.full((24, 32), 255))
    return "1 masks have no pixel of any class: "


def turned(root: Path) -> str:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    path = write(root, "images", "train", 1, np.zeros((24, 32, 3)), exif=exif)
    return f"1 images are turned by their EXIF orientation, their masks are not: {path}"


def duplicate(root: Path) -> str:
    images = root / "images"
    (images / "val" / "0.png").write_bytes((images / "train" / "3.png").read_bytes())
    return (
        "1 images of data val are also in data train: "
        f"{images / 'train' / '3.png'} = {images / 'val' / '0.png'}"
    )


def absent_class(root: Path) -> str:
    (root / "classes.txt").write_text("sky\nroad\ntree\nlake\n")
    return "the 6 masks of data train have no pixel of lake"


@pytest.mark.parametrize("plant", [one_binary, nothing_labelled, turned, duplicate, absent_class])
def test_planted_suspicion_is_reported_and_no_error(
    data: Path, check: Any, plant: Callable[[Path], str]
) -> None:
    expected = plant(data)
    status, _, err = check(data)
    assert status == 0, err
    lines = [line for line in err.splitlines() if "perhaps a mistake: " in line]
    assert any(expected in line for line in lines), err
    assert len(lines) == 1 + (plant is absent_class)  # absent from both splits


def test_all_planted_problems_are_found_at_once(data: Path, check: Any) -> None:
    for number, plant in enumerate((unknown_id, colours, jpeg, other_size), 2):
        mask_file = data / "masks" / "train" / "1.png"
        plant(data)
        mask_file.rename(mask_file.with_name(f"{number}.png"))
    found = json.loads(check(data, "--json")[1])["problems"]
    planted = ((1, "no mask"), (2, "9"), (3, "#804080"), (4, "JPEG"), (5, "30 x 24"))
    for line, (number, word) in zip(found, planted, strict=True):
        assert f"train/{number}.png" in line
        assert word in line


def test_unchanged_files_are_read_once(
    data: Path, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(data)
    monkeypatch.setattr(
        "isanet_zoo.learning.scan._read", lambda *_: pytest.fail("a mask was read again")
    )
    assert check(data)[0] == 0


def test_foreign_file_is_not_replaced(data: Path, check: Any, tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "check.png")
    status, _, err = check(data)
    assert status == 1
    assert "was not written by isanet_zoo" in err
    assert check(data, "--force")[0] == 0
    assert "write a name that ends in .png" in check(data, "-o", str(tmp_path / "a.jpg"))[2]


def test_folder_of_no_layout_is_refused(check: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = check(tmp_path / "empty")
    assert status == 1
    assert "has the files of no layout; pass one as --layout: voc" in err


def test_divided_and_binary_data_is_checked(data: Path, check: Any) -> None:
    all_binary(data)
    for folder in ("images", "masks"):
        for path in (data / folder / "train").iterdir():
            path.rename(data / folder / path.name)
        (data / folder / "train").rmdir()
    (data / "classes.txt").write_text("other\nline\n")
    status, out, err = check(data, "--binary", "--val-fraction", "0.4", "--json")
    assert status == 0, err
    splits = json.loads(out)["splits"]
    assert sum(split["images"] for split in splits) == 6
    assert splits[0]["classes"][1]["id"] == 255
