"""Checks of the optimizer's settings: each refusal names the setting, what it is, and what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from proxscore.inference.metric import Metric
from proxscore.inference.penalties import NoPenalty, Penalty


def require_positive(**settings: float | None) -> None:
    """Refuse numbers that are not positive; none stands for a default."""
    for setting, value in settings.items():
        if value is not None and not value > 0:
            raise ValueError(f"{setting} is {value}; it must be positive")


def check_metric(metric: str, square_decay: float | None, penalty: Penalty) -> None:
    """Refuse an unknown metric, and settings that do not go with the metric."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}; it must be one of {', '.join(get_args(Metric))}")
    adaptive = metric == "adaptive"
    if square_decay is not None and not (adaptive and 0 <= square_decay < 1):
        raise ValueError(f"square_decay is {square_decay}; it must lie in [0, 1), and is of metric='adaptive'")
    if adaptive and isinstance(penalty, NoPenalty):
        raise ValueError("penalty NoPenalty leaves no metric to the mean's step: use metric='posterior'")


def check_start(initial_noise: float | None, initial_precision: float | Mapping[str, float] | None) -> None:
    """Refuse two settings of the initial width at once, and precisions that are not positive."""
    if isinstance(initial_precision, Mapping):
        require_positive(**{f"initial_precision of {name}": value for name, value in initial_precision.items()})
    elif initial_precision is not None and initial_noise is not None:
        raise ValueError(
            "initial_noise and initial_precision both say how wide the posterior is at the start: give one"
        )


def check_group(group: Mapping[str, Any]) -> None:
    """Refuse settings of a parameter group that are out of range."""
    require_positive(initial_precision=group["initial_precision"])
    if not group["lr"] >= 0:
        raise ValueError(f"lr is {group['lr']}; it must be positive")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum is {group['momentum']}; it must lie in [0, 1)")
