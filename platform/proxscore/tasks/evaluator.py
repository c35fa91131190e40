"""What evaluates the predictions of a task: its metrics, the columns of its tables, its figures, and what it has to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from proxscore.calibration.comparison import Curve
from proxscore.tasks.baselines import BestBaseline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Predictive(Protocol):
    """A task predicts a distribution for each row of a split; this is what every such predictive has."""

    targets: Tensor

    @property
    def log_density(self) -> Tensor:
        """Log predictive density (or probability) of each row's target, (N,), in nats; NaN where it has none."""


Figures: TypeAlias = "Callable[[], dict[str, Figure]]"


@dataclass(frozen=True)
class Corrected:
    """Predictions after validation data have corrected them.

    Attributes:
        metrics: beside those of the predictions as they are.
        figures: by name, likewise.
        details: of the result, as JSON.
        saved: what the posterior's ``validation`` is to hold of the correction, as JSON.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    figures: Figures = dict
    details: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Evaluates predictive distributions by metrics and figures. This one knows the NLL; a subclass adds its field's metrics.

    Attributes:
        headline: metrics that are shown first, the first of them in lines of progress.
        columns: heading, metric and digits of a comparison's table.
        objectives: metrics that a search may optimise, and whether more of each is better; the first is the default.
    """

    headline: tuple[str, ...] = ("nll",)
    columns: Sequence[tuple[str, str, int]] = (("NLL", "nll", 4),)
    objectives: Mapping[str, bool] = {"nll": False}

    def evaluate(
        self, predictive: Any, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Figures]:
        """Give the metrics over all workers' rows, and a function that draws figures by name, which any worker may call.

        Args:
            predictive: of this worker's rows.
            bins: of histograms and calibration errors.
            device: that the process group can gather from.
            title: of the figures.
        """
        from torchmetrics import MeanMetric  # takes seconds

        nll = MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(device)
        if len(predictive.targets):
            nll.update(-predictive.log_density.double().to(device))
        return {"nll": float(nll.compute())}, dict

    @property
    def corrects(self) -> bool:
        """Whether validation data correct the predictions: :meth:`correction` and :meth:`corrected` have something to do."""
        return False

    def correction(self, validation: Any, device: torch.device) -> dict[str, Any]:
        """What the validation split says of how to correct predictions, as JSON; all workers call it, and get the same.

        Args:
            validation: the predictive of this worker's rows of that split.
            device: that the process group can gather from.
        """
        return {}

    def corrected(self, predictive: Any, correction: Mapping[str, Any], device: torch.device, title: str) -> Corrected:
        """Judge the corrected predictions of another split; all workers call it.

        Args:
            predictive: of this worker's rows.
            correction: as :meth:`correction` gave it, or as it was saved.
            title: of the figures.
        """
        return Corrected()

    def compared(self, predictive: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Give what a comparison needs beside :meth:`evaluate`: more metrics, and the tensors of :meth:`comparison_figure`.

        The predictive is that of all rows, in one process."""
        return {}, {}

    def baselines(self) -> dict[str, Any]:
        """Predictives for the test split, by name, of what needs no training and any method must beat."""
        return {}

    def best_baseline(self, show: Callable[[str], None]) -> BestBaseline | None:
        """The best of them by the validation split, with its metrics of the test split; none: the task has none.

        One process computes it, without the others.

        Args:
            show: takes a line before it begins.
        """
        return None

    def comparison_figure(self, curves: Sequence[Curve], bins: int) -> Figure | None:
        """Draw all methods of a comparison in one figure; give none where there is nothing to draw."""
        return None
