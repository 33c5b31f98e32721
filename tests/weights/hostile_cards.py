"""Descriptions that are hostile or extreme, and a function that reads them with limits."""

from __future__ import annotations

import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isanet_zoo import ISANet, Segmentation, create_model, get_weights, predict, save_model
from isanet_zoo.errors import ZooError
from isanet_zoo.manifest.config import HeadConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.cost import count_cost

NAME = "isanet_efficientnet_lite0os8_camvid"
MEMORY = 500 << 20  # bytes
SECONDS = 20.0  # of CPU time; about 2 on idle cores, and several times as much on slow or busy ones
NAN, INF = float("nan"), float("inf")
FRUIT = LabelSet("fruit", "Fruit", ("apple", "pear"), ("#ff0000", "#00ff00"), (1, 2))
SMALL = HeadConfig(channels=16, key_channels=8, aux_channels=12)
WIDE = (
    HeadConfig(),
    HeadConfig(channels=512, key_channels=1024, partition=(32, 32)),
)
CHEAP = 2e10  # multiply-additions that take less than two seconds
METRIC = Metric("mIoU", 51.5, "fruit val", (1.0,), False, "whole", "somebody", None)


def write_file(path: Path, head: HeadConfig = SMALL) -> dict[str, Any]:
    """Write a weight file of a small encoder; return its description."""
    model = ISANet("test_resnet", 2, head=head, label_set=FRUIT, preprocess=Preprocess((64, 48)))
    save_model(model, path, recipe=get_weights(NAME).recipe, metrics=[METRIC], dataset="Fruit")
    return describe(path)


def describe(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    description: dict[str, Any] = json.loads(header["__metadata__"]["isanet_zoo"])
    return description


def rewrite(path: Path, text: str) -> None:
    """Replace the description of a weight file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["isanet_zoo"] = text
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


def changed(document: dict[str, Any], address: str, value: object) -> dict[str, Any]:
    """Return a copy of a description with another value at a dotted address."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *above, last = address.split(".")
    place: Any = copy
    for key in above:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value
    return copy


HOSTILE: dict[str, list[object]] = {
    "preprocess.mean": [[NAN] * 3, [INF, 0, 0], [1e30] * 3, [0, 0], "abc", None, [[0]] * 3],
    "preprocess.std": [[0, 1, 1], [-1, 1, 1], [NAN] * 3, [1e-30] * 3, [INF] * 3, [], 5],
    "preprocess.resize": [[0, 64], [-5, 5], [10**9] * 2, [1e3, 64], [64], [4096, 4096], {}],
    "preprocess.pad": [[0, 0], [10**12] * 2, [4096, 4096], ["a", "b"], [64, -64]],
    "preprocess.window": [[1, 1], [64, 64], [0, 0], [10**9] * 2],
    "preprocess.stride": [[1, 1], [0, 0], [64, 64]],
    "preprocess.order": ["gbr", 0, None, ["rgb"]],
    "network.num_classes": [0, -1, 3, 257, 10**9, 10**30, 2.0, True, None, "2"],
    "network.in_chans": [0, 4, 10**9, None],
    "network.backbone": ["", "x" * 1000, "resnet18", "hf-hub:a/b", "../a", "a\x00b", None, 3],
    "network.head.channels": [0, 17, 4096, 10**9, None],
    "network.head.key_channels": [0, 9, 10**9],
    "network.head.aux_channels": [0, 10**9],
    "network.head.partition": [[0, 8], [8], [10**6] * 2, [33, 33], [-1, 8], [1.5, 8]],
    "network.head.fuse_kernel": [1, 2, 10**6 + 1, "3"],
    "network.head.dropout": [1, -0.1, NAN, "a"],
    "network.head.resize": ["nearest", None],
    "network.head.activation": ["eval", None],
    "label_set.names": [[], ["a"], ["a", "a"], ["a", ""], ["a", "\x1b[2J"], ["a", "b" * 10**5]],
    "label_set.names.0": ["\ud800", "\n", "\u202e", 3, None, [], "\x00"],
    "label_set.palette": [["red", "blue"], ["#ff0000"], [[255, 0, 0]] * 2, None],
    "label_set.official_ids": [[-1, 0], [0, 256], [0, 10**30], [0.5, 1], [1]],
    "label_set.ignore_index": [-1, 256, 10**9, None, 0.5],
    "label_set.title": ["\x1b]0;x\x07", 5, "x" * 10**5],
    "metrics.0.value": [NAN, INF, 1e300, "high"],
    "recipe.hue": [1e300, NAN, -1],
    "recipe.epochs": [0, 10**12],
    "dataset": ["\x1b[31m", 5, "x" * 10**5],
    "aux_head": [1, None],
    "format": [0, 2, True, "1"],
    "library_name": ["timm", None],
    "state_digest": ["0" * 63, "G" * 64, 5],
    "licence": ["\r\n", 5],
    "provenance": [{}, [], "x"],
    "model": [3],
}

EXTREME: list[dict[str, Any]] = [  # within every range
    {"resize": [2236, 2236]},
    {"resize": [4096, 1220]},
    {"resize": [1, 1]},
    {"pad": [2236, 2236]},
    {"resize": [400, 400], "window": [128, 128], "stride": [128, 128]},
    {"resize": [800, 800], "window": [420, 420], "stride": [400, 400]},
    {"window": [32, 32], "stride": [8, 8]},
    {"mean": [1000] * 3, "std": [0.01] * 3},
    {"mean": [-1000] * 3, "std": [10_000] * 3},
]


def cases(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each case."""
    for address, values in HOSTILE.items():
        for value in values:
            yield f"hostile: {address} {value!r:.60}", json.dumps(changed(document, address, value))
    yield "hostile: deep", "[" * 100_000
    yield "hostile: digits", json.dumps(document).replace('"num_classes": 2', f'"x": {"9" * 10**5}')
    yield "hostile: twice", json.dumps(document).replace('"format": 1', '"format": 1, "format": 1')
    yield "hostile: long", json.dumps(document | {"dataset": "x" * (1 << 21)})
    for options in EXTREME:
        preprocess = document["preprocess"] | {"resize": None} | options
        for partition in ([8, 8], [1, 1], [32, 32]):
            text = changed(
                document | {"preprocess": preprocess}, "network.head.partition", partition
            )
            yield f"extreme: {options} {partition}", json.dumps(text)


def wide_cases(document: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield descriptions of a wide head: up to the largest pad and size, and small ones."""
    for largest in (100, 300, 2200, 4096):
        for field in ("resize", "pad"):
            sides = [rng.randint(largest // 2, largest) for _ in range(2)]
            changes = {"resize": None, "pad": None, field: sides}
            text = json.dumps(document | {"preprocess": document["preprocess"] | changes})
            yield f"wide: {document['network']['head']} {field} {sides}", text


def outcome(path: Path, cheap: float = float("inf")) -> str:
    """Load the file and predict a small image; return what happened.

    A network that needs more than `cheap` multiply-additions is loaded only.
    """
    start = time.process_time()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    try:
        model = create_model(str(path), pretrained=True)
        if count_cost(model.config, model.preprocess).operations > cheap:
            return "expensive"
        result = predict(model, pixels, probabilities=True)
        assert isinstance(result, Segmentation)
        assert result.probabilities is not None
        found = "finite" if np.isfinite(result.probabilities).all() else "not finite"
    except ZooError as error:
        found = f"{type(error).__name__}: {error}"
    except Exception as error:
        found = f"FAULT {type(error).__name__}: {error}"
    spent = time.process_time() - start
    return found if spent < SECONDS else f"SLOW {spent}: {found}"


def read_all(folder: Path) -> dict[str, str]:
    """Read all cases, with a limit of memory for this process; return the outcome of each."""
    path = folder / "model.safetensors"
    document = write_file(path)
    outcome(path)  # imports and threads
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    outcomes = {}
    for name, text in cases(document):
        rewrite(path, text)
        outcomes[name] = outcome(path)
    for head in WIDE:
        path.unlink()
        for name, text in wide_cases(write_file(path, head), random.Random(0)):
            rewrite(path, text)
            outcomes[name] = outcome(path, CHEAP)
    return outcomes
