"""What a comparison or a search would take: one of its runs is estimated, and there are so many, some side by side."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import torch

from proxscore.config import Config
from proxscore.experiments.comparison.plan import AS_GIVEN
from proxscore.experiments.comparison.plan import Plan as Comparison
from proxscore.training.loop.run_length import run_length
from proxscore.training.preflight.dry_run import counted, estimate_lines, told_lines, total_lines
from proxscore.training.preflight.estimate import estimate, work_of
from proxscore.training.preflight.fabric import described_device
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.preflight.price import duration
from proxscore.training.preflight.remarks import remarks

if TYPE_CHECKING:  # a search is an extra
    from proxscore.experiments.sweep.plan import Plan as Sweep


def of_comparison(plan: Comparison) -> str:
    """Estimate a comparison: the method that predicts most is timed, and all methods take as many gradient evaluations.

    Raises:
        ConfigError: a network cannot be counted.
    """
    first = max(plan.contenders, key=lambda contender: work_of(contender.configs[AS_GIVEN], plan.task).predicted)
    cells = {(cell.method, cell.setting, cell.seed) for cell in plan.first()}
    tuned = [contender for contender in plan.contenders if contender.trials]
    cells_later = len(tuned) * (len(plan.seeds) - 1)  # at the learning rate that is chosen, which may be the given one
    config = first.configs[AS_GIVEN]
    head = f"comparison       {len(plan.contenders)} methods x {len(plan.seeds)} seed(s)"
    if tuned:
        head += ", and trials of learning rates"
    note = f"timed with {first.name}; all cells take {plan.evaluations} gradient evaluations each"
    return "\n".join([head, *_lines(Preflight(config, plan.task), config, len(cells) + cells_later, "cells", note)])


def of_sweep(plan: Sweep) -> str:
    """Estimate a search, if no trial is stopped early, and the repetitions of the best.

    Raises:
        ConfigError: a network cannot be counted.
    """
    tune = plan.tune
    trials = tune.population.size if tune.search == "population" else tune.trials
    repeated = min(tune.top, trials) * (len(tune.seeds) - 1)
    config = plan.config.model_copy(update={"baseline": None})
    head = f"search           {trials} trials, and {repeated} repetitions of the best from other seeds"
    note = "timed at the settings of the file, as if no trial were stopped early"
    if tune.time_limit is not None:
        note += f"; tune.time_limit ends the search after {duration(tune.time_limit)}"
    lines = _lines(Preflight(config, plan.task), config, trials + repeated, "trials", note, tune.concurrent)
    return "\n".join([head, *lines])


def _lines(
    preflight: Preflight, config: Config, runs: int, what: str, note: str, at_most: int | None = None
) -> list[str]:
    device = described_device(config)
    counted(preflight)
    found = estimate(preflight, device)
    side_by_side = max(min(_slots(config, device, found.workers), at_most or runs, runs), 1)
    rounds = math.ceil(runs / side_by_side)
    length = run_length(
        math.ceil(len(preflight.task.data.train) / config.training.batch_size), config.training.epochs, preflight.task
    )
    return [
        *told_lines(preflight.task),
        *estimate_lines(config, found, device),
        f"{what:<16} {runs}, {side_by_side} at a time, as this machine has room for",
        f"                 {note}",
        *total_lines(config, runs * found.seconds, found.workers, device, wall=rounds * found.seconds),
        *remarks(config, preflight.task, length, device),
    ]


def _slots(config: Config, device: torch.device, workers: int) -> int:
    """Runs that this machine holds at a time."""
    cpus = int((os.cpu_count() or 1) / (workers * config.training.cpus_per_worker) + 1e-9)
    return min(cpus, torch.cuda.device_count() // workers) if device.type == "cuda" else cpus
