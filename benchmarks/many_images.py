"""The memory of a process while it segments many images, which should not grow.

    python benchmarks/many_images.py [--images 20000] [--every 1000] [--json]

Images of ten sizes are segmented by a small network with random weights, and their label maps are
written. On Linux only.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import common
import torch
from PIL import Image

from isanet_zoo import HeadConfig, ISANet
from isanet_zoo.inference.folders import segment_files
from isanet_zoo.inference.inputs import find_inputs
from isanet_zoo.inference.outputs import Outputs, make_folders, plan
from isanet_zoo.inference.predictor import Predictor

STREET = Path(__file__).parents[1] / "examples" / "street.jpg"
FOLDERS = 20
SIDES = (32, 40, 48, 56, 64)


def make_images(folder: Path, count: int) -> None:
    """Write JPEGs of ten sizes to some folders."""
    rng = random.Random(0)
    with Image.open(STREET) as street:
        for number in range(count):
            path = folder / str(number % FOLDERS) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            left, top, height = rng.randrange(600), rng.randrange(400), rng.choice(SIDES)
            width = height + 8 * rng.randrange(2)
            street.crop((left, top, left + width, top + height)).save(path)


def memory() -> float:
    """Return the resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    """Segment the images and print the memory on the way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--every", type=int, default=1000, help="images between two lines")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    head = HeadConfig(channels=32, key_channels=16)  # the time of a large one is not the point
    predictor = Predictor(ISANet("test_resnet", num_classes=5, head=head))
    with tempfile.TemporaryDirectory() as name:
        photos, out = Path(name, "photos"), Path(name, "out")
        make_images(photos, options.images)
        planned = plan(find_inputs([str(photos)], recursive=True, out=out))
        outputs = Outputs(out, ("labels",))
        make_folders(planned, outputs)
        rows = []
        began = time.perf_counter()
        for done, result in enumerate(segment_files(predictor, planned, outputs), 1):
            assert result.error is None, result.error
            if done % options.every == 0 or done == 100:
                speed = done / (time.perf_counter() - began)
                rows.append({"images": done, "MiB": memory(), "images/s": speed})
    common.report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
