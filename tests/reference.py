"""Checkpoints, inputs and pictures by rule, as they were made for the golden vectors in `data`.

Every tensor comes from a generator that is seeded with the key's checksum:
    rng = numpy.random.Generator(numpy.random.PCG64(zlib.crc32(key.encode())))
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DATA = Path(__file__).parent / "data"
CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19}
INPUTS = {  # case -> (seed, shape)
    "a128x160": (1, (1, 3, 128, 160)),
    "b97x141": (2, (1, 3, 97, 141)),
}
PICTURES = {  # name -> (seed, height, width)
    "img375x500": (101, 375, 500),
    "img100x1000": (103, 100, 1000),
    "img256x512": (105, 256, 512),
}
LAST_NORM = re.compile(r"backbone_net\.layer[1-4]\.\d+\.bn3\.weight")
SHARP = re.compile(r"(global|local)_relation\.(query|key)_project\.1\.0\.weight")


def golden(name: str) -> dict[str, NDArray[Any]]:
    """Read one file of golden vectors."""
    with np.load(DATA / "golden" / f"ssseg_{name}.npz") as file:
        return dict(file)


def upstream_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of one of the six models, under upstream's names."""
    _, backbone, dataset = name.split("_")
    shapes = {}
    table = DATA / "keys" / f"ssseg_{backbone.removesuffix('os8')}.tsv"
    for line in table.read_text().splitlines():
        key, shape, _ = line.split("\t")
        shapes[key] = tuple(int(number) for number in re.findall(r"\d+", shape))
    for key in ("decoder.1", "auxiliary_decoder.4"):  # all that depends on the data set
        shapes[f"{key}.weight"] = (CLASSES[dataset], 512, 1, 1)
        shapes[f"{key}.bias"] = (CLASSES[dataset],)
    return shapes


def fill(shapes: dict[str, tuple[int, ...]], *, sharp: bool = False) -> dict[str, Tensor]:
    """Return a state dict under upstream's names; with `sharp`, attention is far from uniform."""
    state = {key: torch.from_numpy(_value(key, shape, shapes)) for key, shape in shapes.items()}
    if sharp:
        state |= {key: 4.0 * tensor for key, tensor in state.items() if SHARP.fullmatch(key)}
    return state


def _value(key: str, shape: tuple[int, ...], keys: dict[str, tuple[int, ...]]) -> NDArray[Any]:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    is_norm = f"{key.rpartition('.')[0]}.running_mean" in keys
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_mean"):
        value = rng.normal(0, 0.1, shape)
    elif key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        value = rng.normal(0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    elif key.endswith(".weight") and is_norm:
        value = rng.uniform(0.5, 1.0, shape) * (0.25 if LAST_NORM.fullmatch(key) else 1.0)
    else:
        value = rng.normal(0, 0.1 if is_norm else 0.05, shape)
    return value.astype(np.float32)


def make_input(case: str) -> Tensor:
    """Return the (B, 3, H, W) network input of a golden case."""
    seed, shape = INPUTS[case]
    rng = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def make_picture(name: str, *, block: int = 1) -> NDArray[np.uint8]:
    """Return a test picture, (H, W, 3) uint8 RGB: noise, or flat blocks of `block` pixels."""
    seed, height, width = PICTURES[name]
    rows, columns = -(-height // block), -(-width // block)
    rng = np.random.Generator(np.random.PCG64(seed))
    bgr = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    large = bgr.repeat(block, 0).repeat(block, 1)[:height, :width]
    return np.ascontiguousarray(large[:, :, ::-1])


def containers(state: dict[str, Tensor]) -> Iterator[tuple[str, object, bool]]:
    """Give every form in which upstream ever saved a state dict: (name, content, zip or legacy)."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01}]}
    yield "2021, with optimiser", {"epoch": 60, "model": state, "optimizer": optimizer}, True
    yield (
        "2022, with scheduler",
        {"cur_epoch": 60, "cur_iter": 9, "optimizer": optimizer, "model": state},
        True,
    )
    yield "optimiser removed", {"epoch": 60, "model": state}, True
    yield "cleaned", {"model": state}, True
    yield "bare", state, True
    yield "distributed", {"model": {f"module.{key}": value for key, value in state.items()}}, True
    yield "legacy container", {"epoch": 60, "model": state, "optimizer": optimizer}, False
