"""The evaluation of regression: Gaussian mixtures, by squared error, NLL, CRPS and the coverage of intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from proxscore.calibration.blank import blank
from proxscore.calibration.crps import crps_gaussian
from proxscore.posterior import GaussianPredictive
from proxscore.tasks.evaluator import Evaluator, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.5, 0.9)


class RegressionEvaluator(Evaluator):
    """Evaluates by RMSE, NLL, CRPS, and the coverage of central intervals; draws predictions against targets."""

    headline = ("rmse", "nll", "crps", "coverage_90")
    columns = (
        ("RMSE", "rmse", 4),
        ("NLL", "nll", 4),
        ("CRPS", "crps", 4),
        ("90 % interval", "coverage_90", 3),
    )
    objectives: Mapping[str, bool] = {"nll": False, "rmse": False, "mae": False, "crps": False}

    def evaluate(
        self, predictive: GaussianPredictive, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Figures]:
        """Metrics over all workers' rows, in units of the target, and a figure.

        CRPS and intervals are those of the Gaussian with the predictive's mean and variance (noise and draws together).

        Returns:
            rmse, mae: of the predictive mean.
            nll: nats per row, of the mixture over draws.
            crps: :func:`proxscore.calibration.crps.crps_gaussian`.
            coverage_50, coverage_90: fraction of targets within the central intervals; 0.5 and 0.9 are right.
            sd, epistemic_share: mean standard deviation, and the share of the variance that is the draws'.
        """
        from torchmetrics import CatMetric, MeanMetric

        names = (
            "squared",
            "mae",
            "nll",
            "crps",
            "sd",
            "variance",
            "epistemic",
            *(f"coverage_{100 * q:.0f}" for q in LEVELS),
        )
        means: dict[str, Any] = {
            name: MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(device) for name in names
        }
        rows = CatMetric(nan_strategy="disable").to(device)
        if len(predictive.targets):
            columns = (predictive.mean, predictive.sd, predictive.epistemic, predictive.targets)
            mean, sd, epistemic, y = (column.double().to(device) for column in columns)
            off = (y - mean).abs()
            values: dict[str, Tensor] = {
                "squared": off.square(),
                "mae": off,
                "crps": crps_gaussian(mean, sd, y),
                "sd": sd,
            }
            values |= {
                "variance": sd.square(),
                "epistemic": epistemic,
                "nll": -predictive.log_density.double().to(device),
            }
            for level in LEVELS:
                half = math.sqrt(2) * torch.special.erfinv(torch.tensor(level, dtype=torch.float64, device=device))
                values[f"coverage_{100 * level:.0f}"] = (off <= half * sd).double()
            for name, value in values.items():
                means[name].update(value.flatten())
            rows.update(torch.stack([mean.flatten(), sd.flatten(), y.flatten()], 1))
        found = {name: float(metric.compute()) for name, metric in means.items()}
        found["rmse"] = math.sqrt(found.pop("squared"))
        found["epistemic_share"] = found.pop("epistemic") / found.pop("variance")
        gathered = torch.as_tensor(rows.compute()).reshape(-1, 3).cpu()
        return found, lambda: {"predictions": _predictions(gathered, title)}


def _predictions(rows: Tensor, title: str) -> Figure:
    """Targets against predictive means, with a bar of one standard deviation, of at most 500 rows."""
    mean, sd, y = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 500)).long()].T.numpy()
    figure = blank(5.0, 5.0)
    axes = figure.subplots()
    axes.errorbar(y, mean, sd, fmt="o", markersize=2, linewidth=0.5, alpha=0.6)
    low, high = min(y.min(), mean.min()), max(y.max(), mean.max())
    axes.plot([low, high], [low, high], color="black", linewidth=0.8)
    axes.set_xlabel("target")
    axes.set_ylabel("prediction, ± one standard deviation")
    axes.set_title(title, fontsize=9)
    return figure
