"""Segment a GeoTIFF of any size, also one that does not fit into memory, in windows.

    pip install rasterio
    python examples/geotiff.py ORTHOPHOTO.tif LABELS.tif [MODEL]

The first three bands have to be red, green and blue with 8 bits. The labels have the coordinate
system and transform of the source; 255 is where the source has no data. A window is read with all
tiles that overlap it, so that the labels are those of the whole image:
``predict(model, image, tile=TILE, overlap=OVERLAP, resize=False)``.
"""

import itertools
import sys
from pathlib import Path

import rasterio
from rasterio.windows import Window

import isanet_zoo

TILE, OVERLAP = 512, 0.25
STRIDE = round(TILE * (1 - OVERLAP))
BLOCK = 4 * STRIDE  # side of a window


def spans(length: int) -> list[tuple[int, int, int, int]]:
    """Cut a side into windows; return their starts and ends, and those of the tiles on them."""
    last = max(length - TILE, 0)  # where the last tile starts, at a smaller distance
    tiles = [min(start, last) for start in range(0, last + STRIDE, STRIDE)]
    found = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        touching = [tile for tile in tiles if tile < end and tile + TILE > start]
        found.append((start, end, touching[0], min(touching[-1] + TILE, length)))
    return found


def main(path: str, target: str, model: str = "isanet_efficientnet_lite0os8_camvid") -> None:
    """Segment the raster window by window; the target is placed when it is complete."""
    predictor = isanet_zoo.Predictor(model, tile=TILE, overlap=OVERLAP, resize=False)
    labels = predictor.engine.label_set
    with rasterio.open(path) as source:
        if source.count < 3 or set(source.dtypes[:3]) != {"uint8"}:
            sys.exit(f"{path} has {source.dtypes}; convert it: gdal_translate -ot Byte -scale")
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": 255, "tiled": True,
                   "width": source.width, "height": source.height, "crs": source.crs,
                   "transform": source.transform, "blockxsize": 256, "blockysize": 256,
                   "compress": "deflate", "BIGTIFF": "IF_SAFER"}  # fmt: skip
        with rasterio.open(f"{target}.part", "w", **profile) as result:
            result.write_colormap(1, dict(enumerate(labels.colours)))
            result.update_tags(1, **{str(k): name for k, name in enumerate(labels.names)})
            for rows, columns in itertools.product(spans(source.height), spans(source.width)):
                (top, bottom, first, end), (left, right, start, stop) = rows, columns
                pixels = source.read(
                    [1, 2, 3], window=Window.from_slices((first, end), (start, stop))
                )
                found = next(predictor.stream(pixels.transpose(1, 2, 0))).labels
                found = found[top - first : bottom - first, left - start : right - start]
                window = Window.from_slices((top, bottom), (left, right))
                found[source.dataset_mask(window=window) == 0] = 255
                result.write(found, 1, window=window)
    Path(f"{target}.part").replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
