"""Write pre-annotations for Label Studio: a brush mask for each class of each image of a folder.

    python examples/label_studio.py PHOTOS OUT [MODEL]

Writes ``OUT/config.xml``, the labelling interface of a project, and ``OUT/tasks.json``, to import
into it. Label Studio reads the images itself: start it with
LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and PHOTOS's parent as
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, and add PHOTOS as a storage of local files.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

import isanet_zoo


def encode(mask: np.ndarray) -> list[int]:
    """Encode an (H, W) mask as Label Studio does: runs of the bytes of an RGBA image, in bits."""
    flat = mask.ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{4 * flat.size:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in (4, 8, 12, 16))]
    for start, length in zip(edges[:-1], 4 * np.diff(edges), strict=True):
        value = f"{255 * int(flat[start]):08b}"
        for done in range(0, length, 2**16):  # a run, whose length has the fourth size: 16 bits
            bits.append(f"111{min(length - done, 2**16) - 1:016b}{value}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def task(segmentation: isanet_zoo.Segmentation, model: str, root: Path) -> dict[str, Any]:
    """Return the task of an image with its predicted regions."""
    assert segmentation.path is not None
    height, width = segmentation.labels.shape
    regions = [
        {"id": f"class{k}", "type": "brushlabels", "from_name": "label", "to_name": "image",
         "original_width": width, "original_height": height, "image_rotation": 0,
         "value": {"format": "rle", "rle": encode(segmentation.mask(k)), "brushlabels": [name]}}
        for k, name, _ in segmentation.present(min_fraction=0.001)
    ]  # fmt: skip
    image = quote(str(segmentation.path.relative_to(root)))
    return {"data": {"image": f"/data/local-files/?d={image}"},
            "predictions": [{"model_version": model, "result": regions}]}  # fmt: skip


def main(photos: str, out: str, model: str = "isanet_efficientnet_lite0os8_camvid") -> None:
    """Segment a folder, with few images in memory at any time."""
    predictor, folder = isanet_zoo.Predictor(model), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    labels = predictor.engine.label_set
    values = [f"<Label value={quoteattr(name)} background={quoteattr(colour)}/>"
              for name, colour in zip(labels.names, labels.palette, strict=True)]  # fmt: skip
    brush = f'<BrushLabels name="label" toName="image">{"".join(values)}</BrushLabels>'
    config = f'<View><Image name="image" value="$image"/>{brush}</View>'
    (folder / "config.xml").write_text(config, "utf-8")
    tasks = [task(found, model, Path(photos).parent) for found in predictor.stream(photos)]
    (folder / "tasks.json").write_text(json.dumps(tasks), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
