"""What calibration takes of forecasts: the predictive's own intervals, what happened, when, and in which group of series.

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
from proxscore.forecasting.predictive import ForecastChunk, ForecastPredictive, store
from proxscore.forecasting.series import SeriesData

SERIES = "series"  # each is a group of its own
MAX_GROUPS = 1000  # of which thresholds are kept


@dataclass(frozen=True)
class Scores:
    """What happened in some windows, by the predictive's own intervals.

    Attributes:
        values: (L, N, H) float32, scores at levels that ascend; of steps that were not observed anything. Where they are many
            they lie in a file.
        observed: (N, H) bool.
        series: (N,) numbers; times: (N,) of the origins, in steps of the data's clock.
        first: which of them is the first of this rank.
    """

    values: Tensor
    observed: Tensor
    series: Tensor
    times: Tensor
    first: int = 0

    @classmethod
    def of(
        cls, predictive: ForecastPredictive, data: SeriesData, levels: Sequence[float], device: torch.device
    ) -> Scores:
        """Of the windows of all ranks, in the order of the ranks; all ranks call it.

        Args:
            predictive: of this rank's windows of the data's series; a rank may have none.
            device: that the process group can gather from.
        """
        targets = predictive.targets
        own, row = store(len(levels), len(targets), targets.shape[2]), 0
        for chunk in predictive.chunks():
            found = conformal.scores(*ends_of(chunk, levels), chunk.targets[:, 0], chunk.width)
            own[:, row : (row := row + found.shape[1])] = found
        series = targets[:, 2, 0].long()
        times = first_steps(data)[series] + targets[:, 3, 0].long()
        observed = targets[:, 1] > 0
        if ranks() == 1:
            return cls(own, observed, series, times)
        seen, series, times = (_gathered(part, device) for part in (observed.long(), series, times))
        values = store(len(levels), len(seen), targets.shape[2])
        for place, part in enumerate(own):
            values[place] = _gathered(part, device)
        counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(ranks())]
        dist.all_gather(counts, torch.tensor([len(targets)], device=device))
        return cls(values, seen > 0, series, times, int(torch.cat(counts)[: dist.get_rank()].sum()))


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


def _gathered(part: Tensor, device: torch.device) -> Tensor:
    """(n, ...) of all ranks, one after another."""
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat(gather_all_tensors(part.contiguous().to(device))).cpu()
