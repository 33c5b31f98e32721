"""Segment a photograph with an exported file: onnxruntime, numpy and Pillow, no torch.

    isanet-zoo export isanet_resnet50os8_voc model.onnx --labels --preprocess
    python examples/onnx_predict.py model.onnx photo.jpg labels.png

The image is segmented as a whole, without tiles or padding. A pixel's value in the PNG is its
class.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) bilinearly without smoothing, as the weights were tested."""
    for axis, (length, wanted) in enumerate(zip(pixels.shape, size, strict=False)):
        centres = (np.arange(wanted) + 0.5) * length / wanted - 0.5
        first = np.floor(centres).astype(int)
        fraction = np.expand_dims(centres - first, tuple({0, 1, 2} - {axis}))
        before, after = (np.clip(first + step, 0, length - 1) for step in (0, 1))
        pixels = pixels.take(before, axis) * (1 - fraction) + pixels.take(after, axis) * fraction
    return pixels.round().astype(np.uint8)


def main(model: str, photo: str, target: str) -> None:
    """Print the classes of a photograph and write its label map."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    if "label_set" in metadata:  # a file of version 0.1.0
        description = {key: json.loads(metadata[key]) for key in ("label_set", "preprocess")}
    else:
        description = json.loads(metadata["isanet_zoo"])
    labels, config = description["label_set"], description["preprocess"]
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    pixels, size = np.asarray(image), (image.height, image.width)
    if config["resize"]:  # to fit the longest and the shortest side
        scale = min(op(config["resize"]) / op(size) for op in (max, min))
        pixels = resize(pixels, (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)))

    images = pixels.transpose(2, 0, 1)[None]  # (1, 3, h, w)
    if session.get_inputs()[0].type == "tensor(float)":
        mean, std = (np.float32(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        images = (images.astype(np.float32) - mean) / std
        images = images[:, ::-1] if config["order"] == "bgr" else images
    (output,) = session.run(None, {"images": np.ascontiguousarray(images)})
    ids = (output if output.ndim == 3 else output.argmax(1))[0].astype(np.uint8)

    result = Image.fromarray(ids).resize(image.size, Image.Resampling.NEAREST)
    result.putpalette(bytes.fromhex("".join(labels["palette"]).replace("#", "")))
    result.save(target)
    for index in np.unique(ids):
        print(f"{(ids == index).mean():6.1%}  {labels['names'][index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
