"""Proximal score matching, from its configuration section."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from proxscore.config import FAMILIES, PENALTIES, Built, ConfigError, MethodSection, around
from proxscore.inference import ProximalScore, Schedule, noise
from proxscore.inference.initial import INITIAL_NOISE, bearable_noise
from proxscore.inference.kernels import WORTH_OF_A_RUN
from proxscore.inference.metric import LR
from proxscore.inference.penalties.sections import PenaltySection
from proxscore.inference.sections import SolverConfig
from proxscore.methods.method import FIRST_BATCHES, Method, RunLength, Setup
from proxscore.methods.priors import PriorConfig, prior_of
from proxscore.methods.rates import LayerwiseRates
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.diagnostics import Losses, verdict


class ProximalScoreConfig(LayerwiseRates):
    """Proximal score matching; see :class:`proxscore.inference.ProximalScore`."""

    kind: Literal["proximal_score"] = "proximal_score"
    prior: PriorConfig = PriorConfig()
    prior_warmup: float = Field(0, ge=0)  # epochs over which the prior's precision grows from zero to what it is
    penalty: Annotated[PenaltySection, PENALTIES] = Field(default_factory=PENALTIES.make)
    family: Annotated[Built, FAMILIES] = Field(default_factory=FAMILIES.make)
    # Glob pattern of parameter names -> family of these; the last match counts.
    families: dict[str, Annotated[Built, FAMILIES]] = Field({})
    solver: SolverConfig | None = None  # null: the closed form for families that have one
    metric: Literal["adaptive", "posterior"] = "adaptive"  # of the mean's step; see inference.metric
    lr: float | None = Field(None, gt=0)  # null: 0.004 with the adaptive metric (Adam's units), 1 with the posterior's
    # Of the adaptive metric's running mean of squares; null: 0.999.
    square_decay: float | None = Field(None, ge=0, lt=1)
    # Initial standard deviations relative to each tensor's weights; null: the largest up to 0.02 that costs little.
    initial_noise: float | None = Field(None, gt=0)
    initial_precision: float | None = Field(None, gt=0)  # in its place: of all sampled parameters, per data point
    paired: bool = False  # true: pairs m + e, m - e, two gradient evaluations each
    draws: int = Field(1, ge=1, le=10_000)  # single draws (or pairs) per step
    keep_mean: bool = True  # false: a number less per parameter, and more time for the noise
    # Whether passes over large weights are compiled; null: where the run is long enough for it to pay, and a compiler at hand.
    fused: bool | None = None
    momentum: float = Field(0.9, ge=0, lt=1)  # of the score, over steps
    max_log_precision_step: float | None = Field(1.0, gt=0)  # largest change of a log-precision in a step; null: any
    # Of the posterior's metric, in its standard deviations (null: 0.1), of the adaptive one in lr (null: 3).
    max_mean_step: float | None = Field(None, gt=0)
    temperature: float = Field(1.0, gt=0)  # of the posterior; below one, it is colder than the data say
    point_lr: float | None = Field(None, gt=0)  # Adam's, for parameters that are not sampled; null: lr, or 0.001
    clip_norm: float | None = Field(None, gt=0)  # 2-norm of a draw's gradient of the mean negative log-likelihood
    effective_data_size: float | None = Field(None, gt=0)  # null: the training rows; more is a cold posterior
    # Steps in a row with gradients that are not finite, after which the run ends as diverged.
    max_skipped_steps: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _without_effect(self) -> Self:
        """Refuse settings that the others leave without effect."""
        weight = PenaltySection.model_fields["mean"].default
        if self.metric == "adaptive" and self.penalty.mean != weight:
            raise ValueError(
                f"penalty.mean is {self.penalty.mean:g}, the weight of metric=posterior, and metric is adaptive, whose step is "
                f"lr: set lr, or metric=posterior, or leave penalty.mean at {weight:g}"
            )
        if self.metric == "posterior" and self.square_decay is not None:
            raise ValueError(
                f"square_decay is {self.square_decay:g}, of metric=adaptive, and metric is posterior: leave it out"
            )
        if self.initial_noise is not None and self.initial_precision is not None:
            raise ValueError(
                f"initial_noise is {self.initial_noise:g} and initial_precision is {self.initial_precision:g}: both say how "
                "wide the posterior is at the start; set one of them to null"
            )
        return self

    draw_groups: ClassVar[bool] = True
    proximal: ClassVar[bool] = True

    def evaluations_per_step(self) -> int:
        return self.draws * (2 if self.paired else 1)

    def evaluations_beside(self, steps_per_epoch: int) -> int:
        return min(FIRST_BATCHES, steps_per_epoch) if self._measures_noise else 0

    @property
    def _measures_noise(self) -> bool:
        return self.initial_noise is None and self.initial_precision is None

    def without_measuring(self) -> MethodSection:
        return self.model_copy(update={"initial_noise": INITIAL_NOISE}) if self._measures_noise else self

    def points(self, rows: int) -> float:
        """Data points that the posterior stands for, of so many training rows."""
        return self.effective_data_size or float(rows)

    def default_space(self, total_steps: int) -> dict[str, dict[str, Any]]:
        """Everything that is worth a search."""
        kind = "penalty.mean_schedule.kind"
        space: dict[str, dict[str, Any]] = {
            "penalty.precision": around(self.penalty.precision or float(total_steps), 5),
            kind: {"choice": ["constant", "linear", "cosine", "power"]},
            "penalty.mean_schedule.warmup": {"uniform": [0.0, 1.0]},
            "penalty.mean_schedule.end": {"uniform": [0.0, 0.2], "when": {kind: ["linear", "cosine"]}},
            "penalty.mean_schedule.power": {"uniform": [0.25, 1.0], "when": {kind: "power"}},
            "momentum": {"choice": [0.8, 0.9, 0.95]},
            "temperature": around(self.temperature, 10),
            "paired": {"choice": [True, False]},
            "draws": {"randint": [1, 2]},
        }
        if not isinstance(self.prior.scale, str):
            space["prior.scale"] = around(self.prior.scale, 5)
        if self.metric == "adaptive":
            space["lr"] = around(self.lr or LR, 5)
        else:
            space["penalty.mean"] = around(self.penalty.mean, 5)
            space["max_mean_step"] = around(self.max_mean_step or 0.1, 5)
        if self.initial_precision is None:
            space["initial_noise"] = around(self.initial_noise or INITIAL_NOISE, 4)
        else:
            space["initial_precision"] = around(self.initial_precision, 10)
        return space

    def remedy(self, section: str) -> str:
        tighter = f"a larger {section}.initial_precision"
        if self.initial_precision is None:
            tighter = f"a smaller {section}.initial_noise"
        if self.metric == "adaptive":
            return f"use a smaller {section}.lr (now {self.lr or LR:g}), or {tighter}, and look for bad inputs"
        bound = "" if self.max_mean_step is None else f" (now {self.max_mean_step:g})"
        return (
            f"use a smaller {section}.max_mean_step{bound}, or a larger {section}.penalty.mean (now "
            f"{self.penalty.mean:g}), or {tighter}, and look for bad inputs"
        )

    def build(self, setup: Setup) -> ProximalScoreMethod:
        """The optimizer, with schedules and the default precision weight filled in from the length of the run.

        Raises:
            ConfigError: a setting that the method refuses; names it.
        """
        run = setup.run
        start = self.initial_noise
        try:
            if self._measures_noise:
                start = bearable_noise(setup.module, setup.losses, INITIAL_NOISE, setup.seed)
            return ProximalScoreMethod(
                self.rated(setup.module, self.lr or (LR if self.metric == "adaptive" else 1.0)),
                self.points(run.data_size),
                prior=prior_of(self.prior, setup.module),
                prior_schedule=self._prior_schedule(run),
                penalty=self.penalty.build(run.total_steps, run.steps_per_epoch),
                family=self.family.build(),
                families={pattern: family.build() for pattern, family in self.families.items()},
                solver=None if self.solver is None else self.solver.build(),
                metric=self.metric,
                lr=self.lr,
                square_decay=self.square_decay,
                initial_noise=start,
                initial_precision=self.initial_precision,
                paired=self.paired,
                draws=self.draws,
                draw_mesh=setup.draw_mesh,
                keep_mean=self.keep_mean,
                momentum=self.momentum,
                max_log_precision_step=self.max_log_precision_step,
                max_mean_step=self.max_mean_step,
                temperature=self.temperature,
                point_lr=self.point_lr,
                clip_norm=self.clip_norm,
                max_skipped_steps=self.max_skipped_steps,
                seed=setup.seed,
                fused=self._pays(setup) if self.fused is None else self.fused,
            )
        except ValueError as error:
            raise ConfigError(f"method: {error}") from error

    def _pays(self, setup: Setup) -> bool:
        numbers = sum(noise.local(p).numel() for p in setup.module.parameters() if p.requires_grad)
        return numbers * setup.run.total_steps >= WORTH_OF_A_RUN

    def _prior_schedule(self, run: RunLength) -> Schedule:
        steps, total = self.prior_warmup * run.steps_per_epoch, run.total_steps
        if steps >= total:
            raise ValueError(
                f"prior_warmup is {self.prior_warmup:g} epochs, {steps:g} steps of a run of {total}: the prior would never "
                f"count in full; use less than {total / run.steps_per_epoch:g}"
            )
        return Schedule("constant", warmup=steps)


class ProximalScoreMethod(ProximalScore, Method):  # type: ignore[override]
    """The optimizer with what the training loop asks of a method."""

    has_verdict = True

    def verdict(self, losses: Losses | None, rows: int) -> Verdict:
        """Whether the posterior converged; see :func:`proxscore.posterior.diagnostics.verdict`."""
        return verdict(self, losses=losses, rows=rows)
