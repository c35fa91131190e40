"""Micro-batches: the pieces that a rank's part of a batch is cut into, with padding where a forward pass needs rows."""

from __future__ import annotations

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


def micro_batches(inputs: Tensor, targets: Tensor, count: int, least: int) -> list[Batch]:
    """Cut a rank's part of a batch into so many pieces; one that has fewer inputs than ``least`` is padded with copies."""
    pieces = zip(inputs[: len(targets)].tensor_split(count), targets.tensor_split(count), strict=True)
    return [(_padded(piece if len(piece) else not_empty(inputs)[:1], least), rows) for piece, rows in pieces]


def _padded(inputs: Tensor, least: int) -> Tensor:
    missing = least - len(inputs)
    return inputs if missing <= 0 else torch.cat([inputs, inputs[:1].expand(missing, *inputs.shape[1:])])


def not_empty(inputs: Tensor) -> Tensor:
    """Give the inputs, or one of zeros where all of a batch's are left out as unreadable: a forward pass needs a row."""
    return inputs if len(inputs) else inputs.new_zeros(1, *inputs.shape[1:])


def joined_batch(micro_batches: list[Batch]) -> Batch:
    """Join a rank's micro-batches again, with padding only where there is nothing else, or a single row."""
    if sum(len(targets) for _, targets in micro_batches) < 2:
        return max(micro_batches, key=lambda batch: len(batch[1]))
    inputs = torch.cat([inputs[: len(targets)] for inputs, targets in micro_batches])
    return inputs, torch.cat([targets for _, targets in micro_batches])
