"""Tests of `evaluate`, compared with a loop, and on data sets whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from isanet_zoo import (
    InputError,
    LabelSet,
    Predictor,
    Scores,
    Segmentation,
    SegmentationDataset,
    evaluate,
    open_dataset,
)
from isanet_zoo.manifest.lookup import load_label_sets
from tests.learning import tiny

SIZES = [(48, 64), (41, 57), (64, 40), (48, 64), (33, 70)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    """Images of several sizes."""
    return tiny.dataset(tmp_path_factory.mktemp("data"), "val", sizes=SIZES)


def segment(predictor: Predictor, path: Path) -> Segmentation:
    segmentation = predictor(path)
    assert isinstance(segmentation, Segmentation)
    return segmentation


def count_in_a_loop(predictor: Predictor, pairs: Sequence[tuple[Path, Path]]) -> NDArray[Any]:
    """Return the confusion matrix, (target, prediction)."""
    confusion = np.zeros((3, 3), np.int64)
    for image, mask in pairs:
        found = segment(predictor, image).labels
        with Image.open(mask) as opened:
            wanted = np.array(opened)
        assert found.shape == wanted.shape
        counted = wanted != 255
        np.add.at(confusion, (wanted[counted], found[counted]), 1)
    return confusion


def assert_scores(scores: Scores, confusion: NDArray[Any]) -> None:
    right, wanted, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = wanted + found > 0
    iou = right[occurs] / (wanted + found - right)[occurs]
    ours = np.array(list(scores.iou.values()))
    np.testing.assert_allclose(ours[occurs], iou)
    assert np.isnan(ours[~occurs]).all()
    assert scores.miou == pytest.approx(iou.mean())
    assert scores.pixel_accuracy == pytest.approx(right.sum() / confusion.sum())
    assert scores.mean_accuracy == pytest.approx((right / wanted)[wanted > 0].mean())
    assert scores.classes_evaluated == occurs.sum()


def test_scores_equal_those_of_a_loop(dataset: SegmentationDataset) -> None:
    model = tiny.network(dataset.label_set).train()
    confusion = count_in_a_loop(Predictor(model), dataset.pairs)
    assert (confusion.sum(0) > 0).sum() > 1  # the network predicts several classes
    scores = evaluate(model, dataset)
    assert_scores(scores, confusion)
    assert list(scores.iou) == list(tiny.CLASSES)
    assert model.training


@pytest.mark.parametrize(
    "options",
    [{"flip": True}, {"scales": (0.5, 1.5)}, {"tile": 32}, {"batch_size": 2}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_a_predictor_are_used(
    dataset: SegmentationDataset, options: dict[str, Any]
) -> None:
    model = tiny.network(dataset.label_set)
    predictor = Predictor(model, **options)
    scores = evaluate(predictor, dataset)
    assert_scores(scores, count_in_a_loop(predictor, dataset.pairs))
    assert (scores != evaluate(model, dataset)) == ("batch_size" not in options)


def test_images_are_resized_by_the_preprocessing_and_masks_are_not(
    dataset: SegmentationDataset,
) -> None:
    model = tiny.network(dataset.label_set)
    plain = evaluate(model, dataset)
    model.preprocess = replace(model.preprocess, resize=(96, 80))
    scores = evaluate(model, dataset)
    assert scores != plain
    assert_scores(scores, count_in_a_loop(Predictor(model), dataset.pairs))
    assert evaluate(Predictor(model, resize=False), dataset) == plain


def test_scores_of_images_are_in_the_data_set_s_order(dataset: SegmentationDataset) -> None:
    model = tiny.network(dataset.label_set)
    rows: list[tuple[Path, Scores]] = []
    done: list[tuple[int, int | None]] = []
    scores = evaluate(
        Predictor(model, batch_size=3),  # images of one size share a batch
        dataset,
        each=lambda path, scores: rows.append((path, scores)),
        progress=lambda *moment: done.append(moment),
    )
    assert [path for path, _ in rows] == [image for image, _ in dataset.pairs]
    for (_, of_image), pair in zip(rows, dataset.pairs, strict=True):
        assert_scores(of_image, count_in_a_loop(Predictor(model), [pair]))
    assert done == [(number, len(SIZES)) for number in range(1, len(SIZES) + 1)]
    assert scores == evaluate(model, dataset)


def test_data_set_of_other_classes_is_refused(dataset: SegmentationDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predicts the 4 classes of 4 classes, .* has the 3 of"):
        evaluate(tiny.network(LabelSet.generic(4)), dataset)
    other = replace(dataset.label_set, names=("box", "ground", "bar"))
    with pytest.raises(InputError, match="evaluate the model on its own data set"):
        evaluate(tiny.network(other), dataset)
    with pytest.raises(InputError, match="dataset is a NoneType; see open_dataset"):
        evaluate(tiny.network(other), None)  # type: ignore[arg-type]
    # For a network with generic names, only the number of classes is compared.
    expected = evaluate(tiny.network(dataset.label_set), dataset)
    assert evaluate(tiny.network(), dataset) == expected


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    (tmp_path / "data" / "images" / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png"):
        evaluate(tiny.network(dataset.label_set), dataset)


def test_all_masks_are_checked_before_the_first_image(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 3)
    for _, mask in dataset.pairs[1:]:
        Image.fromarray(np.full((48, 64), 9, np.uint8)).save(mask)
    model = tiny.network(dataset.label_set)
    moments: list[tuple[int, int | None]] = []
    with pytest.raises(InputError, match=r"2 of 3 pairs"):
        evaluate(
            model,
            dataset,
            progress=lambda *_: pytest.fail("an image was segmented"),
            check_progress=lambda *moment: moments.append(moment),
        )
    assert moments[-1] == (3, 3)
    done: list[tuple[int, int | None]] = []
    with pytest.raises(InputError, match=r"^\S*1\.png contains 9"):
        evaluate(model, dataset, check=False, progress=lambda *moment: done.append(moment))


@pytest.mark.parametrize("check", [True, False])
def test_masks_that_are_all_ignored_are_refused(tmp_path: Path, check: bool) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)])
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(dataset.pairs[0][1])
    with pytest.raises(InputError, match=r"every pixel of the .* is ignored"):
        evaluate(tiny.network(dataset.label_set), dataset, check=check)


# The masks of these data sets are the labels that the network predicts, but for pixels without a
# class. Layout -> mask values without a class:
VOID = {
    "ade20k": (0,),
    "cityscapes": (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
    "camvid": (11, 255),
    "voc": (255,),
    "pascal_context": (0, 255),
}


def write(layout: str, root: Path, name: str, image: Any, mask: Any) -> None:
    """Write a pair in a layout."""
    image_path, mask_path = {
        "ade20k": (f"images/validation/{name}.jpg", f"annotations/validation/{name}.png"),
        "cityscapes": (
            f"leftImg8bit/val/town/town_{name}_leftImg8bit.png",
            f"gtFine/val/town/town_{name}_gtFine_labelIds.png",
        ),
        "camvid": (f"val/{name}.png", f"valannot/{name}.png"),
        "voc": (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"),
        "pascal_context": (f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png"),
    }[layout]
    for path, content in ((root / image_path, image), (root / mask_path, mask)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)
    lists = {"voc": "Segmentation", "pascal_context": "SegmentationContext"}
    if layout in lists:
        names = root / "ImageSets" / lists[layout] / "val.txt"
        names.parent.mkdir(parents=True, exist_ok=True)
        with names.open("a") as file:
            file.write(f"{name}\n")


@pytest.mark.parametrize("layout", VOID)
def test_pixels_without_a_class_are_not_counted(layout: str, tmp_path: Path) -> None:
    labels = load_label_sets()[layout]
    predictor = Predictor(tiny.network(labels))
    chance = np.random.default_rng(0)
    wrong, counted = 0, 0
    for number, size in enumerate([(48, 64), (40, 56)]):
        image, _ = tiny.draw(chance, size)
        name = str(number)
        write(layout, tmp_path, name, image, np.zeros(size, np.uint8))
        found = segment(predictor, open_dataset(layout, tmp_path, "val").path(number))
        mask = found.official_ids()
        void = chance.random(size) < 0.5
        mask[void] = chance.choice(VOID[layout], void.sum())
        missed = ~void & (chance.random(size) < 0.25)
        mask[missed] = np.roll(labels.official_ids, 1)[found.labels[missed]]
        wrong, counted = wrong + missed.sum(), counted + (~void).sum()
        write(layout, tmp_path / "again", name, image, mask)
    scores = evaluate(predictor, open_dataset(layout, tmp_path / "again", "val"))
    assert scores.pixel_accuracy == 1 - wrong / counted
    assert list(scores.iou) == list(labels.names)


def test_own_classes_are_evaluated_on_masks_of_either_classes(
    dataset: SegmentationDataset,
) -> None:
    model = tiny.network(dataset.label_set)
    predictor = Predictor(model, classes={"thing": ["bar", "box"]}, rest="stuff")
    confusion = np.zeros((2, 2), np.int64)
    for image, mask in dataset.pairs:
        found = segment(predictor, image).labels
        with Image.open(mask) as opened:
            wanted = np.array(opened)
        for target, prediction in ((0, 0), (0, 1), (1, 0), (1, 1)):
            of_target = (wanted == 0) if target else (wanted == 1) | (wanted == 2)
            confusion[target, prediction] += (of_target & (found == prediction)).sum()
    scores = evaluate(predictor, dataset)
    assert_scores(scores, confusion)
    assert list(scores.iou) == ["thing", "stuff"]
    identity = Predictor(model, classes={"ground": "ground"})
    assert evaluate(identity, dataset) == evaluate(model, dataset)
    renamed = Predictor(model, classes={name.upper(): name for name in tiny.CLASSES})
    assert evaluate(renamed, dataset).miou == evaluate(model, dataset).miou
    own = SegmentationDataset(dataset.pairs, replace(dataset.label_set, names=("a", "b", "c")))
    with pytest.raises(InputError, match="evaluate the model on its own data set"):
        evaluate(predictor, own)
    names = Predictor(model, classes={"a": "ground", "b": "box", "c": "bar"})
    assert evaluate(names, own).miou == evaluate(model, dataset).miou
