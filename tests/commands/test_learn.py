"""`train`, `evaluate` and then `predict`, as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import isanet_zoo
from isanet_zoo.commands.main import main
from isanet_zoo.weights.description import read_description
from tests.conftest import TinyZoo

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
SIX = [
    f"isanet_resnet{depth}os8_{dataset}"
    for depth in (50, 101)
    for dataset in ("voc", "ade20k", "cityscapes")
]
FRUIT = ("apple", "pear", "plum", "grape", "background")


def draw(image: Path, mask: Path, classes: int, seed: int, *, ignored: int = 255) -> None:
    """Write a noisy picture of coloured stripes, and which stripe is which."""
    image.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    stripes = np.repeat(rng.permutation(classes), -(-80 // classes))[:80]
    labels = np.broadcast_to(stripes, (64, 80)).copy()
    colours = np.stack([37 * labels, 255 - 50 * labels, 90 + 11 * labels], axis=-1) % 256
    pixels = (colours + rng.integers(0, 20, colours.shape)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(image)
    labels[:4] = ignored
    Image.fromarray(labels.astype(np.uint8)).save(mask)


@pytest.fixture(scope="module")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures and masks with five classes."""
    root = tmp_path_factory.mktemp("data") / "fruit"
    for split, count in (("train", 4), ("val", 1)):
        for number in range(count):
            draw(
                root / "images" / split / f"{number}.png",
                root / "masks" / split / f"{number}.png",
                len(FRUIT),
                seed=number + 10 * count,
            )
    (root / "classes.txt").write_text("\n".join(FRUIT))
    return root


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that lie as CamVid's do."""
    root = tmp_path_factory.mktemp("camvid")
    for number in range(3):
        name = f"{number}.png"
        draw(root / "val" / name, root / "valannot" / name, 11, seed=number, ignored=11)
    return root


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("name", SIX)
def test_each_of_the_six_is_fine_tuned_to_five_classes(
    name: str, fruit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = ("epochs=1", "batch_size=2", "crop=[64, 64]", "base_size=null", "lr=0.001")
    common = ("--data", fruit, "--device", "cpu")
    train = ("train", name, *common, "--out", run, "--workers", 0, "--no-val", "--set", *recipe)
    assert main([str(argument) for argument in train]) == 0
    best = run / "best.safetensors"
    assert capsys.readouterr().out == f"{best}\n"
    scores = answer(
        capsys, "evaluate", name, "-w", best, *common, "--split", "train", "--no-resize", "--json"
    )
    assert tuple(scores["iou"]) == FRUIT
    picture = fruit / "images" / "val" / "0.png"
    found = answer(
        capsys, "predict", picture, "-m", name, "-w", best, "-o", tmp_path, "--no-resize", "--json"
    )
    names = {entry["name"] for entry in found["results"][0]["classes"]}
    assert names
    assert names <= set(FRUIT)
    card = read_description(best)
    assert card is not None
    assert (card.model, card.label_set.name) == (name, "fruit")
    assert card.recipe is not None
    assert (card.recipe.lr, card.recipe.crop, card.recipe.momentum) == (0.001, (64, 64), 0.9)


def test_training_is_resumed_and_scores_are_written(
    fruit: Path, tiny_zoo: TinyZoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, name = tmp_path / "run", tiny_zoo.weights.name
    base = ["train", name, "--data", str(fruit), "--out", str(run), "--workers", "0", "--scratch"]
    recipe = ["--set", "epochs=2", "batch_size=2", "crop=[32, 32]", "optimizer=adamw", "ema=0.9"]
    assert main([*base, *recipe]) == 0
    rows = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(float(row["miou"]) >= 0 for row in rows)
    assert main([*base, *recipe]) == 1
    assert "already contains a run" in capsys.readouterr().err
    assert main([*base, *recipe, "--resume"]) == 0
    assert main([*base, *recipe[:-1], "--resume"]) == 1
    assert "ema was 0.9, is null" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", "give NAME=VALUE"),
        ("rate=1", "one of split, epochs"),
        ("epochs=many", "epochs is 'many'; it must be a whole number from 1 to"),
        ("lr=0.00001", "lr is 1e-05; it must be at least min_lr"),
        ("optimizer=lion", "'lion'; it must be one of 'sgd', 'adamw'"),
    ],
)
def test_changes_of_the_recipe_that_make_no_sense_are_named(
    change: str, message: str, fruit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", SIX[0], "--data", str(fruit), "--set", change]) == 1
    assert message in capsys.readouterr().err


def test_evaluation_equals_the_function_and_writes_each_picture(
    streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "pictures.csv"
    found = answer(capsys, "evaluate", BUILT_IN, "--data", streets, "--csv", table, "--json")
    dataset = isanet_zoo.open_dataset("camvid", streets, "val")
    rows: list[tuple[Path, isanet_zoo.Scores]] = []
    scores = isanet_zoo.evaluate(
        isanet_zoo.create_model(BUILT_IN, pretrained=True),
        dataset,
        each=lambda path, own: rows.append((path, own)),
    )
    assert found["miou"] == scores.miou
    assert found["iou"] == scores.iou
    with table.open() as file:
        written = list(csv.DictReader(file))
    assert [row["image"] for row in written] == [str(path) for path, _ in rows]
    assert [float(row["mIoU"]) for row in written] == [own.miou for _, own in rows]
    assert main(["evaluate", BUILT_IN, "--data", str(streets), "--flip"]) == 0
    out = capsys.readouterr().out
    assert "Bicyclist" in out
    assert "mIoU" in out
    assert main(["evaluate", BUILT_IN, "--data", str(tmp_path)]) == 1
    assert "does not exist; a camvid data set is expected as" in capsys.readouterr().err


def test_torchrun_spreads_an_evaluation_and_changes_nothing(
    streets: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["evaluate", BUILT_IN, "--data", str(streets), "--device", "cpu", "--json"]
    alone = answer(capsys, *arguments)
    spread = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "-m", "isanet_zoo", *arguments),
            *("--csv", str(tmp_path / "pictures.csv")),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert json.loads(spread.stdout) == alone
    with (tmp_path / "pictures.csv").open() as file:
        images = [Path(row["image"]).name for row in csv.DictReader(file)]
    assert images == ["0.png", "1.png", "2.png"]
