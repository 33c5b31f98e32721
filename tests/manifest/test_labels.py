"""Label sets, against what their publishers print."""

from __future__ import annotations

import dataclasses

import pytest

from isanet_zoo.errors import InputError, UnknownModelError
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import get_weights

VOC, ADE20K, CITYSCAPES = (
    get_weights(f"isanet_resnet50os8_{dataset}").label_set
    for dataset in ("voc", "ade20k", "cityscapes")
)


def make_labels(*names: str) -> LabelSet:
    return dataclasses.replace(LabelSet.generic(len(names)), names=names)


def test_generic_colours_are_vocs() -> None:
    assert LabelSet.generic(21).colours == VOC.colours
    assert LabelSet.generic(150).palette[:21] == VOC.palette


def test_256_generic_classes_have_256_colours() -> None:
    labels = LabelSet.generic(256)
    assert len(labels) == len(set(labels.colours)) == 256
    assert (labels.names[255], labels.official_ids[255]) == ("class 255", 255)


@pytest.mark.parametrize(
    ("labels", "name", "colour", "official_id"),
    [
        (VOC, "person", (192, 128, 128), 15),
        (CITYSCAPES, "road", (128, 64, 128), 7),
        (CITYSCAPES, "bicycle", (119, 11, 32), 33),
        (ADE20K, "wall", (120, 120, 120), 1),
        (ADE20K, "flag", (92, 0, 255), 150),
    ],
    ids=["voc", "cityscapes, first", "cityscapes, last", "ade20k, first", "ade20k, last"],
)
def test_published_classes_have_their_colours_and_ids(
    labels: LabelSet, name: str, colour: tuple[int, int, int], official_id: int
) -> None:
    index = labels.index(name)
    assert labels.colours[index] == colour
    assert labels.official_ids[index] == official_id


@pytest.mark.parametrize("labels", [VOC, ADE20K, CITYSCAPES], ids=lambda labels: labels.name)
def test_every_class_is_found_by_id_and_by_name(labels: LabelSet) -> None:
    for index, name in enumerate(labels.names):
        assert labels.index(index) == index
        assert labels.index(name) == index


def test_a_class_is_found_by_its_first_synonym_alone() -> None:
    labels = make_labels("sky", "building, edifice", "car, auto")
    assert labels.short_name(1) == "building"
    assert labels.index("building") == 1
    with pytest.raises(UnknownModelError):
        labels.index("edifice")


def test_a_whole_name_goes_before_a_synonym_and_the_first_class_before_others() -> None:
    labels = make_labels("door, gate", "screen, monitor", "screen, crt", "door")
    assert labels.index("screen") == 1
    assert labels.index("door") == 3


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("rode", "Cityscapes has no class 'rode'; did you mean road"),
        ("zzzz", "Cityscapes has no class 'zzzz'; see label_set.names"),
        (19, "Cityscapes has no class 19; ids are 0..18"),
        (-1, "Cityscapes has no class -1; ids are 0..18"),
        (255, "Cityscapes has no class 255; ids are 0..18"),
    ],
)
def test_an_unknown_class_is_answered_with_advice(which: int | str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        CITYSCAPES.index(which)


@pytest.mark.parametrize("field", ["palette", "official_ids"])
def test_each_class_needs_a_colour_and_an_id(field: str) -> None:
    short = getattr(LabelSet.generic(3), field)[:2]
    with pytest.raises(InputError, match=f"3 names but 2 entries in {field}"):
        dataclasses.replace(LabelSet.generic(3), **{field: short})
