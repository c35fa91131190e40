"""What calibration takes of forecasts: the predictive's own intervals, what happened, when, and to which group of series.

Windows of a data set may lie on several ranks; scores of all are gathered on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from proxscore.calibration import conformal_forecasts as conformal
from proxscore.calibration.quantiles import central
from proxscore.config import ConfigError
from proxscore.forecasting.predictive import ForecastChunk, ForecastPredictive
from proxscore.forecasting.series import SeriesData

SERIES = "series"  # each is a group of its own
MAX_GROUPS = 1000  # of which thresholds are kept


@dataclass(frozen=True)
class Ends:
    """The predictive's own intervals of some windows, and what happened.

    Attributes:
        lower, upper: (L, N, H) float64, of levels that ascend.
        targets: (N, H); observed: (N, H) bool.
        series: (N,) numbers; times: (N,) of the origins, in steps of the data's clock.
    """

    lower: Tensor
    upper: Tensor
    targets: Tensor
    observed: Tensor
    series: Tensor
    times: Tensor

    @classmethod
    def of(cls, predictive: ForecastPredictive, data: SeriesData, levels: Sequence[float]) -> Ends:
        """Of all windows of a predictive of the data's series."""
        none = predictive.targets.new_empty(len(levels), 0, predictive.targets.shape[2], dtype=torch.float64)
        parts = [(none, none), *(ends_of(chunk, levels) for chunk in predictive.chunks())]  # a rank may have no windows
        values, observed, series, origins = predictive.targets.unbind(1)
        numbers = series[:, 0].long()
        lower, upper = (torch.cat([part[side] for part in parts], 1) for side in (0, 1))
        times = first_steps(data)[numbers] + origins[:, 0].long()
        return cls(lower, upper, values.double(), observed > 0, numbers, times)

    @property
    def scores(self) -> Tensor:
        """(L, N, H); of steps that were not observed anything."""
        return conformal.scores(self.lower, self.upper, self.targets)


def ends_of(chunk: ForecastChunk, levels: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(L, B, H) lower and upper ends of the predictive's own central intervals."""
    pairs = [central(level) for level in levels]
    found = chunk.quantiles([p for pair in pairs for p in pair]).double()
    return found[0::2], found[1::2]


def group_names(data: SeriesData, groups: str | None, *, strict: bool = True) -> list[str] | None:
    """The group of each series; none: there are no groups.

    Args:
        groups: ``series``, or the name of a static category.
        strict: refuse an unknown category, and more groups than thresholds are kept of. New data may lack what training had.

    Raises:
        ConfigError: as said; names the setting.
    """
    if groups is None:
        return None
    if groups == SERIES:
        names = [each.id for each in data.series]
    elif groups in data.categories:
        place, values = list(data.categories).index(groups), data.categories[groups]
        names = [values[each.static_categories[place]] for each in data.series]
    elif not strict:
        return None
    else:
        known = ", ".join([SERIES, *data.categories])
        raise ConfigError(f"task.conformal.groups is {groups!r}, which is no static category of the data; take {known}")
    if strict and (count := len(set(names))) > MAX_GROUPS:
        raise ConfigError(
            f"task.conformal.groups={groups}: {count:,} groups; thresholds are kept of {MAX_GROUPS:,} at most: take a category "
            "with fewer values, or leave it out"
        )
    return names


def first_steps(data: SeriesData) -> Tensor:
    """(N,) the first step of each series, on a clock that all have."""
    return torch.tensor([each.start.ordinal for each in data.series])


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(ends: Ends, values: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (L, n, H), observed (n, H), series and times (n,) of all ranks' windows, in the order of the ranks."""
    if ranks() == 1:
        return values, ends.observed, ends.series, ends.times
    from torchmetrics.utilities.distributed import gather_all_tensors

    parts = values.movedim(1, 0), ends.observed.long(), ends.series, ends.times
    whole = [torch.cat(gather_all_tensors(part.contiguous().to(device))).cpu() for part in parts]
    return whole[0].movedim(0, 1), whole[1] > 0, whole[2], whole[3]
