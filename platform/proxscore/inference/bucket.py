"""Buckets: flat pieces of many parameters' local shards, aligned index by index, that one pass of arithmetic covers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class Bucket:
    """Flat pieces of a few parameters' local shards, aligned index by index."""

    weights: list[Tensor]
    mean: list[Tensor]
    precision: list[Tensor]
    score: list[Tensor]  # running mean of g, the gradient of the mean negative log-likelihood
    total: list[Tensor]  # g of this step, the mean over its draws
    statistic: list[Tensor]  # the gradient during the draws; the curvature statistic k before the step
    square: list[Tensor | None]  # running mean of g^2, of the adaptive metric
    prior_mean: list[Tensor | None]
    displacement: list[Tensor | None]  # weights - mean, where the mean is not held
    prior_precision: list[float]
    squares: list[float]  # steps in ``square``


def split(shards: Sequence[tuple[tuple[Tensor | None, ...], float, float]], size: int) -> Iterator[Bucket]:
    """Cut aligned flat shards into buckets of about ``size`` elements.

    Args:
        shards: the tensors of a bucket in its order, prior precision, and number of squares, per parameter.
    """
    columns: list[list] = [[] for _ in fields(Bucket)]
    held = 0
    for tensors, *numbers in shards:
        assert tensors[0] is not None
        count = tensors[0].numel()
        for low in range(0, count, size):
            row = tensors
            if count > size:  # slicing costs as much as a pass over a small tensor
                row = tuple(None if tensor is None else tensor[low : low + size] for tensor in tensors)
            for column, value in zip(columns, (*row, *numbers), strict=True):
                column.append(value)
            held += min(size, count - low)
            if held >= size:
                yield Bucket(*columns)
                columns, held = [[] for _ in fields(Bucket)], 0
    if held:
        yield Bucket(*columns)
