"""Values that a likelihood makes impossible: refused where a network is to be trained or stopped by them, and said elsewhere.

Their density is 0, so that the NLL of a part that has one is infinite, and tells nothing. CRPS, quantiles, coverage and
calibrated intervals stay what they are: forecasts that hold the target, or miss it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.forecasting.distributions import StepDistribution
from proxscore.forecasting.series import SeriesData


def support(family: type[StepDistribution] | StepDistribution) -> str:
    """What can occur, in words."""
    what = "numbers above 0" if family.positive else "any numbers" if family.least is None else "numbers from 0 on"
    return f"whole {what}" if family.counts else what


def excluded(family: type[StepDistribution] | StepDistribution, values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which values cannot occur; a missing one (NaN) can."""
    if family.least is None:
        return np.zeros(values.shape, dtype=bool)
    wrong = values <= family.least if family.positive else values < family.least
    return np.asarray(wrong | (values != np.floor(values)) & ~np.isnan(values) if family.counts else wrong)


def places(
    family: type[StepDistribution] | StepDistribution, data: SeriesData, ends: Sequence[int] | None = None
) -> Iterator[tuple[int, int]]:
    """Number of each series that has an impossible value, and the step of the first.

    Args:
        ends: steps of each series that are looked at; none: all.
    """
    for number, each in enumerate(data.series):
        wrong = excluded(family, each.target[: None if ends is None else ends[number]])
        if wrong.any():
            yield number, int(wrong.argmax())


def shown(data: SeriesData, number: int, step: int) -> str:
    """A value by its series and timestamp."""
    each = data.series[number]
    return f"series {each.id!r} has {each.target[step]:g} at {each.timestamps(step, 1)[0]}"


def first_of(
    family: type[StepDistribution] | StepDistribution, data: SeriesData, ends: Sequence[int] | None = None
) -> str | None:
    """The first impossible value; none: there is none."""
    return next((shown(data, *place) for place in places(family, data, ends)), None)


def check_targets(name: str, family: type[StepDistribution], data: SeriesData, ends: Sequence[int]) -> None:
    """Refuse a likelihood under which targets of training or validation are impossible.

    Args:
        name: of the likelihood.
        ends: of each series, the steps that come before its test targets.

    Raises:
        ConfigError: names the first series, its value and when.
    """
    if (where := first_of(family, data, ends)) is not None:
        raise ConfigError(
            f"task.model.likelihood={name} is of {support(family)}; {where}, before its test part: take auto, or student_t"
        )


def remark(name: str, family: StepDistribution, data: SeriesData, targets: Tensor) -> str | None:
    """Say of windows that some of their targets are impossible; none: all can be.

    Args:
        name: of the likelihood.
        targets: (N, 4, H), see :class:`proxscore.forecasting.windows.Windows`.
    """
    values, observed = targets[:, 0].double(), targets[:, 1] > 0
    wrong = torch.from_numpy(excluded(family, torch.where(observed, values, torch.nan).numpy()))
    if not bool(wrong.any()):
        return None
    window, step = wrong.nonzero()[0].tolist()
    where = shown(data, int(targets[window, 2, 0]), int(targets[window, 3, 0]) + step)
    return (
        f"{int(wrong.sum()):,} of {int(observed.sum()):,} targets cannot be by likelihood {name}, which is of {support(family)} "
        f"(the first: {where}): nll is infinite, and tells nothing; CRPS and coverage hold"
    )
