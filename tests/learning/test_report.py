"""Tests of the report of a run, of `on_epoch`, and of early stopping."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isanet_zoo import (
    EpochResult,
    LabelSet,
    Recipe,
    Segmentation,
    SegmentationDataset,
    SegmentationMetrics,
    predict,
    train,
)
from isanet_zoo.learning.plots import draw_confusion, draw_curves, draw_predictions
from isanet_zoo.learning.report import next_steps
from isanet_zoo.learning.run_folder import REPORT
from isanet_zoo.learning.run_state import Epoch, best_of
from isanet_zoo.zoo import create_model
from tests.learning import tiny
from tests.learning.test_run import SHORT, contents, read_log, replace_miou

Run = tuple[Path, SegmentationDataset, list[EpochResult]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder of a run of three epochs, its validation, and what `on_epoch` received."""
    folder = tmp_path_factory.mktemp("report")
    dataset = tiny.dataset(folder / "data", sizes=[(48, 64)] * 4)
    validation = tiny.dataset(folder / "data", "val", sizes=[(48, 64), (64, 80), (40, 72)])
    results: list[EpochResult] = []

    def keep(result: EpochResult) -> None:
        assert len(read_log(result.folder)) == result.epoch.epoch  # the files are written
        assert (result.folder / "report.md").is_file()
        results.append(result)

    recipe = replace(SHORT, epochs=3, lr=0.05)
    model = tiny.network(dataset.label_set)
    train(model, dataset, recipe, folder / "run", validation=validation, on_epoch=keep)
    return folder / "run", validation, results


# Numbers


def test_confusion_and_iou_equal_those_of_predictions(run: Run) -> None:
    out, validation, results = run
    metrics = SegmentationMetrics(3, classes=tiny.CLASSES)
    model = create_model(str(out / "best.safetensors"), pretrained=True)
    for index, (image, _) in enumerate(validation.pairs):
        segmentation = predict(model, image)
        assert isinstance(segmentation, Segmentation)
        metrics.update(segmentation.labels, validation.labels(index))
    scores = metrics.compute()
    with (out / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["mask / prediction", *tiny.CLASSES]
    assert [row[0] for row in rows] == list(tiny.CLASSES)
    assert np.array_equal([[int(count) for count in row[1:]] for row in rows], metrics.confusion)
    best = results[-1].best
    row = read_log(out)[best.epoch - 1]
    assert float(row["miou"]) == best.miou == scores.miou
    assert float(row["pixel_accuracy"]) == scores.pixel_accuracy
    for name, iou in scores.iou.items():
        assert row[f"iou {name}"] == ("" if np.isnan(iou) else str(iou))
        text = "-" if np.isnan(iou) else f"{100 * iou:.2f}"
        assert f"| {name} | {text} |" in (out / "report.md").read_text()
        assert f"{name:<6}  {text:>6}" in results[-1].summary()
    assert f"| **mIoU** | {100 * scores.miou:.2f} |" in (out / "report.md").read_text()


def test_on_epoch_receives_every_epoch_with_its_scores(run: Run) -> None:
    out, _, results = run
    assert [len(result.epochs) for result in results] == [1, 2, 3]
    for result, row in zip(results, read_log(out), strict=True):
        assert (result.epoch.epoch, str(result.epoch.loss)) == (int(row["epoch"]), row["loss"])
        assert result.scores is not None
        assert result.scores.miou == result.epoch.miou
        assert result.confusion is not None
        counted = SegmentationMetrics(3, classes=tiny.CLASSES)
        counted.confusion = result.confusion
        np.testing.assert_equal(counted.compute(), result.scores)
        assert result.folder == out
        assert result.model.classes == tiny.CLASSES
    best = max(result.epoch.miou or 0 for result in results)
    assert results[-1].best.miou == best


def test_resumed_run_calls_on_epoch_for_its_last_epoch(run: Run) -> None:
    out, validation, results = run
    before, again = contents(out), list[EpochResult]()
    train(
        tiny.network(validation.label_set, seed=1),
        tiny.dataset(out.parent / "data", sizes=[(48, 64)] * 4),
        results[-1].recipe,
        out,
        validation=validation,
        resume=True,
        on_epoch=again.append,
    )
    assert [result.epochs for result in again] == [results[-1].epochs]
    assert contents(out) == before


def test_recipe_file_is_the_recipe_of_the_run(run: Run) -> None:
    out, _, results = run
    assert Recipe.load(out / "recipe.json") == results[-1].recipe


def test_report_states_the_run_and_the_next_steps(run: Run, tmp_path: Path) -> None:
    out, _, results = run
    report, best = (out / "report.md").read_text(), results[-1].best
    for text in (
        f"best epoch {best.epoch} of 3: mIoU {100 * (best.miou or 0):.2f} (",
        "4 images of data train, validation on 3 of data val",
        "ISANet on test_resnet, 3 classes",
        "2 steps of 2 images per epoch, crop 48 x 64, sgd, lr 0.05 (poly), cross_entropy",
        f"torch {torch.__version__}",
        *next_steps(),
    ):
        assert text in report
    for name in REPORT:
        assert name == "report.md" or f"({name})" in report
    assert next_steps(tmp_path / "a b")[1].startswith(f"isanet-zoo evaluate '{tmp_path}/a b/best.")


def test_report_without_validation_has_curves_only(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 4)
    results: list[EpochResult] = []
    model = tiny.network(dataset.label_set)
    train(model, dataset, SHORT, tmp_path / "run", on_epoch=results.append)
    names = {"log.csv", "recipe.json", "report.md", "curves.png"}
    assert names == set(contents(tmp_path / "run")) & set(REPORT)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "confusion" not in report
    assert results[-1].scores is None
    assert results[-1].confusion is None
    assert results[-1].summary() == "2 of 2 epochs"


# Early stopping


@pytest.mark.parametrize(
    ("every", "scores", "end", "best"),
    [
        (1, (0.2, 0.5, 0.5, 0.4), 4, 2),
        (1, (0.2, 0.1, 0.3, 0.1, 0.2), 5, 3),
        (1, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 6, 6),
        (2, (0.5, 0.4), 4, 2),
    ],
)
def test_run_ends_when_miou_does_not_improve(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    scores: tuple[float, ...],
    end: int,
    best: int,
) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    recipe = replace(SHORT, epochs=6, patience=2)
    for resume in (False, True):  # a stopped run is not trained further
        results: list[EpochResult] = []
        replace_miou(monkeypatch, *(scores[-1:] if resume else scores))
        train(
            tiny.network(dataset.label_set),
            dataset,
            recipe,
            tmp_path / "run",
            validation=dataset,
            evaluate_every=every,
            resume=resume,
            on_epoch=results.append,
        )
        assert len(results) == (1 if resume else end)
        assert (results[-1].epoch.epoch, results[-1].best.epoch) == (end, best)
        planned = "; 6 epochs were planned" if end < 6 else ""
        assert results[-1].summary().endswith(planned)
    assert len(read_log(tmp_path / "run")) == end


def epochs(*scores: float | None) -> list[Epoch]:
    return [
        Epoch(number, number, 1 / number, 0.1, 0.0, score, score, 2, ())
        for number, score in enumerate(scores, 1)
    ]


def test_best_epoch_is_the_first_with_the_highest_miou() -> None:
    assert best_of(epochs(0.1, None, 0.3, 0.3, 0.2)).epoch == 3
    assert best_of(epochs(0.0, None)).epoch == 1
    assert best_of(epochs(None, None)).epoch == 2


# Drawings


def test_curves_mark_the_best_epoch_at_its_place() -> None:
    drawn = epochs(0.2, 0.4, 0.6, 0.4, 0.2)
    pixels = np.asarray(draw_curves(drawn, best_of(drawn))).astype(int)
    assert pixels.shape == (260, 1080, 3)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 100)
    y, x = (axis.mean() for axis in np.nonzero(red[:, 720:]))
    assert x == pytest.approx((58 + 344) / 2, abs=1)  # the third of five epochs
    assert y == pytest.approx(30, abs=1)  # 60 per cent is the highest tick
    assert draw_curves(epochs(None, None), epochs(None)[0]).size == (720, 260)
    for values in ((0.5,), (0.5, 0.5), (0.0, 0.0), (1e-9, 1.0)):
        draw_curves(epochs(*values), epochs(*values)[0])


def test_confusion_cells_have_the_colour_of_their_fraction() -> None:
    confusion = np.array([[30, 10], [0, 0]])
    pixels = np.asarray(draw_confusion(confusion, ("road", "sky")))
    left = int((pixels[52] < 225).any(-1).argmax())  # where the first cell starts
    cells = [[pixels[54 + 52 * row, left + 52 * column + 4] for column in (0, 1)] for row in (0, 1)]
    for row, column, fraction in ((0, 0, 0.75), (0, 1, 0.25), (1, 0, 0.0), (1, 1, 0.0)):
        expected = [round(255 - fraction * (255 - end)) for end in (31, 95, 168)]
        np.testing.assert_allclose(cells[row][column], expected, atol=1)
    many = draw_confusion(np.eye(150, dtype=np.int64), [f"class {n}" for n in range(150)])
    assert max(many.size) < 2400


def test_predictions_show_image_mask_and_prediction_side_by_side(tmp_path: Path) -> None:
    labels = LabelSet.generic(3)
    chance = np.random.default_rng(0)
    rows = []
    for number, (height, width) in enumerate(((60, 80), (90, 50))):
        path = tmp_path / f"{number}.png"
        pixels = chance.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        maps = [chance.integers(0, 3, (height, width)).astype(np.uint8) for _ in range(2)]
        truth, prediction = (Segmentation(each, labels, path=path) for each in maps)
        rows.append((path.name, truth, prediction))
    drawn = np.asarray(draw_predictions(rows, labels))
    top = 26
    for _, truth, prediction in rows:
        height, width = truth.labels.shape
        expected = [truth.overlay(alpha=0.0, legend=False)]
        expected += [each.overlay(alpha=0.6, legend=False) for each in (truth, prediction)]
        for number, image in enumerate(expected):
            left = 6 + number * (width + 6)
            found = drawn[top + 16 : top + 16 + height, left : left + width]
            assert np.array_equal(found, np.asarray(image))
        top += height + 24
    assert drawn.shape[1] == 6 + 3 * 86
