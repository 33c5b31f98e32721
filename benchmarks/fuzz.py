"""Damaged and hostile files by the thousand: each is read, or refused with one of our errors.

    python benchmarks/fuzz.py images [--count 2000] [--seed 0] [--keep FOLDER] [--json]

Memory is limited; a case that takes more than a second is counted as slow. The same seed makes the
same files. `--keep` writes the files of other outcomes.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import random
import resource
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isanet_zoo.errors import ZooError
from isanet_zoo.imaging.formats import FORMATS
from isanet_zoo.imaging.reading import read_image

MEMORY = 2 << 30  # bytes beyond those in use at the start
SLOW = 1.0  # seconds
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def image_files() -> list[bytes]:
    """Return small files of all supported formats and modes, and of others."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    images = [rgb, rgb.convert("L"), rgb.convert("P"), rgb.convert("RGBA"), rgb.convert("CMYK")]
    images += [rgb.convert("1"), Image.new("I;16", (9, 9)), Image.new("F", (9, 9))]
    variants: list[dict[str, Any]] = [
        {},
        {"save_all": True, "append_images": [rgb.rotate(180)]},
        {"progressive": True},
        {"compression": "tiff_lzw"},
        {"lossless": True},
        {"interlace": 1},
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for kind in (*FORMATS, "MPO", "EPS", "ICO"):
        for image in images:
            for options in variants:
                buffer = io.BytesIO()
                try:
                    image.save(buffer, kind, exif=exif, **options)
                except Exception:  # a combination that Pillow cannot write
                    continue
                files.append(buffer.getvalue())
    return sorted(set(files))


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return a file with one to four of its parts changed."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # Headers decide most, so that half of the changes are made in them.
        end = len(data) if rng.random() < 0.5 else min(len(data), 128)
        at = rng.randrange(end) if end else 0
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            value = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES))
            data[at : at + 4] = value[: rng.choice((2, 4))]
        elif kind == 2:
            del data[at : at + rng.randint(1, 64)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 64)] * rng.choice((1, 2, 100))
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randint(1, 256)]
        else:
            del data[at:]
    return bytes(data)


def image_cases(rng: random.Random) -> Iterator[bytes]:
    """Yield damaged image files without end."""
    files = image_files()
    while True:
        yield mutate(rng.choice(files), files, rng)


KINDS: dict[str, tuple[Callable[[random.Random], Iterator[bytes]], Callable[[bytes], object]]] = {
    "images": (image_cases, read_image),  # name -> cases, and how they are read
}


def outcome(read: Callable[[bytes], object], case: bytes) -> str:
    """Read a case; return what became of it."""
    start = time.perf_counter()
    try:
        read(case)
        found = "read"
    except ZooError as error:
        found = f"refused ({type(error).__name__})"
    except BaseException as error:  # anything else is a fault
        found = f"FAULT: {type(error).__name__}: {str(error)[:80]}"
    return f"SLOW: {found}" if time.perf_counter() - start > SLOW else found


def main() -> None:
    """Read cases of one kind and print how many ended in which way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of faults and slow cases")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    cases, read = KINDS[args.kind]
    counts: Counter[str] = Counter()
    for number, case in zip(range(args.count), cases(random.Random(args.seed)), strict=False):
        found = outcome(read, case)
        counts[found] += 1
        if args.keep and found.startswith(("FAULT", "SLOW")):
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{args.kind}-{args.seed}-{number}").write_bytes(case)
    if args.json:
        print(json.dumps(counts))
    else:
        print(*(f"{count:7}  {found}" for found, count in counts.most_common()), sep="\n")


if __name__ == "__main__":
    main()
