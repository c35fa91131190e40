"""Calibration of all class probabilities, and what each class has of its own, as sums over rows and ranks.

Each of the N x C probabilities p_ic is a prediction of an event: row i is of class c. Events fall into B bins of equal width
by p_ic; n_cb of class c fall into bin b, where their mean probability is conf_cb and the fraction of them that happened
acc_cb. Without the index c, events of all classes share the bins.

    ece_all_classes  = sum_b n_b / (N C) |acc_b - conf_b|
    classwise_ece_c  = sum_b n_cb / N |acc_cb - conf_cb|

The first is what BayesDLL (Kim and Hospedales, arXiv 2309.12928) and the papers around it report as ECE: most of its events
are improbable classes that indeed did not happen, so it is often about C / 2 times smaller than the top-label ECE of
:mod:`proxscore.calibration.calibration_error`. One must not be compared with the other. The second is that of Kull et
al., Beyond temperature scaling (arXiv 1910.12656), whose mean over classes is the static calibration error of Nixon et al.
(arXiv 1904.01685).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

_EVENTS = 2**22  # that are binned at a time: 32 MB of float64
_BELOW_ONE = 1.0 - 2.0**-53  # a probability of exactly 1 belongs to the last bin


@dataclass(frozen=True)
class PerClass:
    """What the rows of each of C classes have in common, float64 (C,); NaN where a class has no rows (or no answers).

    Attributes:
        counts: rows of the class.
        recall: fraction of its rows whose most probable class it is.
        precision: fraction of the rows with this answer that are of the class.
        nll: mean of -log p(label) over its rows, in nats.
        confidence: mean probability of the most probable class (whichever that is) over its rows.
        classwise_ece: calibration error of p_c over all rows; see the module.
    """

    counts: Tensor
    recall: Tensor
    precision: Tensor
    nll: Tensor
    confidence: Tensor
    classwise_ece: Tensor

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have rows; as of scikit-learn."""
        return float(self.recall[self.counts > 0].mean())


class ClassSums(Metric):
    """Sums of rows by class, and of events by class and bin: 5 C + 3 C B numbers, whatever the number of rows.

    Args:
        classes: C.
        bins: B.
    """

    full_state_update = False
    rows: Tensor
    events: Tensor

    def __init__(self, classes: int, bins: int) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.add_state("rows", torch.zeros(5, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("events", torch.zeros(3, classes * bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_probabilities: Tensor, targets: Tensor) -> None:
        """Add rows: (N, C) log-probabilities and labels (N,)."""
        log_confidences, answers = log_probabilities.max(1)
        own = log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
        right = (answers == targets).double()
        columns = [
            self._by_class(targets, torch.ones_like(right)),
            self._by_class(targets, right),
            self._by_class(answers, torch.ones_like(right)),
            self._by_class(targets, -own.double()),
            self._by_class(targets, log_confidences.double().exp()),
        ]
        self.rows += torch.stack(columns).to(self.rows.device)
        step = max(_EVENTS // self.classes, 1)
        for part, labels in zip(log_probabilities.split(step), targets.split(step), strict=True):
            self.events += self._events(part, labels).to(self.events.device)

    def _by_class(self, index: Tensor, values: Tensor) -> Tensor:
        return torch.bincount(index, values, minlength=self.classes)

    def _events(self, log_probabilities: Tensor, targets: Tensor) -> Tensor:
        probabilities = log_probabilities.double().exp().clamp(max=1)  # rounding may exceed 1
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64, device=probabilities.device)
        index = torch.bucketize(probabilities.clamp(max=_BELOW_ONE), edges, right=True) - 1
        index += self.bins * torch.arange(self.classes, device=index.device)
        happened = index.gather(1, targets.unsqueeze(1)).squeeze(1)
        size = self.classes * self.bins
        return torch.stack(
            [
                torch.bincount(index.flatten(), minlength=size).double(),
                torch.bincount(index.flatten(), probabilities.flatten(), minlength=size),
                torch.bincount(happened, minlength=size).double(),
            ]
        )

    def compute(self) -> tuple[Tensor, Tensor]:
        """The sums of all ranks: rows (5, C), events (3, C, B)."""
        return self.rows, self.events.view(3, self.classes, self.bins)


def ece_all_classes(events: Tensor) -> float:
    """ECE over all class probabilities, in [0, 1], of events (3, C, B): numbers, summed probabilities, happened."""
    counts, confidence, happened = events.sum(1)
    return float((happened - confidence).abs().sum() / counts.sum())


def all_classes_bins(events: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Events, frequency and mean probability (B,) of each bin over all classes; NaN without events."""
    counts, confidence, happened = events.sum(1)
    return counts, happened / counts, confidence / counts


def per_class(rows: Tensor, events: Tensor) -> PerClass:
    """What :meth:`ClassSums.compute` gave, by class."""
    counts, right, answers, nll, confidence = rows
    gaps = (events[2] - events[1]).abs().sum(1) / counts.sum()
    return PerClass(counts, right / counts, right / answers, nll / counts, confidence / counts, gaps)
