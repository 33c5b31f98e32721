"""Annotations as label tools write them: COCO's JSON of a whole split, LabelMe's of an image."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isanet_zoo import records
from isanet_zoo.errors import InputError, ManifestError
from isanet_zoo.files import open_regular
from isanet_zoo.imaging.formats import open_image
from isanet_zoo.learning.polygons import decode_runs, draw

MOST_BYTES = 1 << 30  # of a JSON file
MOST_PIXELS = 1 << 28  # of an image
CIRCLE_CORNERS = 256
IGNORED = "__ignore__"  # LabelMe's name of pixels without a class

Values: TypeAlias = Mapping[str, int]  # name of a class -> value in masks
Shape: TypeAlias = tuple[NDArray[np.float64], ...] | dict[str, Any]  # polygons, or run lengths


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: it cannot be read, or is not a JSON object.
    """
    try:
        with open_regular(path) as file:
            document = records.parse(file.read(MOST_BYTES + 1), str(path), longest=MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ManifestError as error:
        raise InputError(str(error)) from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is no object in JSON")
    return document


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Convert errors of JSON that has other types or keys than expected to `InputError`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except KeyError as error:
        raise InputError(f"{what} has no {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{what} cannot be read: {error}") from error


def _size(document: Mapping[str, Any], height: str, width: str) -> tuple[int, int]:
    size = int(document[height]), int(document[width])
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"an image cannot have {size[1]} x {size[0]} pixels")
    return size


class CocoFile:
    """The annotations of a split in COCO's format.

    Args:
        path: the file.

    Attributes:
        names: names of the categories, by id.
        colours: their colours, ``"#rrggbb"``, if all categories have one; else empty.
        images: the ``file_name`` of each image, by its id.

    Raises:
        InputError: the file is not as COCO describes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        document = read_json(path)
        with _naming(str(path)):
            categories = sorted(document["categories"], key=lambda entry: int(entry["id"]))
            self.names = tuple(str(category["name"]) for category in categories)
            self._names = {category["id"]: str(category["name"]) for category in categories}
            with contextlib.suppress(KeyError, TypeError, ValueError):
                self.colours = tuple("#{:02x}{:02x}{:02x}".format(*c["color"]) for c in categories)
            self._sizes = {
                image["id"]: _size(image, "height", "width") for image in document["images"]
            }
            self.images = {image["id"]: str(image["file_name"]) for image in document["images"]}
            self._annotations: dict[object, list[Any]] = {identity: [] for identity in self.images}
            for annotation in document["annotations"]:
                if annotation["image_id"] in self._annotations:
                    self._annotations[annotation["image_id"]].append(annotation)

    colours: tuple[str, ...] = ()

    def reader(self, files: Mapping[Path, object], values: Values, background: int) -> CocoMasks:
        """Return the reader of the masks of some images.

        Args:
            files: the id of each image.
            values: the value of each category's name.
            background: the value of pixels without an annotation.

        Raises:
            InputError: an annotation is not as COCO describes it, or its category has no value.
        """
        images = {}
        for path, identity in files.items():
            shapes = []
            for annotation in self._annotations[identity]:
                with _naming(f"{self.path}: annotation {annotation.get('id')} of {path.name}"):
                    if (category := annotation["category_id"]) not in self._names:
                        raise InputError(f"there is no category with the id {category}")
                    value = _value(self._names[category], values)
                    shapes.append((annotation.get("id"), value, _shape(annotation)))
            images[path] = self._sizes[identity], shapes
        return CocoMasks(images, background, f"coco {sorted(values.items())} {background}")


def _shape(annotation: Mapping[str, Any]) -> Shape:
    """Return polygons as arrays, and run lengths as they are."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise InputError("it has no segmentation, perhaps only a box")
    if isinstance(segmentation, dict):
        return segmentation
    return tuple(np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation)


def _value(name: str, values: Values) -> int:
    if name not in values:
        raise InputError(f"the class {name!r} is not in classes.txt")
    return values[name]


class CocoMasks:
    """Reader of masks whose annotations are in memory.

    Args:
        images: (height, width) of each image, and id, value and shape of its annotations.
        background: the value of pixels without an annotation.
        key: what the values depend on beside the two files.
    """

    def __init__(
        self,
        images: Mapping[Path, tuple[tuple[int, int], list[tuple[object, int, Shape]]]],
        background: int,
        key: str,
    ) -> None:
        self.images, self.background, self.key = images, background, key

    def __call__(self, image: Path, mask: Path) -> Tensor:
        """Return the values of an image's mask, (H, W) uint8.

        Raises:
            InputError: an annotation cannot be drawn.
        """
        size, shapes = self.images[image]
        values = np.full(size, self.background, np.uint8)
        for identity, value, shape in shapes:
            with _naming(f"{mask}: annotation {identity} of {image.name}"):
                if not isinstance(shape, dict):
                    draw(values, value, shape)
                    continue
                height, width = shape["size"]
                if (height, width) != size:
                    raise InputError(f"its mask is {width} x {height}, not {size[1]} x {size[0]}")
                values[decode_runs(shape["counts"], size)] = value
        return torch.from_numpy(values)


class LabelMeMasks:
    """Reader of LabelMe's JSON files.

    Args:
        values: the value of each label.
        background: the value of pixels in no shape.
        ignored: the value of LabelMe's label ``__ignore__``.
    """

    def __init__(self, values: Values, background: int, ignored: int) -> None:
        self.values, self.background = {**values, IGNORED: ignored}, background
        self.key = f"labelme {sorted(values.items())} {background}"

    def __call__(self, image: Path, mask: Path) -> Tensor:
        """Return the values of an image's mask, (H, W) uint8.

        Raises:
            InputError: the file is not as LabelMe writes it, or a label is not in `values`.
        """
        document = read_json(mask)
        with _naming(str(mask)):
            size = _size(document, "imageHeight", "imageWidth")
            values = np.full(size, self.background, np.uint8)
            for number, shape in enumerate(document["shapes"], 1):
                with _naming(f"shape {number} ({shape['label']!r})"):
                    _draw_labelme(values, _value(shape["label"], self.values), shape)
        return torch.from_numpy(values)


def read_labels(mask: Path) -> set[str]:
    """Return the labels in a JSON file of LabelMe.

    Raises:
        InputError: the file is not as LabelMe writes it.
    """
    document = read_json(mask)
    with _naming(str(mask)):
        return {str(shape["label"]) for shape in document["shapes"]} - {IGNORED}


def _draw_labelme(values: NDArray[np.uint8], value: int, shape: Mapping[str, Any]) -> None:
    points: NDArray[np.float64] = np.array(shape["points"], np.float64).reshape(-1, 2)
    kind = shape.get("shape_type") or "polygon"
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif kind == "circle":
        centre, rim = points
        angles = np.arange(CIRCLE_CORNERS) * (2 * np.pi / CIRCLE_CORNERS)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = centre + np.linalg.norm(rim - centre) * unit
    elif kind == "mask":
        with open_image(base64.b64decode(shape["mask"], validate=True)) as (image, _):
            mask = np.asarray(image.convert("L")) > 0
        left, top = (max(int(coordinate), 0) for coordinate in points[0])
        area = values[top : top + mask.shape[0], left : left + mask.shape[1]]
        area[mask[: area.shape[0], : area.shape[1]]] = value
        return
    elif kind != "polygon":
        raise InputError(
            f"a {kind} has no area; draw a polygon, rectangle, circle or mask, or delete it"
        )
    draw(values, value, (points,))
