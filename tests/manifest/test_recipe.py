"""Ranges of the hyper-parameters of a training run."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from isanet_zoo import Recipe, get_weights, records
from isanet_zoo.errors import InputError, UnknownModelError

RECIPE = get_weights("isanet_resnet50os8_voc").recipe
NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1 to 1000000"),
        ({"epochs": True}, "epochs is True"),
        ({"epochs": 10**12}, "epochs is 1000000000000; it must be a whole number from"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"crop": (0, 512)}, r"crop\[0\] is 0; it must be a whole number from 1 to 8192"),
        ({"crop": (512, 1.5)}, r"crop\[1\] is 1\.5"),
        ({"crop": 320}, "crop is 320; it must be a list"),
        ({"base_size": (2048, -1)}, r"base_size\[1\] is -1"),
        (
            {"scale": (2.0, 0.5)},
            r"scale is \(2\.0, 0\.5\); it must be two factors, the smaller first",
        ),
        ({"contrast": (0.0, 1.0)}, r"contrast\[0\] is 0\.0; it must be a number from 0\.01 to 100"),
        ({"saturation": (NAN, 1.0)}, r"saturation\[0\] is nan"),
        ({"flip": 1.1}, r"flip is 1\.1; it must be a number from 0 to 1"),
        ({"flip": -0.1}, r"flip is -0\.1"),
        ({"momentum": 2}, r"momentum is 2; it must be a number from 0 to 1"),
        ({"max_category_ratio": 75}, r"max_category_ratio is 75; it must be a number from 0 to 1"),
        ({"brightness": -1}, "brightness is -1; it must be a number from 0 to 255"),
        ({"hue": -1}, "hue is -1; it must be a number from 0 to 180"),
        ({"hue": 1e300}, r"hue is 1e\+300; it must be a number from 0 to 180"),
        ({"hue": NAN}, "hue is nan"),
        ({"head_multiplier": -1}, "head_multiplier is -1; it must be a number from 0 to 1000000"),
        ({"weight_decay": -1e-9}, "weight_decay is -1e-09; it must be a number from 0"),
        ({"min_lr": -1}, "min_lr is -1; it must be a number from 0"),
        ({"power": "0.9"}, r"power is '0\.9'; it must be a number from 0 to 100"),
        ({"aux_weight": -0.4}, r"aux_weight is -0\.4; it must be a number from 0"),
        ({"lr": 0.0, "min_lr": 0.0}, r"lr is 0\.0; it must be a number from 1e-12 to 1000000"),
        ({"lr": 0.01, "min_lr": 0.02}, r"lr is 0\.01; it must be at least min_lr, 0\.02"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"class_weights": 1.0}, r"class_weights is 1\.0; it must be a number from 1\.0001 to 100"),
        ({"ema": 1.0}, r"ema is 1\.0; it must be a number from 0 to 0\.999999"),
        ({"ema": -0.1}, r"ema is -0\.1"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; it must be one of 'sgd', 'adamw'"),
        ({"schedule": "adam"}, "schedule is 'adam'; it must be one of 'poly', 'cosine', 'const"),
        ({"loss": "adam"}, "loss is 'adam'; it must be one of 'cross_entropy', 'dice', 'focal'"),
        ({"warmup": 2}, "warmup is 2; it must be a number from 0 to 1"),
        ({"patience": 0}, "patience is 0; it must be a whole number from 1"),
        ({"precision": "adam"}, "precision is 'adam'; it must be one of 'float32', "),
        ({"frozen": "backbone"}, "frozen is 'backbone'; it must be a list"),
    ],
)
def test_recipe_option_out_of_range_is_refused_with_the_range(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        replace(RECIPE, **options)


@given(
    name=st.sampled_from([field.name for field in fields(RECIPE)]),
    value=st.sampled_from([10**12, -(10**12), 1e300, -1e300, NAN, b"", "\x1b", object(), ()]),
)
def test_recipe_absurd_value_of_any_field_is_refused(name: str, value: Any) -> None:
    if name == "frozen" and value == ():
        return
    with pytest.raises(InputError, match=name):
        replace(RECIPE, **{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"base_size": None},
        {"scale": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0)},
        {"flip": 0, "momentum": 0.0, "max_category_ratio": 1.0},
        {"flip": 1.0, "brightness": 0, "hue": 0},
        {"head_multiplier": 0, "weight_decay": 0, "power": 0, "aux_weight": 0},
        {"lr": 0.01, "min_lr": 0.01},
        {"min_lr": 0},
        {"class_weights": 1.02, "ema": 0.0},
    ],
)
def test_recipe_accepts_its_bounds(options: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **options)
    for name, value in options.items():
        assert getattr(recipe, name) == value


def test_upstream_recipe_is_the_published_one() -> None:
    assert Recipe.upstream("isanet_resnet50os8_voc") == RECIPE
    assert (RECIPE.lr, RECIPE.schedule, RECIPE.batch_size) == (0.01, "poly", 16)
    assert (RECIPE.warmup, RECIPE.loss, RECIPE.patience) == (0.0, "cross_entropy", None)
    with pytest.raises(UnknownModelError, match="did you mean isanet_resnet50os8_voc"):
        Recipe.upstream("isanet_resnet50os8_vok")


def test_recipe_of_an_earlier_version_has_neither_warmup_nor_another_loss() -> None:
    old = records.write(Recipe(lr=0.5))
    for name in ("warmup", "loss", "patience"):
        del old[name]
    assert records.read(Recipe, old, "old") == Recipe(lr=0.5, warmup=0.0)
    del old["lr"]
    with pytest.raises(ValueError, match="old: missing lr"):
        records.read(Recipe, old, "old")


def test_loaded_recipe_equals_the_written_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(records.write(RECIPE)))
    assert Recipe.load(path) == RECIPE
    path.write_text('{"lr": 0.5, "crop": [64, 96]}')
    assert Recipe.load(path) == Recipe(lr=0.5, crop=(64, 96))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rate": 1}', r"recipe\.json: unknown rate; .*write names and values like"),
        ('{"epoch": 1}', r"unknown epoch; did you mean epochs\?; write names"),
        (
            '{"lr": "low"}',
            r"recipe\.json\.lr is 'low'; it must be a number from 1e-12 to 1000000; w",
        ),
        ("[1]", r"recipe\.json is a list; it must be an object; write names and values like"),
        ("lr: 1", r"recipe\.json cannot be read: .*; write names and values like"),
        (None, r"recipe\.json cannot be read: No such file"),
    ],
)
def test_bad_recipe_file_is_refused_with_the_syntax(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "recipe.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        Recipe.load(path)
