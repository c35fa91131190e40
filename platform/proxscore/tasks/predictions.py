"""What a prediction says of each row: the mean, uncertainties apart, sets or quantiles, and what could not be predicted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from proxscore.calibration import gaussian_mixture
from proxscore.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.05, 0.5, 0.95)
ROWS = 4096  # whose entropies are computed together, in double precision


@dataclass
class Prediction(ABC):
    """The predictive distribution of rows, on the CPU.

    Attributes:
        draws: of the posterior that were averaged; 0: the mean weights.
        seed: of the draws.
        errors: of rows that could not be predicted, why; their numbers are NaN.
        notes: what to know before trusting it: whether the posterior had converged, and what else was found.
        verdict: whether training found the posterior converged, still moving or diverged; none: it was not judged.
        draws_of_rows, error_of_rows: (N,), where draws were added until predictions had settled: how many of them, and the Monte
            Carlo standard error of the row's probabilities (:mod:`proxscore.posterior.settled`); else none.
    """

    draws: int
    seed: int
    errors: dict[int, str] = field(default_factory=dict, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    verdict: str | None = field(default=None, kw_only=True)
    draws_of_rows: Tensor | None = field(default=None, kw_only=True)
    error_of_rows: Tensor | None = field(default=None, kw_only=True)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def columns(self, *, all: bool = False, **options: Any) -> dict[str, Any]:
        """Named columns of a table, a value per row."""

    def to_frame(self, **options: Any) -> pd.DataFrame:
        """A pandas table, a row per row: :meth:`columns`, ``verdict`` of the posterior, and ``error`` where rows have one."""
        import pandas as pd

        columns = self.columns(**options)
        if self.draws_of_rows is not None and self.error_of_rows is not None:
            columns["draws"] = self.draws_of_rows.double().numpy()
            columns["monte_carlo_error"] = self.error_of_rows.double().numpy()
        if self.verdict is not None:
            columns["verdict"] = self.verdict
        if self.errors:
            columns["error"] = [self.errors.get(row) for row in range(len(self))]
        return pd.DataFrame(columns)

    def _told(self, what: str) -> str:
        unread = f", {len(self.errors)} of them not" if self.errors else ""
        lines = "".join(f"\n{note}" for note in self.notes)
        draws = f"{self.draws} draws"
        if self.draws_of_rows is not None and (known := self.draws_of_rows[~self.draws_of_rows.isnan()]).numel():
            draws = f"{known.min():.0f} to {known.max():.0f} draws, {known.mean():.1f} on average"
        return f"{len(self)} {what} predicted{unread}, by {draws} (seed {self.seed}){lines}"


@dataclass(repr=False)
class ClassPrediction(Prediction):
    """Which class each row is of.

    Attributes:
        mean: (N, C), probabilities p(y | x) = 1/S sum_s softmax(f(x; theta_s)).
        aleatoric: (N,), nats: the mean over draws of the entropy of one draw's probabilities.
        classes: names, C of them.
        thresholds: by coverage the least probability of a class in a prediction set, as validation data gave them.
    """

    mean: Tensor
    aleatoric: Tensor
    classes: tuple[str, ...]
    thresholds: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        return self._told("rows")

    @property
    def total(self) -> Tensor:
        """(N,), nats: the entropy of the mean."""
        parts = [torch.special.entr(part.double()).sum(1) for part in self.mean.split(ROWS)]
        return torch.cat(parts).to(self.mean)

    @property
    def epistemic(self) -> Tensor:
        """(N,), nats: total less aleatoric, the mutual information of label and weights; what more data could take away."""
        return (self.total - self.aleatoric).clamp_min(0)

    @property
    def labels(self) -> list[str | None]:
        """The most probable class of each row; none where it could not be predicted."""
        return [None if row in self.errors else self.classes[k] for row, k in enumerate(self.mean.argmax(1).tolist())]

    @property
    def confidence(self) -> Tensor:
        """(N,), the probability of the most probable class."""
        return self.mean.amax(1)

    def sets(self, coverage: float = 0.9) -> list[tuple[str, ...]]:
        """A prediction set for each row: the classes, most probable first, that are as probable as validation data ask for.

        Split conformal prediction (LAC, :mod:`proxscore.calibration.prediction_sets`): of rows like those of the validation
        split the set holds the label with the given probability, on average; not for each class, and not of rows of another
        kind. A set may be empty: no class is probable enough.

        Raises:
            ConfigError: this coverage was not calibrated.
        """
        floor = self.thresholds.get(f"{coverage:g}")
        if floor is None:
            known = (
                ", ".join(self.thresholds)
                or "none: there were too few validation rows, or it was saved by an older version"
            )
            raise ConfigError(
                f"coverage {coverage:g} was not calibrated when the posterior was saved; known are {known}"
            )
        found = []
        for row in self.mean:  # only what is in a set becomes Python's: of many classes that is little
            held = (row >= floor - 1e-9).nonzero().flatten()
            order = row[held].sort(descending=True, stable=True).indices
            found.append(tuple(self.classes[k] for k in held[order].tolist()))
        return found

    def columns(self, *, all: bool = False, coverage: float | None = 0.9, **options: Any) -> dict[str, Any]:
        """``label, confidence, total, aleatoric, epistemic, set``; with ``all`` also ``p_CLASS`` of each class.

        Args:
            coverage: of the sets; none, or one that was not calibrated: without them.
        """
        found: dict[str, Any] = {"label": self.labels}
        for name in ("confidence", "total", "aleatoric", "epistemic"):
            found[name] = getattr(self, name).double().numpy()
        if coverage is not None and f"{coverage:g}" in self.thresholds:
            sets = enumerate(self.sets(coverage))
            found["set"] = [None if row in self.errors else list(names) for row, names in sets]
        if all:
            found |= {f"p_{name}": self.mean[:, k].double().numpy() for k, name in enumerate(self.classes)}
        return found


@dataclass(repr=False)
class LabelsPrediction(Prediction):
    """Which of several labels hold of each row, any number of them.

    Attributes:
        mean: (N, C), the probability of each label by itself.
        aleatoric: (N,), nats: the mean over draws of the entropies of one draw's probabilities, summed over labels.
        classes: names of the labels.
    """

    mean: Tensor
    aleatoric: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        return self._told("rows")

    @property
    def total(self) -> Tensor:
        """(N,), nats: entropies of the mean probabilities, summed over labels."""
        p = self.mean.double()
        return (torch.special.entr(p) + torch.special.entr(1 - p)).sum(1).to(self.mean)

    @property
    def epistemic(self) -> Tensor:
        """(N,), nats: total less aleatoric."""
        return (self.total - self.aleatoric).clamp_min(0)

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """The labels that are more probable than not."""
        return [tuple(self.classes[k] for k, p in enumerate(row) if p >= 0.5) for row in self.mean.tolist()]

    def columns(self, *, all: bool = False, **options: Any) -> dict[str, Any]:
        """``labels, total, aleatoric, epistemic``; with ``all`` also ``p_LABEL`` of each label."""
        labels = enumerate(self.labels)
        found: dict[str, Any] = {"labels": [None if row in self.errors else list(names) for row, names in labels]}
        for name in ("total", "aleatoric", "epistemic"):
            found[name] = getattr(self, name).double().numpy()
        if all:
            found |= {f"p_{name}": self.mean[:, k].double().numpy() for k, name in enumerate(self.classes)}
        return found


@dataclass(repr=False)
class ValuesPrediction(Prediction):
    """Numbers: a mixture of Gaussians over draws, for each of D targets of each row.

    Attributes:
        means, noises: (S, N, D), mean and standard deviation of the noise under each draw, in units of the targets.
        classes: what the numbers are.
    """

    means: Tensor
    noises: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.means.shape[1]

    def __repr__(self) -> str:
        return self._told("rows")

    @property
    def mean(self) -> Tensor:
        """(N, D), in units of the targets."""
        return self.means.mean(0)

    @property
    def aleatoric(self) -> Tensor:
        """(N, D), variance of the noise, averaged over draws; units squared."""
        return self.noises.square().mean(0)

    @property
    def epistemic(self) -> Tensor:
        """(N, D), variance over draws of the mean; units squared."""
        return self.means.var(0, correction=0)

    @property
    def total(self) -> Tensor:
        """(N, D), variance of noise and weights together; units squared."""
        return self.aleatoric + self.epistemic

    def quantiles(self, probabilities: Sequence[float] = QUANTILES) -> Tensor:
        """(Q, N, D), exact, of the mixture."""
        return gaussian_mixture.quantiles(self.means, self.noises, probabilities)

    def columns(self, *, all: bool = False, quantiles: Sequence[float] = QUANTILES, **options: Any) -> dict[str, Any]:
        """Of one target ``mean, sd, aleatoric_sd, epistemic_sd, q0.05, ...``; of several with its name behind, ``mean_WIDTH``."""
        found: dict[str, Any] = {}
        exact = self.quantiles(quantiles)
        for d, name in enumerate(self.classes):
            end = "" if len(self.classes) == 1 else f"_{name}"
            found[f"mean{end}"] = self.mean[:, d].double().numpy()
            for key, variance in (
                ("sd", self.total),
                ("aleatoric_sd", self.aleatoric),
                ("epistemic_sd", self.epistemic),
            ):
                found[f"{key}{end}"] = variance[:, d].double().sqrt().numpy()
            found |= {f"q{q:g}{end}": exact[k, :, d].numpy() for k, q in enumerate(quantiles)}
        return found


def with_gaps(rows: Tensor, kept: Sequence[int], count: int) -> Tensor:
    """Rows (K, ...) at their places among ``count``; NaN elsewhere."""
    if len(kept) == count:
        return rows
    whole = torch.full((count, *rows.shape[1:]), math.nan, dtype=rows.dtype)
    whole[list(kept)] = rows
    return whole
