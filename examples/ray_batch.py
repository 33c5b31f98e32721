"""Segment a folder, with its subfolders, on many processes or machines with Ray Data.

    pip install 'ray[data]'
    python examples/ray_batch.py PHOTOS OUT [WORKERS] [MODEL]

Writes a PNG of labels for each image, and a line for each image to ``OUT/rows.jsonl``: its classes,
or why it cannot be segmented. A run that was stopped can be repeated: existing labels are not
computed again. On a cluster, both folders have to be on a file system that all machines share.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

import isanet_zoo

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
GPUS = 0.5 if torch.cuda.is_available() else 0  # two workers for each: one reads, one computes
SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Segmenter:
    """A worker, which loads the model once."""

    def __init__(self, photos: str, out: str, model: str) -> None:
        self.photos, self.out = Path(photos), Path(out)
        self.predictor = isanet_zoo.Predictor(model)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Segment the image of a row, unless its labels exist; return a row of JSON."""
        image, target = self.photos / row["image"], self.out / f"{row['image']}.png"
        try:
            if target.exists():  # files are written atomically: one that exists is complete
                with Image.open(target) as labels:
                    label_set = self.predictor.engine.label_set
                    result = isanet_zoo.Segmentation(np.array(labels), label_set, path=image)
            else:
                result = next(self.predictor.stream(image))
                target.parent.mkdir(parents=True, exist_ok=True)
                result.save(target)
        except (isanet_zoo.InputError, OSError) as error:
            return {"json": json.dumps({"image": str(image), "error": str(error)})}
        return {"json": json.dumps(result.to_dict())}


def main(photos: str, out: str, workers: str = "2", model: str = BUILT_IN) -> int:
    """Segment all images; return 1 if one cannot be segmented."""
    found = [path for path in sorted(Path(photos).rglob("*")) if path.suffix.lower() in SUFFIXES]
    rows = ray.data.from_items([{"image": str(path.relative_to(photos))} for path in found])
    resources: Any = {"compute": ray.data.ActorPoolStrategy(size=int(workers)), "num_gpus": GPUS}
    rows = rows.map(Segmenter, fn_constructor_args=(photos, out, model), **resources)
    Path(out).mkdir(parents=True, exist_ok=True)
    errors = 0
    with (Path(out) / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows.iter_rows():
            errors += "error" in json.loads(row["json"])
            print(row["json"], file=file, flush=True)
    print(f"{len(found)} images, {errors} errors: {out}/rows.jsonl")
    return min(errors, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
