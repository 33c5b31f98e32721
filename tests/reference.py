"""Checkpoints, inputs and images that are computed from seeds, as for the golden vectors in `data`.

Every tensor comes from a generator that is seeded with the key's checksum:
    rng = numpy.random.Generator(numpy.random.PCG64(zlib.crc32(key.encode())))
"""

from __future__ import annotations

import pickle
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
WITH_VECTORS = (  # sssegmentation's models that have golden vectors
    "isanet_resnet101os8_cityscapes",
    "isanet_resnet50os8_voc",
    "isanet_resnet50os8_ade20k",
)
CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19}
INPUTS = {  # case -> (seed, shape)
    "a128x160": (1, (1, 3, 128, 160)),
    "b97x141": (2, (1, 3, 97, 141)),
    "a_1x3x128x160": (0, (1, 3, 128, 160)),  # of the other families
    "b_1x3x97x141": (1, (1, 3, 97, 141)),
}
IMAGES = {  # name -> (seed, height, width)
    "img375x500": (101, 375, 500),
    "img100x1000": (103, 100, 1000),
    "img256x512": (105, 256, 512),
}
LAST_NORM = re.compile(  # of a residual branch: bn3, or bn2 of a block that has no bn3
    r"backbone(_net)?\.layer[1-4]\.\d+\.bn[23]\.weight|backbone\.bb_\d_\d+\.conv2\._batch_norm\.weight"
)
SHARP = (  # (keys, factor)
    (re.compile(r"(global|local)_relation\.(query|key)_project\.1\.0\.weight"), 4.0),
    (
        re.compile(
            r"decode_head\.(global|local)_relation\.(query|key)_project\.1\.bn\.(weight|bias)"
        ),
        5.0,
    ),
)
CLASSIFIERS = {  # family -> what depends on the number of classes
    "ssseg": ("decoder.1", "auxiliary_decoder.4"),
    "mmseg": ("decode_head.conv_seg", "auxiliary_head.conv_seg"),
    "bpkd": ("decode_head.conv_seg", "auxiliary_head.conv_seg"),
    "paddle": ("head.cls.1", "head.aux.2"),
    "openseg": ("cls_head", "dsn_head.3"),
    "openseg_torchbn": ("cls_head", "dsn_head.3"),
}


def golden(name: str, family: str = "ssseg") -> dict[str, NDArray[Any]]:
    """Read one file of golden vectors."""
    with np.load(DATA / "golden" / f"{family}_{name}.npz") as file:
        return dict(file)


def upstream_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of one of the six models, under upstream's names."""
    _, backbone, dataset = name.split("_")
    return shapes("ssseg", backbone.removesuffix("os8"), CLASSES[dataset])


def shapes(family: str, backbone: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of a family's network, under its names."""
    found = {}
    table = DATA / "keys" / f"{family}_{backbone}.tsv"
    for line in table.read_text().splitlines():
        key, shape, _ = line.split("\t")
        found[key] = tuple(int(number) for number in re.findall(r"\d+", shape))
    for key in CLASSIFIERS[family]:
        found[f"{key}.weight"] = (num_classes, *found[f"{key}.weight"][1:])
        found[f"{key}.bias"] = (num_classes,)
    return found


def fill(
    shapes: dict[str, tuple[int, ...]],
    *,
    sharp: bool = False,
    known: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return a state dict under upstream's names; with `sharp`, attention is far from uniform.

    Tensors that `known`, a state dict of the same family, has in the same shape are shared with it.
    """
    known = known or {}
    state = {
        key: known[key]
        if key in known and known[key].shape == shape
        else torch.from_numpy(_value(key, shape, shapes))
        for key, shape in shapes.items()
    }
    if "isa_head.1.weight" in state:  # the authors' norms take |weight|: so that a reader must
        for key, tensor in state.items():
            if key.endswith(".weight") and tensor.ndim == 1:
                tensor[::7] *= -1
    return sharpen(state) if sharp else state


def sharpen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a filled state dict whose attention is far from uniform."""
    for pattern, factor in SHARP:
        state = state | {key: factor * t for key, t in state.items() if pattern.fullmatch(key)}
    return state


def save(state: dict[str, Tensor], family: str, path: Path) -> Path:
    """Write a state dict as a family's toolbox does."""
    if family == "paddle":
        arrays = {key: tensor.numpy() for key, tensor in state.items()}
        path.write_bytes(pickle.dumps(arrays | {"StructuredToParameterName@@": {}}, protocol=2))
    elif family.startswith("openseg"):
        prefixed = {f"module.{key}": tensor for key, tensor in state.items()}
        content: dict[str, Any] = {"config_dict": {"network": "isa"}, "state_dict": prefixed}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif family == "mmseg":
        torch.save({"meta": {"epoch": 1, "CLASSES": ("a", "b")}, "state_dict": state}, path)
    elif family == "bpkd":
        torch.save({"state_dict": state}, path)
    else:
        torch.save({"model": state}, path)
    return path


def _value(key: str, shape: tuple[int, ...], keys: dict[str, tuple[int, ...]]) -> NDArray[Any]:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    stem = key.rpartition(".")[0]
    is_norm = f"{stem}.running_mean" in keys or f"{stem}._mean" in keys
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith(("running_mean", "._mean")):
        value = rng.normal(0, 0.1, shape)
    elif key.endswith(("running_var", "._variance")):
        value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        value = rng.normal(0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    elif key.endswith(".weight") and is_norm:
        last = LAST_NORM.fullmatch(key) and not (
            ".bn2." in key and key.replace(".bn2.", ".bn3.") in keys
        )
        value = rng.uniform(0.5, 1.0, shape) * (0.25 if last else 1.0)
    else:
        value = rng.normal(0, 0.1 if is_norm else 0.05, shape)
    return value.astype(np.float32)


def make_input(case: str) -> Tensor:
    """Return the (B, 3, H, W) network input of a golden case."""
    seed, shape = INPUTS[case]
    rng = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def make_image(name: str, *, block: int = 1) -> NDArray[np.uint8]:
    """Return a test image, (H, W, 3) uint8 RGB: noise, or uniform blocks of `block` pixels."""
    seed, height, width = IMAGES[name]
    rows, columns = -(-height // block), -(-width // block)
    rng = np.random.Generator(np.random.PCG64(seed))
    bgr = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    large = bgr.repeat(block, 0).repeat(block, 1)[:height, :width]
    return np.ascontiguousarray(large[:, :, ::-1])


def containers(state: dict[str, Tensor]) -> Iterator[tuple[str, object, bool]]:
    """Yield each form in which upstream saved a state dict: (name, content, zip or legacy)."""
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
