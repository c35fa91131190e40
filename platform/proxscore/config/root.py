"""Everything that one training job needs."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from proxscore.config.components import METHODS, TASKS, MethodSection, TaskSection
from proxscore.config.cost import CostConfig
from proxscore.config.section import Section
from proxscore.config.training import MAX_SEED, EvaluationConfig, TrackingConfig, TrainingConfig


class Config(Section):
    """Everything that one training job needs."""

    # Null: a new one; a known one resumes.
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    seed: int = Field(0, ge=0, le=MAX_SEED)  # of initial weights, of the order of rows, and of draws
    task: Annotated[TaskSection, TASKS] = Field(default_factory=TASKS.make)
    method: Annotated[MethodSection, METHODS] = Field(default_factory=METHODS.make)
    # Trained too, with the same number of gradient evaluations.
    baseline: Annotated[MethodSection, METHODS.only("adamw")] | None = None
    training: TrainingConfig = Field(default_factory=TrainingConfig)  # the environment has a part in it
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    cost: CostConfig = CostConfig()

    @model_validator(mode="after")
    def _by_task(self) -> Self:
        if self.training.early_stopping is None:
            self.__dict__["training"] = self.training.model_copy(update={"early_stopping": self.task.early_stopping})
        if self.task.starts_from_weights:
            self.__dict__["method"] = self.method.about_initial_weights()
        return self
