"""A folder of JPEGs to index PNGs and overlays: one after the other, and as `predict` does it.

    python benchmarks/folder.py [--pictures 2000] [--model NAME] [--batch 16] [--json]

`network` is the time that the device needs for the same pictures when they lie decoded in memory
and nothing is written; its share of the whole is how busy the device is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch

from isanet_zoo import create_model
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.inference import folders
from isanet_zoo.inference.predictor import Predictor

PICTURE = Path(__file__).parents[1] / "examples" / "street.jpg"


def one_by_one(predictor: Predictor, stems: dict[Path, Path]) -> None:
    """Read, segment and write, and only then look at the next."""
    for path, stem in stems.items():
        picture = read_image(path)
        segmentation = predictor(picture)
        assert not isinstance(segmentation, list)
        folders._write(segmentation, picture, stem)


def main() -> None:
    """Measure three ways in turns and print pictures per second."""
    parser = common.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--model", help="a name whose weights are here (default: the built-in one)")
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
        pictures = [Path(folder) / f"{number}.jpg" for number in range(args.pictures)]
        for picture in pictures:
            picture.write_bytes(PICTURE.read_bytes())
        stems = folders.plan(pictures, Path(folder))
        decoded = [read_image(PICTURE)] * args.pictures
        times = common.medians(
            {
                "one by one": lambda: one_by_one(predictor, stems),
                "predict": lambda: list(folders.segment_files(predictor, stems)),
                "network": lambda: predictor(decoded),
            },
            args.rounds,
        )
    rows = [
        {
            "way": way,
            "pictures/s": args.pictures / seconds,
            "faster by": times["one by one"] / seconds,
            "device busy": times["network"] / seconds,
        }
        for way, seconds in times.items()
    ]
    common.report(rows, as_json=args.json)


if __name__ == "__main__":
    main()
