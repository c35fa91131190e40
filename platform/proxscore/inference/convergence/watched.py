"""Which numbers of a tensor are watched, and where their sums are in the optimizer's state."""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.convergence.windows import WIDTH
from proxscore.inference.layout import zeros_placed_as

#: Numbers of a tensor that are watched, about: at least one in each row.
PROBES = 256
#: Sides of the block of a full covariance's curvature statistic that is watched.
SIDE = 64
#: Name of the statistics in the optimizer's state.
KEY = "probes"


def rows_and_columns(parameter: Tensor) -> tuple[int, int]:
    """A parameter as a matrix: its first dimension, and all others."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return rows, parameter.numel() // max(rows, 1)


def per_row(parameter: Tensor) -> int:
    """Numbers of each row that are watched."""
    rows, columns = rows_and_columns(parameter)
    return min(columns, -(-PROBES // max(rows, 1)))


def indices(parameter: Tensor, start: int, name: str) -> Tensor:
    """The numbers of a local shard that are watched: every row's, spread over its columns, the same however it is sharded.

    Args:
        start: index of the shard's first number in the whole.
    """
    _, columns = rows_and_columns(parameter)
    shard, each = noise.local(parameter), per_row(parameter)
    count = len(shard) // columns if columns else 0
    row = torch.arange(count, device=shard.device)[:, None]
    offset = noise.key(0, KEY, name) % max(columns, 1)
    turned = (row + start // max(columns, 1)) * (int(0.618 * columns) | 1) + offset
    spread = (torch.arange(each, device=shard.device) * columns)[None] // max(each, 1)
    return (row * columns + (turned + spread) % max(columns, 1)).reshape(-1)


def room(parameter: Tensor) -> Tensor:
    """Zeros for a parameter's sums, (rows, numbers of a row, 2 x columns), sharded as its rows are."""
    return zeros_placed_as(parameter, rows_and_columns(parameter)[0], per_row(parameter), 2 * WIDTH)


def packed(sums: Tensor) -> Tensor:
    """(2, n, columns) as the local part of :func:`room`, flat."""
    return sums.permute(1, 0, 2).reshape(-1)


def unpacked(flat: Tensor) -> Tensor:
    """The other way."""
    return flat.reshape(-1, 2, WIDTH).permute(1, 0, 2)
