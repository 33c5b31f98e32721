"""Damaged and hostile files by the thousand: each is read, or refused with a `ZooError`.

    python benchmarks/fuzz.py images [--count 2000] [--seed 0] [--keep FOLDER] [--json]
    python benchmarks/fuzz.py cards   (descriptions in weight files)
    python benchmarks/fuzz.py weights

Memory is limited; a case that takes more than two seconds is counted as slow. The same seed makes
the same files. `--keep` writes the files of other outcomes.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import io
import json
import pickle
import random
import resource
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from isanet_zoo import ISANet, create_model, get_weights, predict
from isanet_zoo.errors import ZooError
from isanet_zoo.imaging.formats import FORMATS
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.manifest.config import HeadConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.containers import open_weights
from isanet_zoo.weights.layouts import LAYOUTS
from isanet_zoo.weights.saving import describe
from isanet_zoo.weights.state_dicts import find_state
from isanet_zoo.weights.tensors import check_values, save_state

MEMORY = 2 << 30  # bytes beyond those in use at the start
SLOW = 2.0  # seconds
VALUES: list[Any] = [  # for any field of a description
    *(None, True, False, 0, 1, -1, 2, 5, 31, 32, 33, 64, 255, 256, 1000, 2048, 4096, 8192),
    *(10**9, -(10**9), 10**18, 10**30, 0.5, -0.0, 1e-30, 1e30, 1e308, float("nan"), float("inf")),
    *("", " ", "a", "x" * 300, "a\x1b[2J", "a\nb", "\u202e", "\ud800", "#ffffff", "../../x"),
    *("resnet50", "vit_base_patch16_224", "test_resnet.r160_in1k", "hf-hub:some/one"),
    *([], {}, [1], [2, 2], [8, 8], [32, 32], [64, 64], [2048, 2048], [4096, 1024], [1, 4096]),
    *([1, 1, 1], [0, 0, 0], [1e-3, 1, 1], [0.01, 0.01, 0.01], [1e4, 1e4, 1e4], [-999, 999, 0]),
    *([[]], {"a": {"b": {}}}, ["a", "a"], ["a", "b"], ["<b>", "**b**"], [float("nan")] * 3),
]
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def image_files() -> list[bytes]:
    """Return small files of all supported formats and modes, and of others."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    images = [rgb, rgb.convert("L"), rgb.convert("P"), rgb.convert("RGBA"), rgb.convert("CMYK")]
    images += [rgb.convert("1"), Image.new("I;16", (9, 9)), Image.new("F", (9, 9))]
    variants: list[dict[str, Any]] = [
        {},
        {"save_all": True, "append_images": [rgb.rotate(180)]},
        {"progressive": True},
        {"compression": "tiff_lzw"},
        {"lossless": True},
        {"interlace": 1},
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for kind in (*FORMATS, "MPO", "EPS", "ICO"):
        for image in images:
            for options in variants:
                buffer = io.BytesIO()
                try:
                    image.save(buffer, kind, exif=exif, **options)
                except Exception:  # a combination that Pillow cannot write
                    continue
                files.append(buffer.getvalue())
    return sorted(set(files))


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return a file with one to four of its parts changed."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # Headers decide most, so that half of the changes are made in them.
        end = len(data) if rng.random() < 0.5 else min(len(data), 128)
        at = rng.randrange(end) if end else 0
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            value = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES))
            data[at : at + 4] = value[: rng.choice((2, 4))]
        elif kind == 2:
            del data[at : at + rng.randint(1, 64)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 64)] * rng.choice((1, 2, 100))
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randint(1, 256)]
        else:
            del data[at:]
    return bytes(data)


def image_cases(rng: random.Random) -> Iterator[bytes]:
    """Yield damaged image files without end."""
    files = image_files()
    while True:
        yield mutate(rng.choice(files), files, rng)


@functools.cache
def small_model() -> ISANet:
    """Return a small network whose label set is not a published one."""
    head = HeadConfig(channels=16, key_channels=8, aux_channels=12)
    labels = LabelSet("fruit", "Fruit", ("apple", "pear"), ("#ff0000", "#00ff00"), (1, 2))
    return ISANet("test_resnet", 2, head=head, label_set=labels, preprocess=Preprocess((64, 48)))


def paths(value: object, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Yield the places in a JSON value, at any depth."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*above, key)
        yield from paths(inner, *above, key)


def plausible(rng: random.Random) -> dict[str, Any]:
    """Return preprocessing whose numbers are each within their range; together they may not be."""

    def pair(*sides: int) -> list[int]:
        return [rng.choice(sides), rng.choice(sides)]

    side = rng.choice((32, 48, 64, 256, 1000))
    slides = rng.random() < 0.5
    return {
        "resize": rng.choice((None, pair(1, 8, 64, 500, 1200, 2236, 4096))),
        "mean": [rng.choice((-1000, 0, 123.675, 1000))] * 3,
        "std": [rng.choice((0.01, 1, 58.395, 10_000))] * 3,
        "order": rng.choice(("rgb", "bgr")),
        "pad": rng.choice((None, None, pair(1, 8, 64, 500, 1200, 2236, 4096))),
        "window": [side, side] if slides else None,
        "stride": [rng.choice((side, -(-side // 4)))] * 2 if slides else None,
    }


def card_cases(rng: random.Random) -> Iterator[bytes]:
    """Yield changed descriptions without end: other values, keys or bytes."""
    metric = Metric("mIoU", 51.5, "val", (1.0,), False, "whole", "somebody", None)
    model = small_model()
    recipe = get_weights("isanet_resnet50os8_voc").recipe
    text = describe(model, dataset="Fruit", recipe=recipe, metrics=[metric]).text()
    places = list(paths(json.loads(text)))
    while True:
        document = json.loads(text)
        if rng.random() < 0.7:
            document["preprocess"] = plausible(rng)
            document["network"]["head"]["partition"] = rng.choices((1, 2, 8, 31, 32), k=2)
        for place in rng.sample(places, rng.choice((0, 0, 1, 1, 2, 4))):
            inner = document
            with contextlib.suppress(LookupError, TypeError):  # an earlier change removed it
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = rng.choice(VALUES)
                if rng.random() < 0.1:
                    del inner[place[-1]]
        case = json.dumps(document).encode()
        yield mutate(case, [case], rng) if rng.random() < 0.2 else case


def predict_with(card: bytes) -> None:
    """Load a weight file with this description and predict an image of 64 x 64 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        state = dict(small_model().state_dict())
        save_state(state, path, description=card.decode("utf-8", "replace"))
        model = create_model(str(path), pretrained=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    result = predict(model, pixels, probabilities=True)
    assert isinstance(result, Segmentation)
    assert result.probabilities is not None
    assert np.isfinite(result.probabilities).all()


def weight_files() -> list[bytes]:
    """Return small weight files of all containers, with wrappers and other objects."""
    state = {
        "module.backbone_net.conv1.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
        "module.backbone_net.bn1.running_var": torch.ones(4).half(),
        "module.backbone_net.bn1.num_batches_tracked": torch.tensor(3),
    }
    shared = torch.arange(20.0).reshape(4, 5)
    views = {"head.attention.a": shared[1:, ::2], "head.attention.b": shared.t()}
    extra = {"args": argparse.Namespace(lr=0.1, path=Path("a")), "epoch": 3, "best": np.float32(1)}
    files = [safetensors.torch.save(state, {"format": "pt"})]
    for content in (state, {"model": views, **extra}, {"model_ema": state, "model": state}):
        for as_zip, protocol in ((True, 2), (True, 4), (False, 2)):
            buffer = io.BytesIO()
            torch.save(
                content,
                buffer,
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=as_zip,
            )
            files.append(buffer.getvalue())
    arrays = {f"head.global_relation.{n}": np.full((3, 200, 60), n, np.uint8) for n in range(2)}
    arrays["head.global_relation.f"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    files += [pickle.dumps(arrays, protocol) for protocol in (2, 4)]
    return files


def weight_cases(rng: random.Random) -> Iterator[bytes]:
    """Yield damaged weight files without end."""
    files = weight_files()
    while True:
        yield mutate(rng.choice(files), files, rng)


def read_weights(content: bytes) -> None:
    """Read the state dict in a weight file, and check its values."""
    with tempfile.NamedTemporaryFile() as target:
        target.write(content)
        target.flush()
        with open_weights(Path(target.name), "file") as file:
            state = file.read(find_state(file, [layout.marker for layout in LAYOUTS]))
    check_values(state, "file")


KINDS: dict[str, tuple[Callable[[random.Random], Iterator[bytes]], Callable[[bytes], object]]] = {
    "images": (image_cases, read_image),  # name -> cases, and how they are read
    "cards": (card_cases, predict_with),
    "weights": (weight_cases, read_weights),
}


def outcome(read: Callable[[bytes], object], case: bytes) -> str:
    """Read a case; return what became of it."""
    start = time.perf_counter()
    try:
        read(case)
        found = "read"
    except ZooError as error:
        found = f"refused ({type(error).__name__})"
    except BaseException as error:  # anything else is a fault
        found = f"FAULT: {type(error).__name__}: {str(error)[:80]}"
    return f"SLOW: {found}" if time.perf_counter() - start > SLOW else found


def main() -> None:
    """Read cases of one kind and print how many ended in which way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of faults and slow cases")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    cases, read = KINDS[args.kind]
    counts: Counter[str] = Counter()
    for number, case in zip(range(args.count), cases(random.Random(args.seed)), strict=False):
        found = outcome(read, case)
        counts[found] += 1
        if args.keep and found.startswith(("FAULT", "SLOW")):
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{args.kind}-{args.seed}-{number}").write_bytes(case)
    if args.json:
        print(json.dumps(counts))
    else:
        print(*(f"{count:7}  {found}" for found, count in counts.most_common()), sep="\n")


if __name__ == "__main__":
    main()
