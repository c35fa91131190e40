"""Which numbers of a tensor are watched, and how their sums are saved with the optimizer's state."""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.convergence.windows import WIDTH
from proxscore.inference.layout import zeros_placed_as

#: About how many numbers of a tensor are watched; at least one in each row.
PROBES = 256
#: How many axes of a full covariance are watched: the rows of its curvature statistic's matrix.
SIDE = 64
#: Name of the sums in the optimizer's state.
KEY = "probes"


def rows_and_columns(parameter: Tensor) -> tuple[int, int]:
    """The shape of a parameter as a matrix, whose rows run over its first dimension."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return rows, parameter.numel() // max(rows, 1)


def watched_per_row(parameter: Tensor) -> int:
    """How many numbers of each row are watched."""
    rows, columns = rows_and_columns(parameter)
    return min(columns, -(-PROBES // max(rows, 1)))


def watched_indices(parameter: Tensor, start: int, name: str) -> Tensor:
    """The watched numbers of a flat local shard, spread over each row's columns; they do not depend on the sharding.

    Args:
        start: index of the shard's first number in the whole tensor.
    """
    _, columns = rows_and_columns(parameter)
    shard, each = noise.local(parameter), watched_per_row(parameter)
    count = len(shard) // columns if columns else 0
    row = torch.arange(count, device=shard.device)[:, None]
    offset = noise.key(0, KEY, name) % max(columns, 1)
    turned = (row + start // max(columns, 1)) * (int(0.618 * columns) | 1) + offset
    spread = (torch.arange(each, device=shard.device) * columns)[None] // max(each, 1)
    return (row * columns + (turned + spread) % max(columns, 1)).reshape(-1)


def saved_sums(parameter: Tensor) -> Tensor:
    """A tensor of zeros to save a parameter's sums in, (rows, watched numbers of a row, 2 WIDTH), sharded as its rows are."""
    return zeros_placed_as(parameter, rows_and_columns(parameter)[0], watched_per_row(parameter), 2 * WIDTH)


def packed(sums: Tensor) -> Tensor:
    """Sums, (2, n, WIDTH), in the order of the local part of :func:`saved_sums`."""
    return sums.permute(1, 0, 2).reshape(-1)


def unpacked(flat: Tensor) -> Tensor:
    """Sums, (2, n, WIDTH), from the flat local part of :func:`saved_sums`."""
    return flat.reshape(-1, 2, WIDTH).permute(1, 0, 2)
