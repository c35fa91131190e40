"""Proper scores, calibration and uncertainty of predictives over classes, streamed over batches and ranks.

    metrics = ClassificationMetrics(classes=10)
    for log_probabilities, expected_entropy, targets in predictions:
        metrics.update(log_probabilities, expected_entropy, targets)
    results = metrics.compute()                       # on every rank
    figure = metrics.reliability_diagram(title="posterior")

A row is one prediction: an image, or a pixel where the classes have trailing dimensions, (N, C, H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.distributed as dist
from torch import Tensor

from proxscore.calibration.calibration_error import (
    adaptive_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
)
from proxscore.calibration.reliability import reliability_diagram
from proxscore.config import ConfigError

if TYPE_CHECKING:  # what takes seconds
    from matplotlib.figure import Figure

    from proxscore.calibration.class_sums import PerClass

# How far the probabilities of a row may be from summing to 1: more than bfloat16 rounds log-probabilities of 20,000
# classes, less than unnormalised logits are off.
_NORMALISATION_TOLERANCE = 0.05
#: Log-probabilities that are looked at together.
MOST_NUMBERS = 2**24
#: The confidence from which on a prediction counts as sure of itself.
SURE = 0.9


def negative_log_likelihood(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) per row, in nats: (N, C, ...) and long (N, ...) to float32 or float64 (N, ...) (Good, 1952).

    Nothing is clamped: a label to which the predictive gives probability zero (-inf) has an infinite score.
    """
    return -_at_least_float32(log_probabilities).gather(1, targets.unsqueeze(1)).squeeze(1)


def brier_score(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """sum_c (p_c - [c = target])^2 per row, in [0, 2]: (N, C, ...) and long (N, ...) to (N, ...) (Brier, 1950)."""
    targets = targets.unsqueeze(1)
    residual = _at_least_float32(log_probabilities).exp()
    residual.scatter_add_(1, targets, -torch.ones_like(targets, dtype=residual.dtype))
    return residual.square_().sum(dim=1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """-sum_c p_c log p_c per row, in nats, in [0, log C]: (N, C, ...) to (N, ...). Classes with p = 0 add nothing."""
    log_probabilities = _at_least_float32(log_probabilities)
    probabilities = log_probabilities.exp()
    # A finite logarithm instead of -inf: zero times it is zero, and not NaN.
    return -(probabilities * log_probabilities.clamp(min=torch.finfo(probabilities.dtype).min)).sum(dim=1)


class ClassificationMetrics:
    """Metrics of predictive distributions over ``classes`` classes, as floats under the keys of :meth:`compute`.

    Keeps one float per row (confidence and correctness), seven sums, and sums by class and bin; never the N x C
    probabilities. ``compute`` gathers over all ranks of the default process group, whose ranks may hold unequal numbers of
    rows, or none.

    Args:
        classes: number of classes C, at least 2.
        bins: number of bins of the three calibration errors and of the reliability diagram.
    """

    def __init__(self, classes: int, bins: int = 15) -> None:
        # Here: the library takes seconds, which a process that evaluates nothing spares.
        from torchmetrics import CatMetric, MeanMetric, MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        from proxscore.calibration.class_sums import ClassSums

        if classes < 2:
            raise ConfigError(f"classes is {classes}; classification needs at least 2")
        if bins < 1:
            raise ConfigError(f"bins is {bins}; a calibration error needs at least 1")
        self.classes = classes
        self.bins = bins
        # float64 sums: float32 stops counting at 2**24 rows, which is four images of 2048 x 2048 pixels.
        means = {name: MeanMetric(nan_strategy="disable").set_dtype(torch.float64) for name in _MEANS}
        accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
        # Rows are kept as +confidence where correct and -confidence where wrong: half the memory and one gather.
        rows = CatMetric(nan_strategy="disable")
        # Groups would let metrics share their state when the first batch happens to give them equal values.
        self._metrics = MetricCollection({**means, "accuracy": accuracy, "rows": rows}, compute_groups=False)
        self._sums = ClassSums(classes, bins)
        self._seen = 0
        self._gathered: Tensor | None = None
        self._gathered_sums: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move the state to ``device``: one that the process group can gather from (a CUDA device under NCCL).

        Predictions may lie on any device: only what remains of each row is copied here.
        """
        self._metrics.to(device)
        self._sums.to(device)
        return self

    def reset(self) -> None:
        """Forget all rows."""
        self._metrics.reset()
        self._sums.reset()
        self._seen = 0
        self._gathered = None
        self._gathered_sums = None

    @torch.no_grad()
    def update(self, log_probabilities: Tensor, expected_entropy: Tensor, targets: Tensor) -> None:
        """Add the rows of one batch.

        Args:
            log_probabilities: (N, C) or (N, C, ...), any floating dtype: log of the predictive probability, which is
                the mean of the probabilities over draws.
            expected_entropy: (N,) or (N, ...): mean over draws of the entropy of each draw's probabilities, in nats.
            targets: integers (N,) or (N, ...): labels 0 to C - 1.

        Raises:
            ConfigError: shapes that do not fit; a label outside 0..C-1, NaN, or probabilities that do not sum to 1. It
                names the row, counted on this rank since the last reset, and the pixel.
        """
        self._check_shapes(log_probabilities, expected_entropy, targets)
        rows = max(1, MOST_NUMBERS // max(1, log_probabilities[:1].numel()))  # each takes ten times its own memory
        columns = (column.split(rows) for column in (log_probabilities, expected_entropy, targets))
        for part in zip(*columns, strict=True):
            self._update(*part)

    def _update(self, log_probabilities: Tensor, expected_entropy: Tensor, targets: Tensor) -> None:
        targets = targets.to(log_probabilities.device, torch.long)
        self._check_rows(log_probabilities, expected_entropy, targets)
        self._seen += len(targets)
        self._gathered = None
        self._gathered_sums = None
        log_confidences, labels = _at_least_float32(log_probabilities).max(dim=1)
        confidences = log_confidences.exp().clamp(max=1.0)  # rounding may exceed 1
        self._add("accuracy", labels, targets)
        self._add("rows", torch.where(labels == targets, confidences, -confidences))
        self._add("nll", negative_log_likelihood(log_probabilities, targets))
        self._add("brier", brier_score(log_probabilities, targets))
        self._add("entropy", entropy(log_probabilities))
        self._add("expected_entropy", expected_entropy)
        by_row = log_probabilities.movedim(1, -1).flatten(0, -2)  # pixels are rows, too
        self._sums.update(_at_least_float32(by_row), targets.flatten())

    def compute(self) -> dict[str, float]:
        """Metrics of all rows of all ranks since the last reset. A collective: every rank calls it, or none.

        Returns: means over rows, in nats where they are logarithms,
            accuracy: fraction of rows whose most probable class is the label.
            nll: -log p(label); infinite if any label has probability zero.
            brier: sum over classes of (p - onehot)^2, in [0, 2].
            balanced_accuracy: mean over the classes that have rows of the fraction of their rows that are right.
            ece, mce, adaptive_ece: top-label calibration errors (:mod:`proxscore.calibration.calibration_error`).
            ece_all_classes: calibration error of all N x C probabilities, another quantity than ``ece`` and smaller
                (:mod:`proxscore.calibration.class_sums`).
            entropy: H[mean of p], the total uncertainty.
            expected_entropy: mean of H[p] over draws, the aleatoric part.
            mutual_information: their difference, the epistemic part (Houlsby et al., 2011, BALD; Depeweg et al., 2018).
                Zero for a point estimate, up to rounding (which may make it slightly negative).
            confidence: the probability of the most probable class.
            sure: fraction of rows whose confidence is 0.9 or more.
            sure_errors: fraction of all rows that are among these and wrong.

        Raises:
            ConfigError: no rank has any row.
        """
        from proxscore.calibration.class_sums import ece_all_classes

        results = self._metrics.compute()
        self._gathered = self._nonempty(results.pop("rows"))
        values = {name: float(value) for name, value in results.items()}
        self._gathered_sums = self._sums.compute()
        confidences, correct = self.confidences, self.correct
        values["ece"] = expected_calibration_error(confidences, correct, bins=self.bins)
        values["mce"] = maximum_calibration_error(confidences, correct, bins=self.bins)
        values["adaptive_ece"] = adaptive_calibration_error(confidences, correct, bins=self.bins)
        values["ece_all_classes"] = ece_all_classes(self.events)
        values["balanced_accuracy"] = self.per_class.balanced_accuracy
        values["mutual_information"] = values["entropy"] - values["expected_entropy"]
        sure = confidences >= SURE
        values["confidence"] = confidences.double().mean().item()
        values["sure"] = sure.double().mean().item()
        values["sure_errors"] = (sure & ~correct).double().mean().item()
        return {name: values[name] for name in _ORDER}

    @property
    def confidences(self) -> Tensor:
        """(N,) probability of the most probable class, of every row of every rank; errors as :meth:`compute`.

        Among several ranks :meth:`compute` comes first: it gathers, so that one rank alone may draw the figure.
        """
        return self._signed_confidences().abs()

    @property
    def correct(self) -> Tensor:
        """(N,) bool, whether the most probable class is the label, in the order of :attr:`confidences`."""
        return self._signed_confidences() > 0

    @property
    def per_class(self) -> PerClass:
        """Counts, recall, precision, NLL and calibration of each class; after :meth:`compute`."""
        from proxscore.calibration.class_sums import per_class

        return per_class(*self._class_sums())

    @property
    def events(self) -> Tensor:
        """(3, C, bins) of all N x C probabilities by class and bin: numbers, their sum, how many happened; after
        :meth:`compute`."""
        return self._class_sums()[1]

    def _class_sums(self) -> tuple[Tensor, Tensor]:
        if self._gathered_sums is None:
            raise ConfigError("sums by class are those of compute(); call it first, on every rank")
        return self._gathered_sums

    def reliability_diagram(self, *, title: str = "") -> Figure:
        """:func:`proxscore.calibration.reliability_diagram` of the rows of all ranks; needs :attr:`confidences`."""
        return reliability_diagram(self.confidences, self.correct, bins=self.bins, title=title)

    def _signed_confidences(self) -> Tensor:
        if self._gathered is None:
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                raise ConfigError("the rows lie on several ranks; call compute() on every rank before reading them")
            self._gathered = self._nonempty(self._metrics["rows"].compute())
        return self._gathered

    def _nonempty(self, rows: Tensor | list[Tensor]) -> Tensor:
        if isinstance(rows, list) or rows.numel() == 0:
            raise ConfigError("no rows to compute metrics of; call update() with at least one row on some rank")
        return rows

    def _add(self, name: str, *values: Tensor) -> None:
        metric = self._metrics[name]
        metric.update(*(value.flatten().to(metric.device) for value in values))

    def _check_shapes(self, log_probabilities: Tensor, expected_entropy: Tensor, targets: Tensor) -> None:
        shape = tuple(log_probabilities.shape)
        if len(shape) < 2 or shape[1] != self.classes:
            raise ConfigError(f"log_probabilities have shape {shape}; wanted (rows, classes={self.classes}, ...)")
        wanted = (shape[0], *shape[2:])
        for name, values in (("expected_entropy", expected_entropy), ("targets", targets)):
            if tuple(values.shape) != wanted:
                raise ConfigError(f"{name} has shape {tuple(values.shape)}; wanted {wanted}, one value per row")
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise ConfigError(f"targets are {targets.dtype}; labels are integers from 0 to {self.classes - 1}")

    def _check_rows(self, log_probabilities: Tensor, expected_entropy: Tensor, targets: Tensor) -> None:
        at = _first((targets < 0) | (targets >= self.classes))
        if at is not None:
            label = int(targets[at])
            raise ConfigError(f"targets: {self._name(at)} has label {label}; labels are 0 to {self.classes - 1}")
        totals = _at_least_float32(log_probabilities).exp().sum(dim=1)
        at = _first(~((totals - 1).abs() <= _NORMALISATION_TOLERANCE))  # NaN is not near 1 either
        if at is not None:
            total = float(totals[at])
            raise ConfigError(
                f"log_probabilities: {self._name(at)} sums to {total:g} after exp; normalise it to sum to 1"
            )
        at = _first(~torch.isfinite(expected_entropy))
        if at is not None:
            value = float(expected_entropy[at])
            raise ConfigError(f"expected_entropy: {self._name(at)} is {value:g}; an entropy is finite, from 0 to log C")

    def _name(self, at: tuple[int, ...]) -> str:
        return f"row {self._seen + at[0]}" + (f", pixel {at[1:]}," if len(at) > 1 else "")


_MEANS = ("nll", "brier", "entropy", "expected_entropy")
_ORDER = (
    "accuracy",
    "balanced_accuracy",
    "nll",
    "brier",
    "ece",
    "mce",
    "adaptive_ece",
    "ece_all_classes",
    "entropy",
    "expected_entropy",
    "mutual_information",
    "confidence",
    "sure",
    "sure_errors",
)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _first(at_fault: Tensor) -> tuple[int, ...] | None:
    """Index of the first true entry, if there is one."""
    return tuple(at_fault.nonzero()[0].tolist()) if at_fault.any() else None
