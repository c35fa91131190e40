"""What training asks of a task; a task's section builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from proxscore.config import Config
from proxscore.posterior import Posterior
from proxscore.posterior.calls import Batches

if TYPE_CHECKING:
    from proxscore.calibration.comparison import Curve


class Likelihood(Protocol):
    """Also an ``nn.Module``."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats: (N,) of outputs (N, ...) and targets (N, ...)."""


class Predictive(Protocol):
    """A predictive distribution for the rows of a split."""

    targets: Tensor

    @property
    def log_density(self) -> Tensor:
        """Log predictive density (or probability) of each row's target, (N,), in nats."""


class Task(Protocol):
    """Everything about a kind of data and network that training, evaluation and tracking need.

    Attributes:
        config: its section of the configuration.
        data: ``train``, ``validation`` and ``test`` data sets: ``len`` and ``__getitems__``, which stacks rows.
        likelihood: of targets given the network's outputs.
        headline: metrics that are shown first, the first of them in lines of progress.
        columns: heading, metric and digits of a comparison's table.
        objectives: metrics that a search may optimise, and whether more of each is better; the first is the default.
        summary: of the data, in a line.
    """

    config: Any
    data: Any
    likelihood: Any
    headline: tuple[str, ...]
    columns: Sequence[tuple[str, str, int]]
    objectives: Mapping[str, bool]

    @property
    def summary(self) -> str: ...

    def check(self, config: Config) -> None:
        """Refuse settings of a run that do not serve the task, by a ``ConfigError``."""

    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """The network; on the meta device without numbers."""

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch's shape and type."""

    def describe(self) -> dict[str, Any]:
        """What to record of the data."""

    def predict(
        self,
        module: nn.Module,
        batches: Batches,
        posterior: Posterior | None,
        *,
        draws: int,
        seed: int,
        refresh: Batches | None,
        autocast: torch.dtype | None,
    ) -> Any:
        """The :class:`Predictive` of a module's posterior; see :func:`proxscore.posterior.predict`."""

    def judge(
        self, predictive: Any, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Callable[[], dict[str, Figure]]]:
        """Metrics of a predictive over all ranks' rows, and what draws figures, by name, on any of them."""

    def shifted(self, name: str) -> tuple[Any, bool]:
        """The test split under a shift of ``evaluation.shifts``, and whether its targets still hold."""

    def compared(self, predictive: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Of a predictive in a comparison (in one process): more metrics, and what :meth:`comparison_figure` needs of it."""

    def floors(self) -> dict[str, Any]:
        """Predictives for the test split by name, of what needs no training and any method must beat."""

    def comparison_figure(self, curves: Sequence[Curve], bins: int) -> Figure:
        """All methods of a comparison in one figure."""
