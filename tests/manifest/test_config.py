"""Ranges of a network's numbers and of its preprocessing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import HeadConfig, NetworkConfig, Preprocess
from isanet_zoo.manifest.lookup import load_manifest

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels is 0; it must be a whole number from 1 to 4096"),
        ({"channels": 10**9}, "channels is 1000000000; it must be a whole number from 1 to 4096"),
        ({"key_channels": 2.5}, r"key_channels is 2\.5"),
        ({"aux_channels": True}, "aux_channels is True"),
        ({"partition": (8, 0)}, r"partition\[1\] is 0; it must be a whole number from 1 to 32"),
        ({"partition": (33, 8)}, r"partition\[0\] is 33"),
        ({"partition": 8}, "partition is 8; it must be a list"),
        ({"fuse_kernel": 5}, "fuse_kernel is 5; it must be one of 1, 3"),
        ({"fuse_kernel": True}, "fuse_kernel is True"),
        ({"value_bias": 1}, "value_bias is 1; it must be true or false"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be one of 'relu', 'leaky_relu'"),
        ({"dropout": 1.0}, r"dropout is 1\.0; it must be a number from 0 to 0\.99"),
        ({"dropout": NAN}, "dropout is nan"),
        ({"resize": "nearest"}, "resize is 'nearest'; it must be one of 'half_pixel'"),
    ],
)
def test_head_number_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        HeadConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0; it must be a whole number from 1 to 4096"),
        ({"num_classes": 10**12}, "num_classes is 1000000000000; it must be"),
        ({"num_classes": None}, "num_classes is None"),
        ({"in_chans": 10**9}, "in_chans is 1000000000; it must be a whole number from 1 to 1024"),
        ({"in_chans": 0}, "in_chans is 0"),
        ({"backbone": ""}, "backbone is ''; it must be printable text of 1 to 100 characters"),
        ({"backbone": None}, "backbone is None; it must be a string"),
        ({"backbone": "resnet50\x00"}, "backbone is 'resnet50"),
        ({"backbone": "x" * 101}, "backbone is 'x+"),
    ],
)
def test_network_number_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        replace(NetworkConfig("test_resnet", 5), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0, 0)}, "mean has 2 items; there must be 3"),
        ({"mean": (NAN, 0, 0)}, r"mean\[0\] is nan; it must be a number from -1000 to 1000"),
        ({"mean": (0, -INF, 0)}, r"mean\[1\] is -inf"),
        ({"mean": (0, 0, 1e30)}, r"mean\[2\] is 1e\+30"),
        ({"std": (0, 1, 1)}, r"std\[0\] is 0; it must be a number from 0\.01 to 10000"),
        ({"std": (1, -1, 1)}, r"std\[1\] is -1"),
        ({"std": (1, 1, 1e-30)}, r"std\[2\] is 1e-30"),
        ({"std": (1, 1, INF)}, r"std\[2\] is inf"),
        ({"order": "gbr"}, "order is 'gbr'; it must be one of 'rgb', 'bgr'"),
        ({"resize": (0, 64)}, r"resize\[0\] is 0; it must be a whole number from 1 to 4096"),
        ({"resize": (10**9, 10**9)}, r"resize\[0\] is 1000000000"),
        ({"resize": (4096, 4096)}, r"images of \(4096, 4096\) pixels .* need .* 16777216 pixels"),
        ({"resize": (4096, 1), "pad": (1, 4096)}, r"images of \(4096, 4096\) pixels"),
        (
            {"resize": (1024, 1024), "window": (32, 32), "stride": (32, 32)},
            r"images of \(1024, 1024\) pixels .* need 1024 tiles .*; at most 100",
        ),
        (
            {"pad": (1400, 1400), "window": (512, 512), "stride": (128, 128)},
            r"images of \(1400, 1400\) pixels .* need 64 tiles and 16777216 pixels",
        ),
        ({"pad": (64, 5000)}, r"pad\[1\] is 5000"),
        ({"window": (64, 64)}, r"window is \(64, 64\), stride None; pass both or none"),
        ({"stride": (64, 64)}, r"window is None, stride \(64, 64\); pass both or none"),
        (
            {"window": (1, 1), "stride": (1, 1)},
            r"window\[0\] is 1; it must be a whole number from 32",
        ),
        (
            {"window": (64, 64), "stride": (64, 65)},
            r"stride is \(64, 65\); it must be from a quarter",
        ),
        (
            {"window": (64, 64), "stride": (15, 64)},
            r"stride is \(15, 64\); it must be from a quarter",
        ),
    ],
)
def test_preprocess_number_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Preprocess(**options)


@given(st.tuples(st.floats(-1000, 1000), st.floats(0.01, 10_000)))
def test_preprocess_accepts_its_bounds(numbers: tuple[float, float]) -> None:
    mean, std = numbers
    preprocess = Preprocess(mean=(mean,) * 3, std=[std] * 3)  # type: ignore[arg-type]
    assert (preprocess.mean, preprocess.std) == ((mean,) * 3, (std,) * 3)


def test_published_configurations_are_within_range() -> None:
    assert len(load_manifest()) > 10  # building a record checks it
