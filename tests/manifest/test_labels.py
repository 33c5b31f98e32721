"""Label sets, compared with those that their publishers print."""

from __future__ import annotations

import dataclasses
from typing import Any

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


def test_generic_colours_are_those_of_voc() -> None:
    assert LabelSet.generic(21).colours == VOC.colours
    assert LabelSet.generic(150).palette[:21] == VOC.palette


def test_generic_256_classes_have_256_colours() -> None:
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
def test_index_finds_every_class_by_id_and_name(labels: LabelSet) -> None:
    for index, name in enumerate(labels.names):
        assert labels.index(index) == index
        assert labels.index(name) == index


def test_index_accepts_the_first_synonym_only() -> None:
    labels = make_labels("sky", "building, edifice", "car, auto")
    assert labels.short_name(1) == "building"
    assert labels.index("building") == 1
    with pytest.raises(UnknownModelError):
        labels.index("edifice")


def test_index_prefers_whole_names_and_earlier_classes() -> None:
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
        pytest.param(10**5000, "Cityscapes has no class of a very large id", id="large"),
    ],
)
def test_index_unknown_class_is_refused_with_advice(which: int | str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        CITYSCAPES.index(which)


@pytest.mark.parametrize("which", [None, 1.5, float("nan"), b"road", [1]])
def test_index_of_neither_id_nor_name_is_refused(which: Any) -> None:
    with pytest.raises(InputError, match=f"class is a {type(which).__name__}; it must be an id"):
        CITYSCAPES.index(which)


@pytest.mark.parametrize("field", ["palette", "official_ids"])
def test_label_set_with_too_few_colours_or_ids_is_refused(field: str) -> None:
    short = getattr(LabelSet.generic(3), field)[:2]
    with pytest.raises(InputError, match=f"3 names but 2 entries in {field}"):
        dataclasses.replace(LabelSet.generic(3), **{field: short})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a", "a", "b")}, "label set 'generic': two classes have the name 'a'"),
        ({"names": ("a", "", "b")}, r"names\[1\] is ''; it must be printable text of 1 to 200"),
        ({"names": ("a", "\x1b[31mb", "c")}, r"names\[1\] is .*; it must be printable text"),
        ({"names": ("a", "b" * 201, "c")}, r"names\[1\] is 'b+\.\.\.'; it must be printable text"),
        ({"names": "abc"}, "names is 'abc'; it must be a list"),
        ({"palette": ("red", "#000000", "#000001")}, r"palette\[0\] is 'red'; it must be a colour"),
        ({"palette": ("#00000A",) * 3}, r"palette\[0\] is '#00000A'; it must be a colour"),
        (
            {"official_ids": (0, 1, -1)},
            r"official_ids\[2\] is -1; it must be a whole number from 0",
        ),
        ({"official_ids": (0, 1, 256)}, "label set 'generic': official id 256 is above 255"),
        ({"ignore_index": 256}, "ignore_index is 256; it must be a whole number from 0 to 255"),
        ({"ignore_index": None}, "ignore_index is None; it must be a whole number from 0 to 255"),
        ({"name": ""}, "name is ''; it must be printable text of 1 to 100 characters"),
        ({"title": "a\nb"}, "title is .*; it must be printable text"),
    ],
)
def test_label_set_field_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LabelSet.generic(3), **change)


@pytest.mark.parametrize("num_classes", [0, -1, 4097, 10**12, 2.5, None, True])
def test_generic_with_an_absurd_class_count_is_refused_at_once(num_classes: Any) -> None:
    with pytest.raises(InputError, match=r"num_classes is .*a whole number from 1 to 4096"):
        LabelSet.generic(num_classes)


def test_generic_with_more_than_256_classes_has_ids_of_its_indices() -> None:
    assert LabelSet.generic(300).official_ids == tuple(range(300))
