"""Proximal score matching, from its configuration section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from proxscore.config import ConfigError, ProximalScoreConfig, ScheduleConfig
from proxscore.inference import ForwardKL, Prior, ProximalScore, Schedule
from proxscore.inference.priors import canonical

if TYPE_CHECKING:
    from proxscore.methods import Horizon

# Fewer data points make a posterior so wide that its first draws destroy a network: small data get a colder posterior.
SMALLEST_DATA_SIZE = 100_000


def build(config: ProximalScoreConfig, module: nn.Module, horizon: Horizon, seed: int) -> ProximalScore:
    """The optimizer, with schedules and the default precision weight filled in from the length of the run.

    Raises:
        ConfigError: a setting that the method refuses; names it.
    """
    penalty = config.penalty
    try:
        return ProximalScore(
            module.named_parameters(),
            config.effective_data_size or max(horizon.data_size, SMALLEST_DATA_SIZE),
            prior=_prior(config, module),
            penalty=ForwardKL(
                precision=penalty.precision or float(horizon.total_steps),
                mean=penalty.mean,
                precision_schedule=_schedule(penalty.precision_schedule),
                mean_schedule=_schedule(penalty.mean_schedule),
            ).resolve(horizon.total_steps, horizon.steps_per_epoch),
            initial_precision=config.initial_precision,
            paired=config.paired,
            draws=config.draws,
            momentum=config.momentum,
            max_log_precision_step=config.max_log_precision_step,
            max_mean_step=config.max_mean_step,
            temperature=config.temperature,
            point_lr=config.point_lr,
            max_skipped_steps=config.max_skipped_steps,
            seed=seed,
        )
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error


def _schedule(config: ScheduleConfig) -> Schedule:
    return Schedule(**config.model_dump())


def _prior(config: ProximalScoreConfig, module: nn.Module) -> Prior:
    settings = config.prior.model_dump(exclude={"mean"})
    mean: dict[str, Tensor] = {}
    if config.prior.mean == "initial":
        trained = [(canonical(name), p.detach().clone()) for name, p in module.named_parameters() if p.requires_grad]
        head = trained[-1][0].rpartition(".")[0]  # the classifier is new: its prior mean stays zero
        mean = {name: value for name, value in trained if name.rpartition(".")[0] != head}
    return Prior(**settings, mean=mean)
