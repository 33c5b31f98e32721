"""A folder of JPEGs to index PNGs and overlays: image by image, and as `predict` does it.

    python benchmarks/folder.py [--images 2000] [--model NAME] [--batch 16] [--json]

`network` is the time for the same images decoded in memory, with nothing written; its fraction of
the whole is how busy the device is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch

from isanet_zoo import create_model
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.inference import folders
from isanet_zoo.inference.outputs import Outputs
from isanet_zoo.inference.predictor import Predictor

IMAGE = Path(__file__).parents[1] / "examples" / "street.jpg"


def one_by_one(predictor: Predictor, planned: dict[str, str], outputs: Outputs) -> None:
    """Read, segment and write each image before the next one."""
    for path in planned:
        image = read_image(path)
        segmentation = predictor(image)
        assert not isinstance(segmentation, list)
        folders._write(planned, outputs, ((path, image), segmentation))


def main() -> None:
    """Measure the three in turns and print images per second."""
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--model", help="a name with cached weights (default: the built-in one)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="float32")
    args = parser.parse_args()
    name = args.model or "isanet_efficientnet_lite0os8_camvid"
    predictor = Predictor(
        create_model(name, pretrained=True),
        device=args.device,
        dtype="auto" if args.dtype == "auto" else getattr(torch, args.dtype),
        batch_size=args.batch,
    )
    with tempfile.TemporaryDirectory() as folder:
        planned = {f"{folder}/{number}.jpg": str(number) for number in range(args.images)}
        for image in planned:
            Path(image).write_bytes(IMAGE.read_bytes())
        outputs = Outputs(Path(folder))
        decoded = [read_image(IMAGE)] * args.images
        times = common.medians(
            {
                "one by one": lambda: one_by_one(predictor, planned, outputs),
                "predict": lambda: list(folders.segment_files(predictor, planned, outputs)),
                "network": lambda: predictor(decoded),
            },
            args.rounds,
        )
    rows = [
        {
            "way": way,
            "images/s": args.images / seconds,
            "faster by": times["one by one"] / seconds,
            "device busy": times["network"] / seconds,
        }
        for way, seconds in times.items()
    ]
    common.report(rows, as_json=args.json)


if __name__ == "__main__":
    main()
