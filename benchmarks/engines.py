"""Engines compared: torch, onnxruntime in float32 and int8, and onnxruntime without `Predictor`.

The last one is the simplest code that has the same result: a session of the exported file, whose
graph includes normalisation and the resize of the logits to the image's size, and an argmax. It is
also run with the argmax inside the graph. `--memory` measures the memory of each in a new process.

    python benchmarks/engines.py                         # the built-in model at 600 x 800
    python benchmarks/engines.py --model resnet50        # ResNet-50 with 150 classes at 512 x 683
    python benchmarks/engines.py --calibrate train --data camvid    # images for int8; and its mIoU
    python benchmarks/engines.py --mixed 300             # memory over images of many sizes
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import extra_memory, in_new_process, make_model, medians, parser, report, resident
from PIL import Image

import isanet_zoo
from isanet_zoo import ISANet, Predictor

PHOTO = Path(__file__).parents[1] / "examples" / "street.jpg"
BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
SIZES = {"built-in": (600, 800), "resnet50": (512, 683)}
RAW = {"raw, argmax in NumPy": "logits", "raw, argmax in the graph": "labels"}
WAYS = ("torch", "onnxruntime", "onnxruntime int8", *RAW)

Way = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def load(name: str) -> ISANet:
    """Return a model of `SIZES`; the larger one has random weights, which take as long."""
    if name == "built-in":
        return isanet_zoo.create_model(BUILT_IN, pretrained=True)
    return make_model("resnet50c", 150)


def read_photo(size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return the example image at (height, width), as (H, W, 3) uint8."""
    with Image.open(PHOTO) as image:
        return np.asarray(image.convert("RGB").resize(size[::-1]))


def make_way(name: str, model: ISANet, calibrate: Any, folder: Path) -> Way:
    """Return a function from an image (H, W, 3) to labels (H, W)."""
    if name in RAW:
        path = folder / f"{RAW[name]}.onnx"
        if not path.exists():
            isanet_zoo.export_onnx(model, path, output=RAW[name], preprocess=True)  # type: ignore[arg-type]
        return raw(path)
    options: dict[str, Any] = {"engine": name.split()[0], "resize": False, "device": "cpu"}
    if "int8" in name:
        options |= {"dtype": "int8", "calibrate": calibrate}
    predictor = Predictor(model, **options)
    return lambda image: predictor(image).labels  # type: ignore[union-attr]


def raw(path: Path) -> Way:
    """Return the simplest code that segments an image with an exported file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def segment(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        images = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
        (output,) = session.run(None, {"images": images})
        labels: np.ndarray[Any, Any] = (output if output.ndim == 3 else output.argmax(1))[0]
        return labels

    return segment


def compare(options: argparse.Namespace, ways: dict[str, Way]) -> list[dict[str, Any]]:
    """Return the time, the speed and the equal labels of each way, compared with torch."""
    image = read_photo(SIZES[options.model])
    processor: dict[str, list[float]] = {name: [] for name in ways}

    def timed(name: str) -> Callable[[], object]:
        def run() -> None:
            start = time.process_time()
            ways[name](image)
            processor[name].append(time.process_time() - start)

        return run

    seconds = medians({name: timed(name) for name in ways}, options.rounds)
    labels = {name: way(image) for name, way in ways.items()}
    rows = []
    for name in ways:
        rows.append(
            {
                "engine": name,
                "seconds": seconds[name],
                "CPU seconds": float(np.median(processor[name][1:])),
                "speed": seconds["torch"] / seconds[name],
                "equal labels %": 100 * float(np.mean(labels[name] == labels["torch"])),
            }
        )
        if options.memory:
            arguments = [*("--model", options.model), *("--folder", options.folder)]
            rows[-1]["MiB"] = in_new_process(name, *arguments, "--calibrate", options.calibrate)
    return rows


def mixed(ways: dict[str, Way], images: int) -> list[dict[str, Any]]:
    """Return the resident memory of the process over images of random sizes."""
    chance, rows = np.random.default_rng(0), []
    sizes = chance.integers(200, 900, (images, 2))
    for name, way in ways.items():
        memory = []
        for height, width in sizes:
            way(read_photo((int(height), int(width))))
            memory.append(resident())
        tenth = images // 10
        row: dict[str, Any] = {"engine": name, "images": images}
        row |= {f"MiB after {n}": memory[n - 1] for n in (tenth, images // 2, images)}
        rows.append(row | {"most MiB": max(memory)})
    return rows


def evaluate(path: str, model: ISANet, calibrate: str) -> list[dict[str, Any]]:
    """Return the mIoU of float32 and int8 files on the test images of CamVid."""
    dataset = isanet_zoo.open_dataset("camvid", path, "test")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, images in (("float32", None), ("int8", calibrate)):
            file = isanet_zoo.export_onnx(model, Path(folder, f"{name}.onnx"), calibrate=images)
            rows.append({"file": name, "mIoU": 100 * isanet_zoo.evaluate(file, dataset).miou})
    return rows


def main() -> None:
    """Compare the engines."""
    made = parser(__doc__)
    made.add_argument("--model", choices=SIZES, default="built-in")
    made.add_argument("--calibrate", default=str(PHOTO), help="images for int8 (default: one)")
    made.add_argument("--data", help="root of CamVid: compare the mIoU of exported files instead")
    made.add_argument("--mixed", type=int, metavar="N", help="memory over N sizes instead")
    made.add_argument("--memory", action="store_true", help="measure the memory, too")
    made.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="(default: all)")
    made.add_argument("--folder", default="", help="for exported files (default: a temporary one)")
    options = made.parse_args()
    model = load(options.model)
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or temporary
        names = [options.memory_of] if options.memory_of else options.ways
        if options.data:
            rows = evaluate(options.data, model, options.calibrate)
        else:
            folder = Path(options.folder)
            ways = {name: make_way(name, model, options.calibrate, folder) for name in names}
            if options.memory_of:
                image = read_photo(SIZES[options.model])
                print(extra_memory(lambda: ways[options.memory_of](image)))
                return
            rows = mixed(ways, options.mixed) if options.mixed else compare(options, ways)
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
