"""Benchmark of an exported model on CamVid's test images: mIoU and speed of fp32 and int8.

    python benchmarks/export.py CAMVID [--quick] [--json]

The int8 file is calibrated on training images. The network in PyTorch (eager, fp32) and both files
in onnxruntime alternate on every image; medians are printed. All scores are of logits at the size
of the input, resized to the annotation's. `predict` resizes once, so that its scores may differ
slightly.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

import isanet_zoo
from isanet_zoo.imaging.preprocess import prepare

NAME = "isanet_efficientnet_lite0os8_camvid"
Way = Callable[[Tensor], Tensor]  # (1, 3, h, w) -> logits (1, K, h, w)


def session(path: Path, threads: int) -> Way:
    """Return a function that runs a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    loaded: Any = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(loaded.run(None, {"images": images.numpy()})[0])


@torch.inference_mode()
def measure(root: Path, images: int) -> dict[str, dict[str, float]]:
    """Return mIoU in per cent, median seconds and the fraction of labels equal to PyTorch's."""
    model = isanet_zoo.create_model(NAME, pretrained=True)
    test = isanet_zoo.open_dataset("camvid", root, "test")
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        isanet_zoo.export_onnx(model, plain)
        isanet_zoo.export_onnx(model, small, calibrate=root / "train")
        ways: dict[str, Way] = {
            "pytorch fp32": model,
            "onnxruntime fp32": session(plain, threads),
            "onnxruntime int8": session(small, threads),
        }
        scores = {way: isanet_zoo.SegmentationMetrics(11) for way in ways}
        times: dict[str, list[float]] = {way: [] for way in ways}
        same: dict[str, list[float]] = {way: [] for way in ways}
        for number in np.linspace(0, len(test) - 1, images).astype(int):
            pixels, target = test[int(number)]
            prepared = prepare(pixels[None], model.preprocess)
            first = None
            for way, run in ways.items():
                start = time.perf_counter()
                logits = run(prepared)
                times[way].append(time.perf_counter() - start)
                size = (target.shape[0], target.shape[1])
                labels = F.interpolate(logits, size, mode="bilinear").argmax(1)[0]
                first = labels if first is None else first
                same[way].append((labels == first).float().mean().item())
                scores[way].update(labels, target)
    return {
        way: {
            "miou": 100 * scores[way].compute().miou,
            "seconds": statistics.median(times[way]),
            "same_labels": statistics.mean(same[way]),
        }
        for way in ways
    }


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", type=Path, help="CamVid as it is distributed")
    parser.add_argument("--quick", action="store_true", help="five images")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results = measure(options.camvid, 5 if options.quick else 233)
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    if options.json:
        print(json.dumps({**versions, "results": results}, indent=2))
        return
    print(f"{versions}, {torch.get_num_threads()} threads, {platform.processor()}")
    slowest = results["pytorch fp32"]["seconds"]
    for way, result in results.items():
        print(
            f"{way:16}  mIoU {result['miou']:.2f}, {result['seconds']:.3f} s per image "
            f"({slowest / result['seconds']:.1f} x), {result['same_labels']:.2%} equal labels"
        )


if __name__ == "__main__":
    main()
