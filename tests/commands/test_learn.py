"""Tests of the commands `train` and `evaluate`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import isanet_zoo
from isanet_zoo import InputError
from isanet_zoo.commands import evaluate as evaluate_command, train as train_command
from isanet_zoo.commands.main import main
from isanet_zoo.weights.description import read_description
from tests import processes
from tests.conftest import TinyZoo

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
FRUIT = ("apple", "pear", "plum", "grape", "background")
SHORT = ("epochs=1", "batch_size=2", "crop=[64, 64]", "base_size=null", "lr=0.001")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(image: Path, mask: Path, classes: int, seed: int, *, ignored: int = 255) -> None:
    """Write a noisy image of coloured stripes, and the mask of the stripes."""
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


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """A folder of images and masks with five classes."""
    root = tmp_path / "fruit"
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
    """Three images in the layout of CamVid."""
    return write_streets(tmp_path_factory.mktemp("camvid"), 3)


def write_streets(root: Path, count: int) -> Path:
    for number in range(count):
        name = f"{number}.png"
        draw(root / "val" / name, root / "valannot" / name, 11, seed=number, ignored=11)
    return root


class Result(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that are errors, without a progress bar before them."""
        return [line for line in self.err.replace("\r", "\n").split("\n") if "error: " in line]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def train(run: Any, tiny_zoo: TinyZoo, fruit: Path, tmp_path: Path) -> Any:
    """Train the small model on `fruit`; later options replace earlier ones."""

    def call(*options: object, recipe: tuple[str, ...] = SHORT) -> Result:
        common = ("--data", fruit, "--out", tmp_path / "run", "--workers", 0, "--device", "cpu")
        result: Result = run(
            "train", tiny_zoo.weights.name, "--scratch", *common, *options, "--set", *recipe
        )
        return result

    return call


@pytest.fixture
def evaluate(run: Any, tiny_zoo: TinyZoo, fruit: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluate the published small model on `fruit`, whose classes are renamed to the model's."""
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    (fruit / "classes.txt").write_text("\n".join(tiny_zoo.weights.label_set.names))

    def call(*options: object) -> Result:
        result: Result = run("evaluate", tiny_zoo.weights.name, "--data", fruit, *options)
        return result

    return call


# Train


def test_fine_tuned_model_is_evaluated_and_predicts(
    run: Any, tiny_zoo: TinyZoo, fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    name, out = tiny_zoo.weights.name, tmp_path / "run"
    common = ("--data", fruit, "--device", "cpu")
    (fruit / "classes.txt").write_text("\n".join(FRUIT[:4]))
    for mask in (fruit / "masks").rglob("*.png"):
        with Image.open(mask) as image:
            labels = np.array(image)
        labels[labels == 4] = 255
        Image.fromarray(labels).save(mask)
    result = run("train", name, *common, "--out", out, "--workers", 0, "--no-val", "--set", *SHORT)
    best = out / "best.safetensors"
    assert (result.status, result.out) == (0, f"{best}\n"), result.err
    result = run("evaluate", name, "-w", best, *common, "--split", "train", "--json")
    scores = json.loads(result.out)
    assert tuple(scores["iou"]) == FRUIT[:4]
    assert scores["absent"] == []
    photo = fruit / "images" / "val" / "0.png"
    found = json.loads(run("predict", photo, "-m", name, "-w", best, "-o", tmp_path, "--json").out)
    names = {entry["name"] for entry in found["classes"]}
    assert names
    assert names <= set(FRUIT[:4])
    card = read_description(best)
    assert card is not None
    assert (card.model, card.label_set.name) == (name, "fruit")
    assert card.recipe is not None
    assert (card.recipe.lr, card.recipe.crop, card.recipe.momentum) == (0.001, (64, 64), 0.9)
    for alone in (best, out):  # with the recipe of the file
        result = run("evaluate", alone, *common, "--split", "train", "--json")
        assert json.loads(result.out) == scores, result.err
    again = tmp_path / "again"
    options = ("--out", again, "--workers", 0, "--no-val", "--recipe", out)
    result = run("train", out, *common, *options)
    assert result.status == 0, result.err
    second = read_description(again / "best.safetensors")
    assert second is not None
    assert (second.recipe, second.model) == (card.recipe, name)
    (error,) = run("train", best, "--scratch", *common).errors
    assert "best.safetensors has weights; load them (pretrained=True), or pass the name" in error


def test_saved_model_alone_is_evaluated_in_the_layout_of_its_data_set(
    run: Any, tmp_path: Path
) -> None:
    streets = write_streets(tmp_path / "camvid", 1)
    model = isanet_zoo.create_model(BUILT_IN, pretrained=True)
    model.save_pretrained(tmp_path / "saved")
    common = ("--data", streets, "--device", "cpu", "--json")
    expected = run("evaluate", BUILT_IN, *common)
    assert expected.status == 0, expected.err
    for path in (tmp_path / "saved", tmp_path / "saved" / "model.safetensors"):
        assert run("evaluate", path, *common).out == expected.out
    (error,) = run("train", tmp_path / "saved", "--data", streets, "--split", "val").errors
    assert "has no auxiliary head; load it with aux_loss=False, or train it with --set aux" in error
    other = isanet_zoo.ISANet("test_resnet", 11, head=isanet_zoo.HeadConfig(channels=8))
    isanet_zoo.save_model(other, tmp_path / "other.safetensors")
    other_file = tmp_path / "other.safetensors"
    (error,) = run("train", other_file, "--data", streets, "--recipe", other_file).errors
    assert "other.safetensors does not state its recipe; pass a JSON file" in error


def test_run_is_resumed_and_extended(train: Any, tmp_path: Path) -> None:
    recipe = ("epochs=2", "batch_size=2", "crop=32", "optimizer=adamw", "ema=0.9")
    first = train(recipe=recipe)
    assert first.status == 0
    log = tmp_path / "run" / "log.csv"
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(float(row["miou"]) >= 0 for row in rows)
    assert "mIoU" in first.err
    assert "(5 classes)" in first.err
    assert "already contains a run" in train(recipe=recipe).errors[0]
    assert train("--resume", recipe=recipe).status == 0
    result = train("--resume", recipe=(*recipe[:-1], "ema=null"))
    assert "ema was 0.9, is null" in result.errors[0]
    assert f"-w {tmp_path / 'run' / 'last.safetensors'} -o ANOTHER_FOLDER" in result.errors[0]
    result = train("--resume", recipe=("epochs=3", *recipe[1:]))
    assert result.status == 0
    assert "the run is extended from 2 to 3 epochs" in result.err
    assert len(log.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", "write NAME=VALUE"),
        ("epoch=1", "write NAME=VALUE; did you mean epochs?"),
        ("x=1", "write NAME=VALUE; NAME is one of split, epochs"),
        ("epochs=many", "epochs is 'many'; it must be a whole number"),
        ("min_lr=1", "lr is 0.0003; it must be at least min_lr"),
        ("optimizer=lion", "optimizer is 'lion'; it must be one of 'sgd', 'adamw'"),
        ("hue=1e300", "hue is 1e+300; it must be a number from 0 to 180"),
        ("lr=NaN", "lr is nan"),
        ("crop=abc", "crop is 'abc'; it must be a list"),
        ("crop=[1, 2, 3]", "crop has 3 items; there must be 2"),
        ("crop=true", "crop is True; it must be a list"),
        ("frozen=head", "frozen is 'head'; it must be a list"),
        ("batch_size=1000000000", "batch_size is 1000000000"),
        ("epochs=" + "9" * 5000, "epochs is"),
        ("frozen=" + "[" * 100_000, "frozen is"),
    ],
)
def test_bad_change_of_the_recipe_is_refused_with_the_syntax(
    train: Any, change: str, message: str
) -> None:
    result = train(recipe=(change,))
    assert (result.status, result.out) == (1, "")
    (error,) = result.errors
    assert message in error
    assert "=" in error.partition(message)[2] or "NAME=VALUE" in error
    assert len(error) < 5000


@pytest.mark.parametrize(
    ("text", "crop"), [("64", (64, 64)), ("[48, 64]", (48, 64)), ("[48,64]", (48, 64))]
)
def test_crop_is_one_number_or_a_pair(
    train: Any, tmp_path: Path, text: str, crop: tuple[int, int]
) -> None:
    assert train("--no-val", recipe=(*SHORT, f"crop={text}")).status == 0
    card = read_description(tmp_path / "run" / "best.safetensors")
    assert card is not None
    assert card.recipe is not None
    assert card.recipe.crop == crop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", -1), "seed is -1; it must be a whole number from 0 to"),
        (("--seed", 2**64), f"seed is {2**64}"),
        (("--workers", -1), "workers is -1; it must be a whole number from 0 to 256"),
        (("--accumulate", 0), "accumulate is 0; it must be a whole number from 1 to"),
        (("--eval-every", 0), "evaluate_every is 0"),
        (("--device", "gpu"), "device 'gpu' is not available"),
        (("--device", "cuda:99"), "device 'cuda:99' is not available"),
    ],
)
def test_option_out_of_range_is_refused_before_the_model_is_built(
    train: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], message: str
) -> None:
    monkeypatch.setattr(
        train_command, "build_model", lambda *_, **__: pytest.fail("a model was built")
    )
    result = train(*options)
    assert (result.status, result.out) == (1, "")
    (error,) = result.errors
    assert message in error


def test_timm_encoder_is_trained_and_its_file_is_used_alone(
    run: Any, fruit: Path, tmp_path: Path
) -> None:
    (fruit / "classes.txt").write_text("".join(f"{n} #0000{i}0\n" for i, n in enumerate(FRUIT)))
    out = tmp_path / "run"
    common = ("--data", fruit, "--out", out, "--workers", 0, "--device", "cpu")
    result = run("train", "test_resnet", *common, "--set", *SHORT, "epochs=3")
    best = out / "best.safetensors"
    assert (result.status, result.out) == (0, f"{best}\n"), result.err
    assert "starts from random weights; --imagenet starts from timm's" in result.err
    (line,) = [line for line in result.err.split("\n") if "steps per epoch" in line]
    assert "4 images in 2 steps per epoch; 6 steps, " in line
    assert re.search(
        r" s each; about 0:00:0\d left without validation; \d+\.\d GiB of memory$", line
    )
    assert run("evaluate", best, "--data", fruit, "--device", "cpu").status == 0
    photo = fruit / "images" / "val" / "0.png"
    assert run("predict", photo, "-m", best, "-o", tmp_path, "--device", "cpu").status == 0
    with Image.open(tmp_path / "0.labels.png") as labels:
        assert labels.getpalette("RGB")[:15] == [0, 0, 0, 0, 0, 16, 0, 0, 32, 0, 0, 48, 0, 0, 64]  # type: ignore[index]
    assert isanet_zoo.create_model(str(best), pretrained=True).config.backbone == "test_resnet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet18x",), "no model is called 'resnet18x'; "),
        (("vit_tiny_patch16_224", "--scratch"), "cannot be an encoder at stride 8"),
        (("test_resnet", "-w", "ssseg"), "test_resnet is an encoder, and --weights are those of"),
        (("test_resnet", "--encoder", "none.pth"), "none.pth"),
    ],
)
def test_encoder_that_cannot_be_used_is_one_error(
    run: Any, fruit: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("train", *arguments, "--data", fruit, "--device", "cpu")
    assert (result.status, result.out) == (1, "")
    (error,) = result.errors
    assert message in error


def test_imagenet_weights_that_are_not_cached_offline_are_one_error(
    run: Any, tiny_zoo: TinyZoo, fruit: Path
) -> None:
    result = run("train", tiny_zoo.weights.name, "--imagenet", "--data", fruit)
    assert result.status == 1
    (error,) = result.errors
    assert "ImageNet weights for 'test_resnet' are not cached" in error


def test_error_of_a_reading_process_is_one_line(train: Any, fruit: Path, tmp_path: Path) -> None:
    (fruit / "images" / "train" / "2.png").write_bytes(b"not an image")
    errors = []
    for workers in (0, 1):
        result = train("--no-check", "--workers", workers, "-o", tmp_path / str(workers))
        assert (result.status, result.out) == (1, "")
        assert "Traceback" not in result.err
        errors += result.errors
    assert len(errors) == 2
    assert errors[0] == errors[1]
    assert "images/train/2.png" in errors[0]


def test_masks_are_checked_before_the_first_step(train: Any, fruit: Path) -> None:
    for mask in (fruit / "masks" / "train" / "3.png", fruit / "masks" / "val" / "0.png"):
        Image.fromarray(np.full((64, 80), 77, np.uint8)).save(mask)
    result = train()
    assert result.status == 1
    assert "2 of 5 pairs of image and mask cannot be used" in result.err
    assert "train/3.png contains 77" in result.err
    assert "val/0.png contains 77" in result.err
    assert "step" not in result.err


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_masks_of_0_and_255_are_refused(
    train: Any, evaluate: Any, fruit: Path, command: str
) -> None:
    for mask in (fruit / "masks").rglob("*.png"):
        Image.fromarray(np.full((64, 80), (0, 255) * 40, np.uint8)).save(mask)
    result = train() if command == "train" else evaluate()
    assert result.status == 1
    (error,) = result.errors
    assert "contain only 0 and 255" in error
    assert "100.00" not in result.out


def test_single_class_is_refused(train: Any, fruit: Path) -> None:
    (fruit / "classes.txt").write_text("road\n")
    (error,) = train().errors
    assert "has 1 class (road)" in error


def test_missing_classes_file_is_named(train: Any, fruit: Path) -> None:
    (fruit / "classes.txt").unlink()
    (error,) = train().errors
    assert "classes.txt does not exist; write the names of the classes into it" in error


# Evaluate


def test_table_and_json_state_absent_classes(evaluate: Any, fruit: Path) -> None:
    with Image.open(fruit / "masks" / "val" / "0.png") as image:
        labels = np.array(image)
    labels[labels == 1] = 0
    Image.fromarray(labels).save(fruit / "masks" / "val" / "0.png")
    result = evaluate()
    assert result.status == 0, result.err
    assert "the 1 masks of fruit val have no pixel of road, street" in result.err
    assert "road, street (no pixel in the masks)" in result.out
    count = result.out.partition("mIoU (mean of ")[2].partition(" of 5 classes)")[0]
    scores = json.loads(evaluate("--json").out, parse_constant=pytest.fail)
    assert scores["absent"] == ["road, street"]
    assert scores["classes_evaluated"] == int(count)
    assert list(scores["iou"].values()).count(None) == 5 - int(count)


def test_own_classes_are_evaluated(evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"way": ["road"], "things": ["car", "person"]}')
    result = evaluate("--classes", tmp_path / "own.json", "--rest", "other", "--json")
    assert result.status == 0, result.err
    assert list(json.loads(result.out)["iou"]) == ["way", "things", "other"]


def test_training_keeps_the_rows_of_classes_with_the_same_names(
    run: Any, tiny_zoo: TinyZoo, fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    (fruit / "classes.txt").write_text("apple\nCar\nsky\ngrape\nbackground")
    common = ("--data", fruit, "--device", "cpu", "-o", tmp_path / "run", "--workers", 0)
    result = run("train", tiny_zoo.weights.name, *common, "--no-val", "-v", "--set", *SHORT)
    assert result.status == 0, result.err
    assert "kept classes: Car, sky; new classes: apple, grape, background" in result.err


def test_csv_has_a_row_per_image_in_utf8(evaluate: Any, fruit: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        path = fruit / folder / "val" / "0.png"
        path.rename(path.with_name("straße 東.png"))
    table = tmp_path / "scores.csv"
    for _ in range(2):  # its own file is replaced
        assert evaluate("--csv", table).status == 0
    with table.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == str(fruit / "images" / "val" / "straße 東.png")
    assert 0 <= float(row["mIoU"]) <= 1


@pytest.mark.parametrize("kind", ["no folder", "folder", "foreign", "device"])
def test_csv_that_cannot_be_written_is_refused_before_the_start(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.csv").write_text("image,notes\n")
    path = {
        "no folder": tmp_path / "none" / "scores.csv",
        "folder": tmp_path / "folder",
        "foreign": tmp_path / "notes.csv",
        "device": Path("/dev/full"),
    }[kind]
    monkeypatch.setattr("isanet_zoo.zoo.create_model", lambda *_, **__: pytest.fail("too late"))
    result = evaluate("--csv", path)
    assert (result.status, result.out) == (1, "")
    (error,) = result.errors
    assert str(path) in error
    assert (tmp_path / "notes.csv").read_text() == "image,notes\n"


def test_foreign_csv_is_replaced_with_force(evaluate: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("image,notes\n")
    assert evaluate("--csv", path, "--force").status == 0
    assert path.read_text().startswith("image,mIoU,pixel accuracy,")


def test_scores_are_printed_before_the_csv_is_written(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(evaluate_command, "_write_csv", fail)
    result = evaluate("--csv", tmp_path / "scores.csv")
    assert result.status == 1
    assert "pixel accuracy" in result.out
    assert result.errors == ["isanet-zoo: error: the disk is full"]


def test_no_check_reads_masks_during_the_evaluation_only(evaluate: Any, fruit: Path) -> None:
    Image.fromarray(np.full((64, 80), 77, np.uint8)).save(fruit / "masks" / "val" / "0.png")
    for options in ((), ("--no-check",)):
        result = evaluate(*options)
        assert result.status == 1
        assert "0.png contains 77" in result.errors[0]
    result = evaluate("--no-check")
    assert "mask" not in result.err.partition("isanet-zoo: error")[0]


def test_evaluation_equals_the_function(run: Any, streets: Path, tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    arguments = ("evaluate", BUILT_IN, "--data", streets, "--no-resize")
    result = run(*arguments, "--csv", table, "--json")
    found = json.loads(result.out)
    dataset = isanet_zoo.open_dataset("camvid", streets, "val")
    rows: list[tuple[Path, isanet_zoo.Scores]] = []
    scores = isanet_zoo.evaluate(
        isanet_zoo.Predictor(BUILT_IN, resize=False, device="cpu"),
        dataset,
        each=lambda path, own: rows.append((path, own)),
    )
    assert found["miou"] == scores.miou
    assert found["iou"] == scores.iou
    with table.open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["image"] for row in written] == [str(path) for path, _ in rows]
    assert [float(row["mIoU"]) for row in written] == [own.miou for _, own in rows]
    result = run(*arguments, "--flip")
    assert result.status == 0
    assert "Bicyclist" in result.out
    assert "mIoU (mean of 11 of 11 classes)" in result.out
    (error,) = run("evaluate", BUILT_IN, "--data", tmp_path).errors
    assert "does not exist; a camvid data set is expected as" in error


def test_torchrun_spreads_an_evaluation_and_changes_nothing(
    run: Any, streets: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", BUILT_IN, "--data", str(streets), "--device", "cpu"]
    arguments += ["--json", "--no-resize"]
    alone = json.loads(run(*arguments).out)
    processes.forkserver()
    # What torchrun does, with functions instead of interpreters that import everything.
    launch = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="forkserver"
    )
    table = tmp_path / "images.csv"
    printed = elastic_launch(launch, print_of)([*arguments, "--csv", str(table)])
    assert json.loads(printed[0]) == alone
    assert printed[1] == ""
    with table.open(encoding="utf-8") as file:
        images = [Path(row["image"]).name for row in csv.DictReader(file)]
    assert images == ["0.png", "1.png", "2.png"]


def print_of(arguments: list[str]) -> str:
    """Return what a command prints in a process of torchrun."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(arguments) == 0
    return printed.getvalue()
