"""Benchmark of the network alone, from prepared images to logits at 1/8.

python benchmarks/network.py [--device cuda] [--batch 16] [--compile] [--peak 989] [--json]

The folded network is compared with the network as it was built, eager and compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import common
import plain
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isanet_zoo.inference.predictor import Predictor
from isanet_zoo.network.isanet import ISANet


def make_ways(model: ISANet, images: Tensor, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Return the implementations to compare."""

    def autocast(forward: Callable[[ISANet, Tensor], Tensor]) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return forward(model, images)

    ways: dict[str, Callable[[], Tensor]] = {
        "plain": partial(plain.logits, model, images),
        "plain, autocast": partial(autocast, plain.logits),
    }
    if compiled:
        ways["plain, autocast, compiled"] = partial(autocast, torch.compile(plain.logits))
    for dtype in (torch.float32, torch.bfloat16):
        predictor = Predictor(model, device=images.device, dtype=dtype)
        ways[f"folded, {str(dtype).removeprefix('torch.')}"] = partial(predictor.engine, images)
    return ways


@torch.inference_mode()
def main() -> None:
    """Measure both sizes and print them."""
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, slow to start")
    parser.add_argument("--peak", type=float, help="specified TFLOP/s of the device in bfloat16")
    args = parser.parse_args()
    model = common.make_model().to(args.device)
    rows = []
    for height, width in ((512, 512), (1024, 2048)):
        images = torch.randn(args.batch, 3, height, width, device=args.device)
        with FlopCounterMode(display=False) as counter:
            expected = plain.logits(model, images)
        ways = make_ways(model, images, args.compile)
        times = common.medians(ways, args.rounds)
        for name, way in ways.items():
            speed = counter.get_total_flops() / times[name] / 1e12
            row = {
                "images": f"{args.batch} x {height} x {width}",
                "way": name,
                "seconds": times[name],
                "faster by": times["plain"] / times[name],
                "TFLOP/s": speed,  # with the operations of the plain network
                "largest error": float((way().float() - expected).abs().max()),
            }
            rows.append(row | ({"of peak": speed / args.peak} if args.peak else {}))
    common.report(rows, as_json=args.json)


if __name__ == "__main__":
    main()
