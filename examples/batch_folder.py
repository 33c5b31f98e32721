"""Segment a folder of pictures into a folder of index PNGs, with a table of what is in them.

    python examples/batch_folder.py PHOTOS OUT

OUT gets a PNG for each picture (a pixel's value is its class) and ``shares.csv``: a row for each
picture, a column for each class, the share of the picture that it takes. A file that is no picture
ends it; ``isanet-zoo predict`` goes on past those.
"""

import csv
import sys
from pathlib import Path

import torch

import isanet_zoo


def main(photos: str, out: str, name: str = "isanet_efficientnet_lite0os8_camvid") -> None:
    """Segment the pictures of a folder, few of them in memory at any time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = isanet_zoo.Predictor(name, device=device, batch_size=4)
    classes = predictor.engine.label_set.names
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)

    def show(done: int, total: int | None) -> None:
        print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)

    with (folder / "shares.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["picture", *classes], restval=0)
        table.writeheader()
        for segmentation in predictor.stream(photos, progress=show):
            assert segmentation.path is not None  # pictures of a folder have one
            segmentation.save(folder / f"{segmentation.path.name}.png")
            shares = {title: f"{fraction:.4f}" for _, title, fraction in segmentation.present()}
            table.writerow({"picture": segmentation.path.name, **shares})


if __name__ == "__main__":
    main(*sys.argv[1:])
