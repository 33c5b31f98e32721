"""Segment a folder of images into a folder of index PNGs, with a table of their classes.

    python examples/batch_folder.py PHOTOS OUT

Writes a PNG for each image (a pixel's value is its class) and ``fractions.csv``: a row for each
image, a column for each class, and the fraction of the image's pixels. It ends at the first file
that cannot be read; ``isanet-zoo predict`` continues after such files.
"""

import csv
import sys
from pathlib import Path

import isanet_zoo


def main(photos: str, out: str, name: str = "isanet_efficientnet_lite0os8_camvid") -> None:
    """Segment the images of a folder, with few of them in memory at any time."""
    predictor = isanet_zoo.Predictor(name, batch_size=4)
    classes = predictor.engine.label_set.names
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)

    def show(done: int, total: int | None) -> None:
        print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)

    with (folder / "fractions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["image", *classes], restval=0)
        table.writeheader()
        for segmentation in predictor.stream(photos, progress=show):
            assert segmentation.path is not None  # images of a folder have one
            segmentation.save(folder / f"{segmentation.path.name}.png")
            fractions = {title: f"{fraction:.4f}" for _, title, fraction in segmentation.present()}
            table.writerow({"image": segmentation.path.name, **fractions})


if __name__ == "__main__":
    main(*sys.argv[1:])
