"""Benchmark of interlaced attention, folded and as in the paper, and of dense attention.

    python benchmarks/attention.py [--large] [--device cuda] [--json]

`isa` and `plain` are the whole block with all projections; `dense` is one self-attention among all
positions with the same projections, its weights materialised; `flash` the same on torch's flash
attention. `row` is the attention of one position, as `Predictor.explain` computes it. Memory is the
peak beyond the input, with the output, in a separate process for each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import common
import plain
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isanet_zoo.engines.folding import FoldedInterlacedAttention
from isanet_zoo.network.affinity import affinity_rows
from isanet_zoo.network.attention import InterlacedAttention, SelfAttention

Way = Callable[[], Tensor]
CASES = ((64, 64), (128, 128), (128, 256))


def make_ways(height: int, width: int, device: str) -> dict[str, Way]:
    """Return the implementations to compare on a map of 512 channels."""
    torch.manual_seed(0)
    block = InterlacedAttention(512, 256).eval().to(device)
    folded = FoldedInterlacedAttention(block)
    x = torch.randn(1, 512, height, width, device=device).relu()
    channels_last = x.contiguous(memory_format=torch.channels_last)  # as in a folded network
    return {
        "isa": partial(folded, channels_last),
        "plain": partial(plain.interlaced, block, x),
        "dense": partial(plain.dense, block.long_range, x),
        "flash": partial(flash, block.long_range, x),
        "row": lambda: torch.stack(affinity_rows(folded, channels_last, (height // 2, width // 2))),
    }


def flash(attention: SelfAttention, x: Tensor) -> Tensor:
    """Return attention among all positions of (B, C, h, w), weights not materialised."""
    query = attention.query(x).flatten(2).transpose(1, 2)  # (B, h·w, D)
    key = attention.key(x).flatten(2).transpose(1, 2)  # (B, h·w, D)
    value = attention.value(x).flatten(2).transpose(1, 2)  # (B, h·w, C)
    scale = query.shape[-1] ** -0.5
    if x.is_cpu:
        # On CPUs it needs keys as wide as values; zeros do not change the result. GPUs have
        # memory-efficient attention for any widths.
        zeros = (0, value.shape[-1] - query.shape[-1])
        query, key, value = F.pad(query, zeros), F.pad(key, zeros), value.contiguous()
    query, key, value = query[:, None], key[:, None], value[:, None]  # (B, 1, h·w, ...)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        context = F.scaled_dot_product_attention(query, key, value, scale=scale)
    out: Tensor = attention.project(context.transpose(2, 3).reshape(x.shape))
    return out


@torch.inference_mode()
def main() -> None:
    """Measure all cases and print them."""
    parser = common.parser(__doc__)
    parser.add_argument("--large", action="store_true", help="dense attention on 128 x 256, too")
    parser.add_argument("--case", type=int, nargs=2, help="one map, (height, width)")
    args = parser.parse_args()
    cases = [tuple(args.case)] if args.case else CASES
    if args.memory_of:
        (height, width), *_ = cases
        make_ways(16, 16, args.device)[args.memory_of]()  # torch's one-time allocations
        print(common.extra_memory(make_ways(height, width, args.device)[args.memory_of]))
        return
    rows = []
    for height, width in cases:
        names = ["isa", "plain", "row", "dense", "flash"]
        if (height, width) == (128, 256) and not args.large:
            names = names[:3]
        place = ("--device", args.device, "--case", height, width)
        memory = {name: common.in_new_process(name, *place) for name in names}
        ways = make_ways(height, width, args.device)
        times = common.medians({name: ways[name] for name in names}, args.rounds)
        for name in names:
            with FlopCounterMode(display=False) as counter:
                ways[name]()
            rows.append(
                {
                    "map": f"{height} x {width}",
                    "way": name,
                    "seconds": times[name],
                    "isa is faster by": times[name] / times["isa"],
                    "GFLOP": counter.get_total_flops() / 1e9,
                    "MiB": memory[name],
                }
            )
    common.report(rows, as_json=args.json)


if __name__ == "__main__":
    main()
