"""Rows of attention, compared with the dense matrices of both hops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from isanet_zoo.engines.folding import FoldedInterlacedAttention
from isanet_zoo.network.affinity import affinity_rows
from isanet_zoo.network.attention import InterlacedAttention, SelfAttention
from tests.engines.networks import settle

CHANNELS, KEYS = 6, 4


def make(partition: tuple[int, int], seed: int, *, value_bias: bool = False) -> InterlacedAttention:
    """Return attention with random parameters, whose weights are far from uniform."""
    torch.manual_seed(seed)
    attention = InterlacedAttention(CHANNELS, KEYS, partition=partition, value_bias=value_bias)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, 0, 0.8)
    settle(attention, seed)
    return attention


def dense(hop: SelfAttention, x: Tensor, together: Callable[[int, int], bool]) -> Tensor:
    """Return the matrix (N, N) of attention among the positions of (C, N) that share a group."""
    query, key = (part(x[None, :, None])[0, :, 0] for part in (hop.query, hop.key))  # (D, N)
    count = x.shape[1]
    matrix = torch.zeros(count, count, dtype=torch.float64)
    for p in range(count):
        group = [r for r in range(count) if together(p, r)]
        scores = (query[:, p, None] * key[:, group]).sum(0).double() / KEYS**0.5
        matrix[p, group] = scores.softmax(0)
    return matrix


@torch.no_grad()
def oracle(attention: InterlacedAttention, x: Tensor) -> tuple[list[Tensor], Tensor, list[int]]:
    """Return A_L, A_S and A_S · A_L over the padded map, the output, and where the map is."""
    _, _, height, width = x.shape
    window_h, window_w = attention.partition
    pad_h, pad_w = -height % window_h, -width % window_w
    full_h, full_w = height + pad_h, width + pad_w
    padded = torch.zeros(CHANNELS, full_h, full_w)
    top, left = pad_h // 2, pad_w // 2
    padded[:, top : top + height, left : left + width] = x[0]
    flat = padded.flatten(1)
    at = [divmod(index, full_w) for index in range(full_h * full_w)]

    def same_place(p: int, r: int) -> bool:
        (a, b), (c, d) = at[p], at[r]
        return a % window_h == c % window_h and b % window_w == d % window_w

    def same_window(p: int, r: int) -> bool:
        (a, b), (c, d) = at[p], at[r]
        return a // window_h == c // window_h and b // window_w == d // window_w

    def apply(hop: SelfAttention, matrix: Tensor, values: Tensor) -> Tensor:
        mixed = hop.value(values[None, :, None])[0, :, 0] @ matrix.float().T
        out: Tensor = hop.project(mixed[None, :, None])[0, :, 0]
        return out

    long_range = dense(attention.long_range, flat, same_place)
    between = apply(attention.long_range, long_range, flat)
    short_range = dense(attention.short_range, between, same_window)
    out = apply(attention.short_range, short_range, between)
    inside = [
        index
        for index, (row, column) in enumerate(at)
        if top <= row < top + height and left <= column < left + width
    ]
    return [long_range, short_range, short_range @ long_range], out[:, inside], inside


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    partition=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 1000),
    value_bias=st.booleans(),
    data=st.data(),
)
def test_rows_equal_those_of_the_dense_matrices(
    size: tuple[int, int],
    partition: tuple[int, int],
    seed: int,
    value_bias: bool,
    data: st.DataObject,
) -> None:
    attention = make(partition, seed, value_bias=value_bias)
    x = torch.randn(1, CHANNELS, *size)
    row, column = (data.draw(st.integers(0, side - 1)) for side in size)
    matrices, out, inside = oracle(attention, x)
    with torch.no_grad():
        torch.testing.assert_close(out.view(x.shape), attention(x), atol=1e-4, rtol=1e-4)
        found = affinity_rows(attention, x, (row, column))
        folded = affinity_rows(FoldedInterlacedAttention(attention), x, (row, column))
    cell = inside[row * size[1] + column]
    for matrix, actual, of_folded in zip(matrices, found, folded, strict=True):
        assert matrix[cell].sum() == pytest.approx(1)  # over the padding, too
        expected = matrix[cell, inside].view(size).float()
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(of_folded, expected, atol=1e-5, rtol=0)


def test_row_sums_to_one_without_padding_and_to_less_with_it() -> None:
    attention = make((4, 3), 0)
    with torch.no_grad():
        exact = affinity_rows(attention, torch.randn(1, CHANNELS, 8, 6), (5, 2))
        padded = affinity_rows(attention, torch.randn(1, CHANNELS, 7, 5), (5, 2))
    assert [float(row.sum()) for row in exact] == pytest.approx([1, 1, 1])
    assert padded.affinity.sum() < 0.999
