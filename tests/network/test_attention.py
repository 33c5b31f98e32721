"""Tests of interlaced attention against the paper's definition, a loop over positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from isanet_zoo.network.attention import InterlacedAttention, SelfAttention


def randomise(module: nn.Module, seed: int) -> None:
    """Set every parameter and running statistic to a value that is neither zero nor one."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    for convolution in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
        weight = torch.randn(convolution.weight.shape, generator=generator)
        convolution.weight.data.copy_(weight / weight[0].numel() ** 0.5)


def attend_among(block: SelfAttention, maps: Tensor, group_of: list[list[int]]) -> Tensor:
    """Return attention of each position to those of its group: one softmax per position."""
    query, key, value = (part(maps).flatten(2) for part in (block.query, block.key, block.value))
    context = torch.zeros_like(value)  # (B, C, positions)
    for members in group_of:
        for position in members:
            scores = torch.stack(
                [(query[:, :, position] * key[:, :, other]).sum(1) for other in members], 1
            )
            weights = (scores / query.shape[1] ** 0.5).softmax(1)  # (B, members)
            for weight, other in zip(weights.unbind(1), members, strict=True):
                context[:, :, position] += weight[:, None] * value[:, :, other]
    out: Tensor = block.project(context.reshape(maps.shape[0], -1, *maps.shape[2:]))
    return out


def interlaced_by_position(attention: InterlacedAttention, x: Tensor) -> Tensor:
    window_h, window_w = attention.partition
    _, _, height, width = x.shape
    missing_h, missing_w = -height % window_h, -width % window_w
    top, left = missing_h // 2, missing_w // 2
    padded = x.new_zeros(*x.shape[:2], height + missing_h, width + missing_w)
    padded[:, :, top : top + height, left : left + width] = x
    rows, columns = padded.shape[2:]
    far: dict[tuple[int, int], list[int]] = {}
    near: dict[tuple[int, int], list[int]] = {}
    for i in range(rows):
        for j in range(columns):
            far.setdefault((i % window_h, j % window_w), []).append(i * columns + j)
            near.setdefault((i // window_h, j // window_w), []).append(i * columns + j)
    out = attend_among(attention.long_range, padded, list(far.values()))
    out = attend_among(attention.short_range, out, list(near.values()))
    return out[:, :, top : top + height, left : left + width]


sizes = st.integers(1, 9)


@given(
    batch=st.integers(1, 2),
    height=sizes,
    width=sizes,
    partition=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    value_bias=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=25, deadline=None)
def test_attention_equals_a_loop_over_positions(
    batch: int, height: int, width: int, partition: tuple[int, int], value_bias: bool, seed: int
) -> None:
    attention = InterlacedAttention(4, 3, partition=partition, value_bias=value_bias).eval()
    randomise(attention, seed)
    x = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        torch.testing.assert_close(
            attention(x), interlaced_by_position(attention, x), rtol=1e-4, atol=1e-5
        )


def test_attention_connects_every_position_with_every_other() -> None:
    # Leaky, as an activation of zero would interrupt a path.
    attention = InterlacedAttention(2, 2, partition=(4, 4), activation="leaky_relu").eval()
    randomise(attention, 0)
    x = torch.randn(1, 2, 8, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    attention(x)[0, :, 5, 7].sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any(1).all()


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch.export of 2.6 guards sizes above 8"
)
def test_exported_graph_supports_all_sizes() -> None:
    attention = InterlacedAttention(4, 3, partition=(8, 8)).eval()
    randomise(attention, 1)
    dynamic = {
        0: torch.export.Dim.DYNAMIC,
        2: torch.export.Dim.DYNAMIC,
        3: torch.export.Dim.DYNAMIC,
    }
    program = torch.export.export(
        attention, (torch.randn(2, 4, 13, 18),), dynamic_shapes=(dynamic,)
    )
    for shape in ((1, 4, 16, 16), (3, 4, 9, 31), (2, 4, 64, 86), (1, 4, 8, 20), (2, 4, 3, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), attention(x))
