"""How long a gradient evaluation takes: a few rows are timed, or operations counted, and the rest is extrapolated."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from proxscore.tasks import Task

SECONDS = 10.0  # that timing may take
COUNTED_ROWS = 2  # BatchNorm needs two
MATRIX = 1024
CHECKPOINTED = 4 / 3  # forward, backward (twice as much) and forward again
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
    """

    fixed: float
    per_row: float
    update: float
    how: str

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


def by_operations(row_seconds: float, numbers: float, rate: float, why: str) -> Speed:
    """The speed where no step is taken.

    Args:
        row_seconds: of the operations of a row.
        numbers: of weights, gradients and state.
        rate: operations per second.
        why: there is no step, for people.
    """
    counted = "from counted operations, expect up to twice as long"
    how = f"{why}; {counted if row_seconds else 'its operations cannot be counted: THE TIME IS NOT KNOWN'}"
    return Speed(0.0, row_seconds, update_seconds(numbers, rate), how)


def update_seconds(numbers: float, rate: float) -> float:
    """Seconds of an update of so many numbers: memory bounds it to about one of them for a hundred operations."""
    return 100 * numbers / rate


def operations(module: nn.Module, task: Task, checkpointed: bool) -> float:
    """Count the floating-point operations of a row's forward and backward pass, on the meta device.

    Those of matrix products, convolutions and attention are seen; a recurrent layer's are not.

    Returns:
        Their number; zero where the backward pass cannot be run without numbers.
    """
    inputs, targets = task.example(COUNTED_ROWS, torch.device("meta"))
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            task.likelihood.nll(module.train()(inputs), targets).sum().backward()
    except (NotImplementedError, RuntimeError):
        return 0.0
    finally:
        module.zero_grad(set_to_none=True)
    return counter.get_total_flops() / COUNTED_ROWS * (CHECKPOINTED if checkpointed else 1.0)


def matrix_rate(device: torch.device) -> float:
    """Measure the floating-point operations per second of a product of two matrices."""
    left, right = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))

    def product() -> float:
        started = time.perf_counter()
        (left @ right)[0, 0].item()
        return time.perf_counter() - started

    product()
    return 2 * MATRIX**3 / statistics.median(product() for _ in range(5))
