"""What `predict` prints: a line per image, and a progress bar."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from isanet_zoo.errors import printable

if TYPE_CHECKING:
    from isanet_zoo.imaging.segmentation import Segmentation
    from isanet_zoo.inference.folders import Result

SHOWN_CLASSES = 3  # on the line of an image
SECONDS_BETWEEN_BARS = 30.0  # in log files


def progress_bar(total: int, skipped: int, *, show: bool) -> Any:
    """Return a progress bar on stderr, with images per second and the time left."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_BARS
    return tqdm(  # type: ignore[no-untyped-call]
        total=total + skipped,
        initial=skipped,
        unit=" images",
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        disable=total <= 1 or not show,
    )


def line_of(result: Result, seconds: float, as_json: bool) -> str:
    """Return what is printed on stdout for an image: JSON, classes for people, or its files."""
    if as_json:
        return json.dumps(_record(result, seconds))
    if result.segmentation is None:
        return ""
    if sys.stdout.isatty() or not result.files:
        return _describe(result.source, result.segmentation, seconds)
    return "\n".join(printable(file, 5000) for file in result.files)


def _describe(source: str, segmentation: Segmentation, seconds: float) -> str:
    """Return a line about an image: name, size, largest classes, time."""
    height, width = segmentation.labels.shape
    classes = ", ".join(
        f"{segmentation.label_set.short_name(index)} {100 * fraction:.1f} %"
        for index, _, fraction in segmentation.present()[:SHOWN_CLASSES]
    )
    return f"{printable(source, 5000)}  {width}x{height}  {classes}  {seconds:.2f} s"


def _record(result: Result, seconds: float) -> dict[str, Any]:
    """Return a result as JSON."""
    if result.segmentation is None:
        return {"image": result.source, "error": str(result.error)}
    return result.segmentation.to_dict() | {
        "image": result.source,
        "files": [*map(str, result.files)],
        "seconds": round(seconds, 4),
    }
