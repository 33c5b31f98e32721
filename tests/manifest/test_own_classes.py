"""Own classes from the classes of a model, and the rows of a classifier that they keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isanet_zoo import InputError, LabelSet, UnknownModelError, get_weights, merge_classes
from isanet_zoo.manifest.own_classes import match_classes, name_classes, read_own_classes

ADE = get_weights("isanet_resnet50os8_ade20k").label_set
CITY = get_weights("isanet_resnet50os8_cityscapes").label_set


def test_merge_classes_groups_by_name_synonym_and_id_with_colours() -> None:
    merged = merge_classes(
        CITY,
        {
            "vehicle": {"classes": ["car", "bus", 14], "colour": "#0a0b0c"},
            "way": ("sidewalk", "road"),
            "nature": "vegetation",
        },
        rest="other",
    )
    assert merged.label_set.names == ("vehicle", "way", "nature", "other")
    assert merged.groups[:3] == ((13, 15, 14), (1, 0), (8,))
    assert sorted(index for group in merged.groups for index in group) == list(range(19))
    assert merged.label_set.palette == ("#0a0b0c", *(CITY.palette[i] for i in (1, 8, 2)))
    assert merged.table[:3] == [1, 1, 3]
    assert merged.table[19:] == [255] * (256 - 19)
    assert merge_classes(ADE, {"edifice": "building"}).groups[0] == (ADE.index("building"),)


def test_merge_classes_without_a_rest_keeps_the_other_classes() -> None:
    merged = merge_classes(CITY, {"way": ["road", "sidewalk"]})
    assert merged.label_set.names == ("way", *CITY.names[2:])
    assert merged.groups[1:] == tuple((index,) for index in range(2, 19))
    whole = merge_classes(CITY, {name: name for name in CITY.names}, rest="nothing")
    assert whole.label_set.names == CITY.names  # nothing remains
    assert merge_classes(CITY, None).label_set is CITY


@pytest.mark.parametrize(
    ("classes", "rest", "error", "message"),
    [
        ({"a": ["caar"]}, None, UnknownModelError, "no class 'caar'; did you mean car"),
        ({"a": [19]}, None, UnknownModelError, "ids are 0..18"),
        ({"a": ["car"], "b": ["bus", 13]}, None, InputError, "'car' occurs twice, in 'a', 'b'"),
        ({"a": ["car", "car"]}, None, InputError, "'car' occurs twice, in 'a'"),
        ({"a": []}, None, InputError, "class 'a' must be a list of at least one name"),
        ({"a": 1.5}, None, InputError, "class 'a' must be a list of at least one name"),
        ({"a": [None]}, None, InputError, "class is a NoneType"),
        ({"a": {"colour": "#000000"}}, None, InputError, "class 'a' must be a list"),
        ({"a": {"classes": "car", "color": "red"}}, None, InputError, "'a' has 'color'"),
        ({"a": {"classes": "car", "colour": "red"}}, None, InputError, "a colour like '#00ff7f'"),
        ({"a": "car"}, "a", InputError, "two classes have the name 'a'"),
        ({"bus": "car"}, None, InputError, "two classes have the name 'bus'"),
        ({3: "car"}, None, InputError, "must be a string"),
        ({"": "car"}, None, InputError, "characters"),
        (["car"], None, InputError, "classes is a list; pass a dict"),
        (None, "other", InputError, "rest is 'other', but there are no own classes"),
    ],
)
def test_merge_classes_wrong_classes_are_refused(
    classes: Any, rest: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        merge_classes(CITY, classes, rest)


def test_read_own_classes_returns_what_merge_classes_takes(tmp_path: Path) -> None:
    classes = {"way": ["road", 1], "vehicle": {"classes": ["car"], "colour": "#ff0000"}}
    (tmp_path / "own.json").write_text(json.dumps(classes))
    assert read_own_classes(tmp_path / "own.json") == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "cannot be read"),
        ('["car"]', "is not an object of names and lists"),
        ('{"a": ["car"], "a": ["bus"]}', "the key 'a' occurs twice"),
        ('{"a": null}', "class 'a' must be a list"),
    ],
)
def test_read_own_classes_other_files_are_refused(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "own.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_own_classes(tmp_path / "own.json")


def test_match_classes_compares_names_without_case_and_synonyms() -> None:
    own = name_classes(["Traffic_Light", "pothole", "ROAD", "side-walk"], CITY)
    assert match_classes(own, CITY) == (6, None, 0, None)
    assert own.palette[0] == CITY.palette[6]
    assert own.palette[2] == CITY.palette[0]
    assert len(set(own.palette)) == 4
    houses = name_classes(["building", ADE.names[0]], ADE)
    assert match_classes(houses, ADE) == (ADE.index("building"), 0)


def test_match_classes_without_names_compares_the_number() -> None:
    own = name_classes(["a", "b"], CITY)
    assert match_classes(own, LabelSet.generic(2)) == (0, 1)
    assert match_classes(own, LabelSet.generic(3)) == (None, None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("road", "classes is a str; pass a list of names"),
        ([], "num_classes is 0"),
        (["road", ""], "characters"),
        (["road", 3], "must be a string"),
        (["road", "road"], "two classes have the name 'road'"),
        (["road", "Road"], "'road' and 'Road' are both 'road' of Cityscapes"),
        ([f"class {n}" for n in range(5000)], "num_classes is 5000"),
    ],
)
def test_name_classes_wrong_names_are_refused(names: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_classes(name_classes(names, CITY), CITY)
