"""Everything that one training job needs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from proxscore.config.forecasting import ForecastingConfig
from proxscore.config.methods import AdamWConfig, MethodConfig, ProximalScoreConfig
from proxscore.config.section import Section
from proxscore.config.training import MAX_SEED, EvaluationConfig, TrackingConfig, TrainingConfig
from proxscore.config.vision import VisionConfig

TaskConfig = Annotated[VisionConfig | ForecastingConfig, Field(discriminator="kind")]


class Config(Section):
    """Everything that one training job needs."""

    # Null: a new one; a known one resumes.
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    task: TaskConfig = VisionConfig()
    method: MethodConfig = ProximalScoreConfig()
    baseline: AdamWConfig | None = None  # trained too, with the same number of gradient evaluations
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
