"""The settings of penalties: the sections of a configuration, apart from what they build, which needs torch alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from proxscore.config.registry import Component
from proxscore.inference.penalties.base import Penalty
from proxscore.inference.penalties.forward_kl import ForwardKL
from proxscore.inference.penalties.no_penalty import NoPenalty
from proxscore.inference.penalties.quadratic import Quadratic
from proxscore.inference.penalties.reverse_kl import ReverseKL
from proxscore.inference.sections import ScheduleConfig


class PenaltySection(Component):
    """Proximal weights and their schedules. ``precision: null`` is the number of steps of the run."""

    precision: float | None = Field(
        None, gt=0
    )  # proximal weight of the precision; null: the number of steps of the run
    precision_schedule: ScheduleConfig = ScheduleConfig()
    mean: float = Field(0.5, gt=0)  # of method.metric=posterior; the adaptive metric has method.lr
    mean_schedule: ScheduleConfig = ScheduleConfig(kind="cosine", unit="epochs", warmup=0.5)  # of the mean's step

    builds: ClassVar[Any]

    def build(self, total_steps: int, steps_per_epoch: int) -> Penalty:
        """The penalty, its schedules counted in the steps of a run of that length."""
        penalty: Penalty = self.builds(
            precision=self.precision or float(total_steps),
            mean=self.mean,
            precision_schedule=self.precision_schedule.build(),
            mean_schedule=self.mean_schedule.build(),
        )
        return penalty.resolve(total_steps, steps_per_epoch)


class ForwardKLConfig(PenaltySection):
    """The forward Kullback-Leibler penalty."""

    kind: Literal["forward_kl"] = "forward_kl"

    builds: ClassVar[type[Penalty]] = ForwardKL


class ReverseKLConfig(PenaltySection):
    """The reverse Kullback-Leibler penalty."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    builds: ClassVar[type[Penalty]] = ReverseKL


class QuadraticConfig(PenaltySection):
    """The quadratic penalty."""

    kind: Literal["quadratic"] = "quadratic"

    builds: ClassVar[type[Penalty]] = Quadratic


class NoPenaltyConfig(PenaltySection):
    """The absence of a penalty: score matching alone."""

    kind: Literal["none"] = "none"

    builds: ClassVar[type[Penalty]] = NoPenalty
