"""The numbers of a training run: those that make no sense are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from isanet_zoo import get_weights
from isanet_zoo.errors import InputError

RECIPE = get_weights("isanet_resnet50os8_voc").recipe
NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number, at least 1"),
        ({"epochs": True}, "epochs is True"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"crop": (0, 512)}, r"crop \(0, 512\): a side is 0"),
        ({"crop": (512, 1.5)}, r"crop \(512, 1\.5\): a side is 1\.5"),
        ({"base_size": (2048, -1)}, r"base_size \(2048, -1\): a side is -1"),
        ({"scale": (2.0, 0.5)}, r"scale is \(2\.0, 0\.5\); give two factors, the smaller first"),
        ({"contrast": (0.0, 1.0)}, r"contrast is \(0\.0, 1\.0\)"),
        ({"saturation": (NAN, 1.0)}, r"saturation is \(nan, 1\.0\)"),
        ({"flip": 1.1}, r"flip is 1\.1; it must be within 0\.\.1"),
        ({"flip": -0.1}, r"flip is -0\.1"),
        ({"momentum": 2}, r"momentum is 2; it must be within 0\.\.1"),
        ({"max_category_ratio": 75}, r"max_category_ratio is 75; it must be within 0\.\.1"),
        ({"brightness": -1}, "brightness is -1; it must be at least 0"),
        ({"hue": -1}, "hue is -1; it must be at least 0"),
        ({"hue": NAN}, "hue is nan"),
        ({"head_multiplier": -1}, "head_multiplier is -1; it must be at least 0"),
        ({"weight_decay": -1e-9}, "weight_decay is -1e-09; it must be at least 0"),
        ({"min_lr": -1}, "min_lr is -1; it must be at least 0"),
        ({"power": "0.9"}, r"power is '0\.9'; it must be at least 0"),
        ({"aux_weight": -0.4}, r"aux_weight is -0\.4; it must be at least 0"),
        ({"lr": 0.0, "min_lr": 0.0}, r"lr is 0\.0; it must be positive and at least min_lr"),
        ({"lr": 0.01, "min_lr": 0.02}, r"lr is 0\.01; it must be positive and at least min_lr"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"class_weights": 1.0}, r"class_weights is 1\.0; it must be more than 1"),
        ({"ema": 1.0}, r"ema is 1\.0; it must be at least 0 and less than 1"),
        ({"ema": -0.1}, r"ema is -0\.1"),
    ],
)
def test_bad_numbers_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(RECIPE, **options)


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
def test_bounds_belong_to_what_is_allowed(options: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **options)
    for name, value in options.items():
        assert getattr(recipe, name) == value


@pytest.mark.parametrize("name", ["optimizer", "schedule", "precision"])
def test_unknown_choices_are_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 'adam'"):
        replace(RECIPE, **{name: "adam"})  # type: ignore[arg-type]
