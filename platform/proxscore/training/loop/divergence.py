"""Runs whose numbers are no longer finite: said with the step and the settings to change."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from proxscore.config import ConfigError, DivergedError, MethodSection
from proxscore.inference import noise
from proxscore.inference.convergence import RunawayError
from proxscore.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NANS = "the network's predictions are not numbers (NaN)"


def evaluated(
    task: Task, predictive: Any, bins: int, device: torch.device, title: str
) -> tuple[dict[str, float], Callable[[], dict[str, Figure]]]:
    """Evaluate, by the task's metrics, a predictive that may hold NaN.

    Raises:
        DivergedError: it does.
    """
    try:
        values, figures = task.evaluator.evaluate(predictive, bins, device, title)
    except ValueError as error:
        if _holds_nan(predictive):
            raise DivergedError(f"{title}: {NANS}") from error
        raise
    if math.isnan(values.get("nll", 0.0)):
        raise DivergedError(f"{title}: {NANS}")
    return values, figures


def _holds_nan(predictive: Any) -> bool:
    try:
        return bool(torch.isnan(predictive.log_density).any())
    except ValueError as error:  # torch's distributions refuse such parameters
        return _of_nan(error)


def _of_nan(error: ValueError) -> bool:
    """Whether a library complains of values that are not finite."""
    return re.search(r"\b(nan|inf)\b", str(error)) is not None


@contextmanager
def explained(step: int, steps: int, settings: MethodSection, section: str, module: nn.Module) -> Iterator[None]:
    """Within the context, errors of a run that has diverged say so, with the step that it is at and what to change.

    Args:
        settings: of the method.
        section: of the configuration that the method's settings are in.

    Raises:
        DivergedError: numbers are not finite: of scores, weights or predictions.
    """
    try:
        yield
    except FloatingPointError as error:
        raise divergence_at(step, steps, error, settings, section) from error
    except ValueError as error:
        weights = (noise.local(parameter.detach()) for parameter in module.parameters())
        if isinstance(error, ConfigError) or not (_of_nan(error) or not all(bool(w.isfinite().all()) for w in weights)):
            raise
        raise divergence_at(step, steps, FloatingPointError(NANS), settings, section) from error


def divergence_at(
    step: int, steps: int, error: FloatingPointError, settings: MethodSection, section: str
) -> DivergedError:
    """Make the error of a run that numbers which are not finite have ended at a step."""
    found = str(error).partition(";")[0]  # its own advice does not know the section
    advice = error.remedy(f"{section}.") if isinstance(error, RunawayError) else settings.remedy(section)
    return DivergedError(f"diverged at step {step} of {steps}: {found}; {advice}")
