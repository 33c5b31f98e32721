"""Benchmark of a whole prediction, from a decoded image to labels of its size.

    python benchmarks/predict.py [--device cuda] [--batch 16] [--compile] [--json]

The library is compared with `plain.py`. The network is ISANet on ResNet-50 with 150 classes and
random parameters. Memory is the peak beyond the network and the image, in the second run of a
separate process for each implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import common
import plain
import torch
from torch import Tensor

from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference.predictor import Predictor

Way = Callable[[], Tensor]  # () -> labels (B, H, W)
CASES = ((512, 512), (1024, 2048))


def make_image(height: int, width: int) -> Tensor:
    """Return an image (3, H, W) uint8 of smooth regions."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, height // 64, width // 64), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (255 * smooth).clamp(0, 255).to(torch.uint8)


def make_ways(size: tuple[int, int], batch: int, device: str, names: list[str]) -> dict[str, Way]:
    """Return the implementations to compare, from images in host memory to labels there."""
    model = common.make_model().to(device)
    images = [make_image(*size)] * batch
    pixels = torch.stack(images)

    def way_plain(forward: Callable[..., Tensor] = plain.labels) -> Tensor:
        return forward(model, pixels.to(device)).cpu()

    def way_autocast(forward: Callable[..., Tensor]) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return way_plain(forward)

    def way_predictor(predictor: Predictor) -> Tensor:
        found = predictor([LoadedImage(image) for image in images])
        assert isinstance(found, list)
        return torch.stack([_labels(one) for one in found])

    def ready(dtype: torch.dtype) -> Way:
        predictor = Predictor(model, device=device, dtype=dtype, batch_size=batch)
        return partial(way_predictor, predictor)

    makers: dict[str, Callable[[], Way]] = {
        "plain": lambda: way_plain,
        "plain, autocast, compiled": lambda: partial(way_autocast, torch.compile(plain.labels)),
        "float32": lambda: ready(torch.float32),
        "bfloat16": lambda: ready(torch.bfloat16),
    }
    return {name: makers[name]() for name in names}


def _labels(segmentation: Segmentation) -> Tensor:
    return torch.from_numpy(segmentation.labels).long()


@torch.inference_mode()
def main() -> None:
    """Measure both sizes and print them."""
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also the compiled plain network")
    parser.add_argument("--case", type=int, nargs=2, help="one size, (height, width)")
    args = parser.parse_args()
    cases = [tuple(args.case)] if args.case else CASES
    if args.memory_of:
        (way,) = make_ways(cases[0], args.batch, args.device, [args.memory_of]).values()
        print(common.extra_memory(way))
        return
    names = ["plain", "float32", "bfloat16"]
    if args.compile:
        names.insert(1, "plain, autocast, compiled")
    rows = []
    for size in cases:
        place = ("--device", args.device, "--batch", args.batch, "--case", *size)
        memory = {name: common.in_new_process(name, *place) for name in names}
        ways = make_ways(size, args.batch, args.device, names)
        times = common.medians(ways, args.rounds)
        expected = ways["plain"]()
        for name, way in ways.items():
            rows.append(
                {
                    "images": f"{args.batch} x {size[0]} x {size[1]}",
                    "way": name,
                    "seconds": times[name],
                    "faster by": times["plain"] / times[name],
                    "same labels": float((way() == expected).double().mean()),
                    "MiB": memory[name],
                    "of plain": memory[name] / memory["plain"],
                }
            )
    common.report(rows, as_json=args.json)


if __name__ == "__main__":
    main()
