"""Methods."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from proxscore.config.section import Section


class ScheduleConfig(Section):
    """How a proximal step (the inverse of a proximal weight) moves over the run; see ``inference.schedules``."""

    kind: Literal["constant", "linear", "cosine", "exponential", "power"] = "constant"
    unit: Literal["steps", "epochs"] = "steps"
    warmup: float = Field(0, ge=0)
    length: float | None = Field(None, gt=0)  # None: the rest of the run
    end: float = Field(0.0, ge=0)
    power: float = Field(0.5, gt=0)
    multipliers: list[float] = Field([])  # of equal parts of the run: what a population has learned


class PenaltyConfig(Section):
    """Proximal weights. ``precision: null`` takes the number of steps of the run; see ``inference.penalties``."""

    kind: Literal["forward_kl", "reverse_kl", "quadratic", "none"] = "forward_kl"
    precision: float | None = Field(None, gt=0)
    precision_schedule: ScheduleConfig = ScheduleConfig()
    mean: float = Field(0.5, gt=0)  # of method.metric=posterior; the adaptive metric has method.lr
    mean_schedule: ScheduleConfig = ScheduleConfig(kind="cosine", unit="epochs", warmup=0.5)  # of the mean's step


class PriorConfig(Section):
    """Gaussian prior, by groups of parameters; see ``inference.priors``."""

    scale: Annotated[float, Field(gt=0)] | Literal["fan_in"] = 1.0  # fan_in: sqrt(2 / fan-in), tensor by tensor
    biases: Literal["informative", "flat", "point"] = "informative"
    norms: Literal["informative", "flat", "point"] = "informative"
    scales: dict[str, float] = Field({})  # glob pattern of parameter names -> scale
    # initial: the loaded weights, except the classifier head; the default where task.model has weights.
    mean: Literal["zero", "initial"] = "zero"
    select: str | list[str] = "all"  # all, last_layer, or glob patterns: which parameters are sampled


class MeanFieldConfig(Section):
    """Independent Gaussians."""

    kind: Literal["mean_field"] = "mean_field"


class FullCovarianceConfig(Section):
    """A Gaussian with full covariance, for a last layer or a small network."""

    kind: Literal["full_covariance"]


class LowRankConfig(Section):
    """A Gaussian with low-rank plus diagonal covariance; see ``inference.families.low_rank``."""

    kind: Literal["low_rank"]
    rank: int = Field(8, ge=1, le=10_000)
    spread: float = Field(0.1, gt=0)


class KroneckerConfig(Section):
    """A Kronecker-factored Gaussian for each matrix-shaped parameter."""

    kind: Literal["kronecker"]


class MixtureConfig(Section):
    """A mixture of mean-field Gaussians; see ``inference.families.mixture``, and ``posterior.stacking`` for its weights."""

    kind: Literal["mixture"]
    components: int = Field(2, ge=1, le=1000)
    spread: float = Field(1.0, gt=0)
    weights: list[float] | Literal["uniform", "stacked"] = "uniform"  # stacked: on validation data, after training


FamilyConfig = Annotated[
    MeanFieldConfig | FullCovarianceConfig | LowRankConfig | KroneckerConfig | MixtureConfig,
    Field(discriminator="kind"),
]


class SolverConfig(Section):
    """The gradient solver; see ``inference.solver``. ``optimizer`` is a name of ``torch.optim``."""

    inner_steps: int = Field(10, ge=2, le=100_000)
    optimizer: str = "Adam"
    lr: float = Field(0.01, gt=0)
    options: dict[str, Any] = Field({})


class ProximalScoreConfig(Section):
    """Proximal score matching; see ``inference.optimizer``."""

    kind: Literal["proximal_score"] = "proximal_score"
    prior: PriorConfig = PriorConfig()
    prior_warmup: float = Field(0, ge=0)  # epochs over which the prior's precision grows from zero to what it is
    penalty: PenaltyConfig = PenaltyConfig()
    family: FamilyConfig = MeanFieldConfig()
    families: dict[str, FamilyConfig] = Field(
        {}
    )  # glob pattern of parameter names -> family of these; the last match counts
    solver: SolverConfig | None = None  # null: the closed form for families that have one
    metric: Literal["adaptive", "posterior"] = "adaptive"  # of the mean's step; see inference.metric
    lr: float | None = Field(None, gt=0)  # null: 0.004 with the adaptive metric (Adam's units), 1 with the posterior's
    square_decay: float | None = Field(
        None, ge=0, lt=1
    )  # of the adaptive metric's running mean of squares; null: 0.999
    # Initial standard deviations relative to each tensor's weights; null: the largest up to 0.02 that costs little.
    initial_noise: float | None = Field(None, gt=0)
    initial_precision: float | None = Field(None, gt=0)  # in its place: of all sampled parameters, per data point
    paired: bool = False  # true: pairs m + e, m - e, two gradient evaluations each
    draws: int = Field(1, ge=1, le=10_000)  # single draws (or pairs) per step
    keep_mean: bool = True  # false: a number less per parameter, and more time for the noise
    momentum: float = Field(0.9, ge=0, lt=1)
    max_log_precision_step: float | None = Field(1.0, gt=0)
    # Of the posterior's metric, in its standard deviations (null: 0.1), of the adaptive one in lr (null: 3).
    max_mean_step: float | None = Field(None, gt=0)
    temperature: float = Field(1.0, gt=0)
    point_lr: float | None = Field(None, gt=0)  # Adam's, for parameters that are not sampled; null: lr, or 0.001
    clip_norm: float | None = Field(None, gt=0)  # 2-norm of a draw's gradient of the mean negative log-likelihood
    effective_data_size: float | None = Field(None, gt=0)  # null: the training rows; more is a cold posterior
    max_skipped_steps: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _without_effect(self) -> Self:
        """Refuse settings that the others leave without effect."""
        weight = PenaltyConfig.model_fields["mean"].default
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


class AdamWConfig(Section):
    """Point estimate by AdamW, cosine learning rate with warm-up."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


class SGDConfig(Section):
    """Point estimate (maximum a posteriori) by SGD with momentum; see ``methods.sgd``."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)  # prior precision divided by the training rows
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


class ELBOConfig(Section):
    """Mean-field variational inference by reparametrized gradients (Bayes by Backprop); see ``methods.elbo``."""

    kind: Literal["elbo"] = "elbo"
    prior: PriorConfig = PriorConfig()
    lr: float = Field(1e-3, gt=0)  # Adam's
    initial_scale: float = Field(0.01, gt=0)  # standard deviations at the start
    draws: int = Field(1, ge=1, le=10_000)  # per step
    temperature: float = Field(1.0, gt=0)  # of the KL
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


class IVONConfig(Section):
    """IVON by ivon-opt, with its authors' settings for CIFAR; see ``methods.ivon``. One worker."""

    kind: Literal["ivon"] = "ivon"
    lr: float = Field(0.2, gt=0)
    ess: float | None = Field(None, gt=0)  # effective sample size; null: the training rows
    hess_init: float = Field(0.5, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99999, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)  # prior precision divided by ess
    draws: int = Field(1, ge=1, le=10_000)  # per step
    clip_radius: float | None = Field(None, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    max_skipped_steps: int = Field(10, ge=1)


PointConfig = Annotated[AdamWConfig | SGDConfig, Field(discriminator="kind")]


class MCDropoutConfig(Section):
    """Monte Carlo dropout, of a network with dropout layers; see ``methods.mc_dropout``."""

    kind: Literal["mc_dropout"] = "mc_dropout"
    of: PointConfig = AdamWConfig()  # how the weights are trained


class SGLDConfig(Section):
    """Stochastic-gradient Langevin dynamics, cyclical as published; see ``methods.sgmcmc``."""

    kind: Literal["sgld"] = "sgld"
    prior: PriorConfig = PriorConfig()
    lr: float = Field(0.5, gt=0)  # at the start of a cycle, of the mean loss
    schedule: Literal["cyclical", "constant"] = "cyclical"
    cycles: int = Field(4, ge=1, le=1_000_000)
    exploration: float = Field(0.8, ge=0, lt=1)  # fraction of each cycle without noise and samples
    burn_in: float = Field(0, ge=0)  # epochs at the start from which no sample is kept
    samples: int = Field(12, ge=1, le=10_000)  # kept, each a copy of the weights
    temperature: float = Field(1.0, gt=0)
    max_skipped_steps: int = Field(10, ge=1)


class SGHMCConfig(SGLDConfig):
    """Stochastic-gradient Hamiltonian Monte Carlo, cyclical as published; see ``methods.sgmcmc``."""

    kind: Literal["sghmc"] = "sghmc"  # type: ignore[assignment]
    friction: float = Field(0.9, gt=0, le=1)  # one minus momentum


class SWAGConfig(Section):
    """SGD whose late iterates make a Gaussian, with its authors' settings; see ``methods.swag``."""

    kind: Literal["swag"] = "swag"
    lr: float = Field(0.05, gt=0)
    swag_lr: float = Field(0.01, gt=0)  # constant while weights are collected
    start: float = Field(0.75, ge=0, lt=1)  # fraction of the run before
    collect_every: float = Field(1, gt=0)  # epochs
    rank: int = Field(20, ge=2, le=10_000)  # deviations kept, each a copy of the weights; of one there is no variance
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    max_skipped_steps: int = Field(10, ge=1)


class LaplaceConfig(Section):
    """The Laplace approximation by laplace-torch, after training; see ``methods.laplace``. One worker."""

    kind: Literal["laplace"] = "laplace"
    of: PointConfig = AdamWConfig()  # how the weights are trained
    subset: Literal["last_layer", "all"] = "last_layer"
    structure: Literal["full", "diag"] = "full"
    prior_precision: float | None = Field(None, gt=0)  # null: that of the highest marginal likelihood


_Single = (
    ProximalScoreConfig
    | AdamWConfig
    | SGDConfig
    | ELBOConfig
    | IVONConfig
    | MCDropoutConfig
    | SGLDConfig
    | SGHMCConfig
    | SWAGConfig
    | LaplaceConfig
)
SingleConfig = Annotated[_Single, Field(discriminator="kind")]


class EnsembleConfig(Section):
    """Members trained one after another from different seeds; see ``training.ensemble``. One worker."""

    kind: Literal["ensemble"] = "ensemble"
    members: int = Field(5, ge=2, le=1000)
    of: SingleConfig = AdamWConfig()
    budget: Literal["each", "shared"] = "each"  # each member takes training.epochs, or they share them


MethodConfig = Annotated[_Single | EnsembleConfig, Field(discriminator="kind")]
