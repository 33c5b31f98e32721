"""Labels from logits at 1/8: in bounded memory, compared with resizing all classes at once.

    python benchmarks/upsample.py [--device cuda] [--json]

`any` logits are noise, so that every class is a candidate somewhere; of the `few` logits, 40 of 150
classes are. `tiles` are 512 pixels wide and overlap by a quarter. Labels are compared. Memory is
the peak beyond the logits, in a new process for each implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import common
import plain
import torch
from torch import Tensor

from isanet_zoo.inference.decide import ResizedLogits, decide
from isanet_zoo.inference.tiles import average_tiles, tile_grid
from isanet_zoo.inference.views import Grid

Way = Callable[[], Tensor]  # () -> (1, H, W)
CASES = {  # name -> logits, classes, height, width
    "any 21": ("any", 21, 512, 683),
    "any 150": ("any", 150, 512, 683),
    "few 150": ("few", 150, 512, 683),
    "any 19, large": ("any", 19, 1024, 2048),
    "any 150, large": ("any", 150, 1024, 2048),
    "any 150, 4K": ("any", 150, 2160, 3840),
    "tiles 150": ("tiles", 150, 1024, 2048),
}


def make_logits(kind: str, classes: int, height: int, width: int, device: str) -> Tensor:
    """Return logits (1, K, h, w) for an image of a size."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, classes, -(-height // 8), -(-width // 8))
    logits = torch.randn(shape, generator=generator)
    if kind == "few":
        logits[:, 40:] -= 12
    return logits[:, torch.randperm(classes, generator=generator)].contiguous().to(device)


def make_ways(case: str, device: str) -> dict[str, Way]:
    """Return the implementations that are compared, by name."""
    kind, classes, height, width = CASES[case]
    size = (height, width)
    if kind == "tiles":
        places = tile_grid(size, Grid((512, 512), (384, 384)))
        tiles = [make_logits(kind, classes, *place.size, device) for place in places]
        return {
            "plain": lambda: plain.decide_tiles(tiles, places, size),
            "bounded": lambda: decide([average_tiles(places, tiles, size, "half_pixel")]).labels,
        }
    logits = make_logits(kind, classes, height, width, device)
    return {
        "plain": partial(plain.decide, logits, size),
        "bounded": lambda: decide([ResizedLogits(logits, size, "half_pixel")]).labels,
    }


@torch.inference_mode()
def main() -> None:
    """Measure all cases and print them."""
    parser = common.parser(__doc__)
    parser.add_argument("--case", choices=CASES, help="one case")
    args = parser.parse_args()
    if args.memory_of:
        print(common.extra_memory(make_ways(args.case, args.device)[args.memory_of]))
        return
    rows = []
    for case in [args.case] if args.case else CASES:
        ways = make_ways(case, args.device)
        place = ("--device", args.device, "--case", case)
        memory = {name: common.in_new_process(name, *place) for name in ways}
        times = common.medians(ways, args.rounds)
        rows.append(
            {
                "logits": case,
                "plain s": times["plain"],
                "bounded s": times["bounded"],
                "faster by": times["plain"] / times["bounded"],
                "same labels": bool((ways["plain"]() == ways["bounded"]()).all()),
                "plain MiB": memory["plain"],
                "bounded MiB": memory["bounded"],
                "of plain": memory["bounded"] / memory["plain"],
            }
        )
    common.report(rows, as_json=args.json)


if __name__ == "__main__":
    main()
