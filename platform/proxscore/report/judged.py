"""The rows of one data set under one condition: metrics that stream, and the few numbers that each row keeps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from proxscore.calibration import ClassificationMetrics, entropy
from proxscore.calibration.calibration_error import reliability_bins
from proxscore.calibration.class_sums import all_classes_bins
from proxscore.calibration.temperature import tempered
from proxscore.report.gathering import gathered, summed
from proxscore.report.scored import Scored

SMALLEST_INFORMATION = 1e-7  # nats: entropies are of single precision
#: Larger where a row looks less like the training data.
SCORES = ("maximum_probability", "entropy", "mutual_information", "energy")


def row_scores(batch: Scored) -> Tensor:
    """(B, 4) float64, in the order of ``SCORES``: log(1 - max_c p_c), H[p], H[p] - E_s H[p_s], and the energy, in nats.

    The first ranks as 1 - max_c p_c does; as the log-sum of the other classes it tells apart what rounds to a probability of 1.
    Mutual information below 1e-7 is rounding, and zero. The energy is the mean over draws of -log sum_c exp f_c(x): that of Liu
    et al., Energy-based out-of-distribution detection (arXiv 2010.03759), at temperature 1, of each draw.
    """
    logs = batch.predictive.log_probabilities.double()
    others = logs.scatter(1, logs.argmax(1, keepdim=True), -torch.inf)
    total = entropy(logs)
    mutual = total - batch.predictive.expected_entropy.double()
    mutual = torch.where(mutual < SMALLEST_INFORMATION, 0.0, mutual)
    return torch.stack([others.logsumexp(1), total, mutual, batch.energy], 1)


class Judged:
    """Sums over labelled rows.

    Args:
        classes, bins: of the metrics.
        device: that the process group can reduce on.
        temperature: another one that metrics are also taken at.
    """

    def __init__(self, classes: int, bins: int, device: torch.device, temperature: float | None = None) -> None:
        self._device, self._temperature = device, temperature
        self.metrics = ClassificationMetrics(classes, bins).to(device)
        self.tempered = ClassificationMetrics(classes, bins).to(device)
        self._draw_nll = torch.zeros(2, dtype=torch.float64)
        self._scores: list[Tensor] = []

    def add(self, batch: Scored, *, scores: bool = True) -> None:
        """Add the rows of a batch; an empty one is that of a process that has no rows left.

        Args:
            scores: keep those of each row, for :meth:`scores`.
        """
        if scores:
            self._scores.append(row_scores(batch))
        if not len(batch.rows):
            return
        predictive = batch.predictive
        self.metrics.update(predictive.log_probabilities, predictive.expected_entropy, predictive.targets)
        if self._temperature is not None:
            other = tempered(predictive, self._temperature)
            self.tempered.update(other.log_probabilities, other.expected_entropy, other.targets)
        self._draw_nll += torch.tensor([float(batch.draw_nll.sum()), float(len(batch.rows))], dtype=torch.float64)

    def results(self) -> dict[str, float]:
        """The metrics of all processes' rows, and ``draw_nll``, the mean NLL of a single draw. A collective."""
        values = self.metrics.compute()
        total, rows = summed(self._draw_nll, self._device).tolist()
        return values | {"draw_nll": total / rows, "rows": rows}

    def scores(self) -> Tensor:
        """(N, 4) scores of all processes' rows. A collective."""
        return gathered(torch.cat(self._scores), self._device)

    def ece_by_chance(self) -> float:
        """The top-label ECE that a calibrated classifier with these confidences would have by chance alone: about
        sum_b sqrt(2 n_b conf_b (1 - conf_b) / pi) / N. After :meth:`results`."""
        bins = reliability_bins(self.metrics.confidences, self.metrics.correct, bins=self.metrics.bins)
        filled = bins.counts > 0
        counts, confidence = bins.counts[filled].double(), bins.confidence[filled]
        spread = (2 * counts * confidence * (1 - confidence) / torch.pi).clamp(min=0).sqrt()
        return float(spread.sum() / counts.sum())

    def by_class(self, names: tuple[str, ...]) -> list[dict[str, object]]:
        """What each class has of its own; after :meth:`results`."""
        found = self.metrics.per_class
        columns = {
            "count": found.counts.long(),
            "recall": found.recall,
            "precision": found.precision,
            "nll": found.nll,
            "confidence": found.confidence,
            "classwise_ece": found.classwise_ece,
        }
        values = {name: column.tolist() for name, column in columns.items()}
        return [
            {"class": name} | {key: column[place] for key, column in values.items()} for place, name in enumerate(names)
        ]

    def reliability(self) -> dict[str, dict[str, list[float]]]:
        """The bins of both reliability diagrams; after :meth:`results`."""
        top = reliability_bins(self.metrics.confidences, self.metrics.correct, bins=self.metrics.bins)
        counts, frequency, confidence = all_classes_bins(self.metrics.events)
        return {
            "top_label": {
                "counts": top.counts.tolist(),
                "accuracy": top.accuracy.tolist(),
                "confidence": top.confidence.tolist(),
            },
            "all_classes": {
                "counts": counts.tolist(),
                "accuracy": frequency.tolist(),
                "confidence": confidence.tolist(),
            },
        }


def scores_of(batches: Iterable[Scored], device: torch.device) -> Tensor:
    """(N, 4) scores of the rows of all processes; labels do not matter. A collective."""
    return gathered(torch.cat([row_scores(batch) for batch in batches]), device)
