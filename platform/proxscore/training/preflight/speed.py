"""How long a gradient evaluation takes: a few rows are timed, or operations counted, and the rest is extrapolated."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from proxscore.tasks import Task
from proxscore.training.preflight.traffic import Part
from proxscore.training.sharding.parallelize import blocks

SECONDS = 10.0  # that timing may take
COUNTED_ROWS = 2  # BatchNorm needs two
MATRIX = 1024
CHECKPOINTED = 4 / 3  # forward, backward (twice as much) and forward again
#: Operations of a matrix product in the time of a byte of memory.
BALANCE, BALANCE_ACCELERATOR = {"cpu": 7.0}, 60.0
QUICK = 0.2  # a step of fewer seconds is taken three times

Timed = Callable[[int], tuple[float, float]]  # rows -> seconds of a gradient evaluation, and of the update


@dataclass(frozen=True)
class Speed:
    """The seconds of a step's parts on one worker.

    Attributes:
        fixed: of a forward and backward pass, whatever its rows.
        per_row: of each of its rows.
        update: of the optimizer's update of all parameters.
        how: where these come from, for people.
        shares: of a pass, by part of the network.
    """

    fixed: float
    per_row: float
    update: float
    how: str
    shares: Mapping[str, float] = field(default_factory=dict)

    def passes(self, rows: float, micro_batches: int = 1) -> float:
        """Seconds of a gradient evaluation of so many rows in so many micro-batches."""
        return micro_batches * self.fixed + rows * self.per_row

    def forward(self, rows: float) -> float:
        """Seconds of a prediction of so many rows: a third of forward and backward."""
        return rows * self.per_row / 3


def extrapolated(
    timed: Timed,
    least: int,
    most: int,
    row_seconds: float,
    budget: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time a few rows, then twice as many, and so on, while time allows, and fit ``fixed + per_row * rows``.

    The first step is a warm-up, unless there is no time for another. A single number of rows gives no slope: rows beyond it
    then take what their operations take at the speed of a matrix product.

    Args:
        timed: takes a step of so many rows.
        least: rows that a pass needs.
        most: rows of a micro-batch, or those that memory holds.
        row_seconds: of the operations of a row; zero: they cannot be counted.
        budget: seconds.

    Raises:
        FloatingPointError: the first step has led the posterior astray.
    """
    begun = clock()
    rows, (seconds, update) = least, timed(least)
    found: dict[int, tuple[float, float]] = {}
    while seconds + update < budget - (clock() - begun):
        try:
            taken = [timed(rows)]
            if sum(taken[0]) < QUICK:
                taken += [timed(rows) for _ in range(2)]
        except FloatingPointError:  # steps of a few rows have led the posterior astray
            break
        seconds, update = (statistics.median(times) for times in zip(*taken, strict=True))
        found[rows] = seconds, update
        if rows == most:
            break
        rows = min(2 * rows, most)
        seconds *= 2  # of the next, at most
    return _fitted(found or {least: (seconds, update)}, most, row_seconds)


def _fitted(found: dict[int, tuple[float, float]], most: int, row_seconds: float) -> Speed:
    """The speed from seconds of passes and updates by rows."""
    update = statistics.median(update for _, update in found.values())
    (least, (seconds, _)), largest = next(iter(found.items())), max(found)
    if largest == most == least:
        return Speed(0.0, seconds / least, update, f"{_rows(least)} timed, the whole micro-batch")
    if len(found) == 1:
        per_row = min(row_seconds or math.inf, seconds / least)
        how = f"{_rows(least)} timed, further ones by their operations, expect up to twice as long"
        return Speed(seconds - least * per_row, per_row, update, how)
    fixed, per_row = _line({rows: seconds for rows, (seconds, _) in found.items()})
    to = "the whole micro-batch" if largest == most else f"extrapolated to {_rows(most)}"
    return Speed(fixed, per_row, update, f"{least} to {_rows(largest)} timed, {to}")


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _line(seconds: dict[int, float]) -> tuple[float, float]:
    """Intercept and slope, neither of them negative."""
    rows, times = list(seconds), list(seconds.values())
    slope, intercept = statistics.linear_regression(rows, times)
    if slope <= 0:
        return statistics.mean(times), 0.0
    if intercept < 0:
        return 0.0, statistics.linear_regression(rows, times, proportional=True)[0]
    return intercept, slope


def by_operations(row_seconds: float, update: float, why: str) -> Speed:
    """The speed where no step is taken.

    Args:
        row_seconds: of the operations of a row.
        update: seconds.
        why: there is no step, for people.
    """
    counted = "from counted operations, expect up to twice as long"
    how = f"{why}; {counted if row_seconds else 'its operations cannot be counted: THE TIME IS NOT KNOWN'}"
    return Speed(0.0, row_seconds, update, how)


def update_seconds(size: float, rate: float, device: str) -> float:
    """Seconds of an update that moves so many bytes, where only operations per second are known."""
    return size * BALANCE.get(device, BALANCE_ACCELERATOR) / rate


def operations(module: nn.Module, task: Task, checkpointed: bool) -> dict[str, float]:
    """Count the floating-point operations of a row's forward and backward pass, on the meta device.

    Those of matrix products, convolutions and attention are seen; a recurrent layer's are not.

    Returns:
        Their number by block; under the empty name, of what lies outside of blocks. Nothing where the backward pass cannot be
        run without numbers.
    """
    inputs, targets = task.example(COUNTED_ROWS, torch.device("meta"))
    try:
        found = counted_operations(module.train(), lambda: task.likelihood.nll(module(inputs), targets).sum())
    except (NotImplementedError, RuntimeError):
        return {}
    factor = (CHECKPOINTED if checkpointed else 1.0) / COUNTED_ROWS
    return {name: operations * factor for name, operations in found.items()}


def counted_operations(module: nn.Module, loss: Callable[[], Tensor]) -> dict[str, float]:
    """Count the operations of a forward and backward pass by block; under the empty name, of what lies outside of blocks.

    Args:
        loss: of the module, whose numbers need not be there.
    """
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            loss().backward()
    finally:
        module.zero_grad(set_to_none=True)
    counts = {name: float(sum(kinds.values())) for name, kinds in counter.get_flop_counts().items()}
    found = {name: counts.get(f"{type(module).__name__}.{name}", 0.0) for name in blocks(module)}
    return {"": counts["Global"] - sum(found.values()), **found}


def shares(operations: Mapping[str, float], parts: Sequence[Part]) -> dict[str, float]:
    """What each part of a network has of its operations; where they cannot be counted, of its numbers."""
    weights = dict(operations) or {part.name: float(part.numbers) for part in parts}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total else {}


def matrix_rate(device: torch.device) -> float:
    """Measure the floating-point operations per second of a product of two matrices."""
    left, right = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))

    def product() -> float:
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        return time.perf_counter() - started

    product()
    return 2 * MATRIX**3 / statistics.median(product() for _ in range(5))
