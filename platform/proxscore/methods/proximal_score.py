"""Proximal score matching, from its configuration section."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from proxscore.config import ConfigError, PenaltyConfig, ProximalScoreConfig, ScheduleConfig, Section, SolverConfig
from proxscore.inference import GradientSolver, Prior, ProximalScore, Schedule
from proxscore.inference.families import FAMILIES, Family
from proxscore.inference.initial import INITIAL_NOISE, bearable_noise
from proxscore.inference.penalties import PENALTIES, Penalty
from proxscore.methods.priors import prior_of

if TYPE_CHECKING:
    from proxscore.methods import Horizon


def build(
    config: ProximalScoreConfig,
    module: nn.Module,
    horizon: Horizon,
    seed: int,
    losses: Callable[[], Iterable[Tensor]],
    draw_mesh: DeviceMesh | None = None,
) -> ProximalScore:
    """The optimizer, with schedules and the default precision weight filled in from the length of the run.

    Raises:
        ConfigError: a setting that the method refuses; names it.
    """
    try:
        return ProximalScore(
            module.named_parameters(),
            data_size(config, horizon.data_size),
            prior=prior(config, module),
            prior_schedule=_prior_schedule(config.prior_warmup, horizon),
            penalty=penalty_of(config.penalty, horizon),
            family=_family(config.family),
            families={pattern: _family(family) for pattern, family in config.families.items()},
            solver=None if config.solver is None else _solver(config.solver),
            metric=config.metric,
            lr=config.lr,
            square_decay=config.square_decay,
            initial_noise=_initial_noise(config, module, losses, seed),
            initial_precision=config.initial_precision,
            paired=config.paired,
            draws=config.draws,
            draw_mesh=draw_mesh,
            keep_mean=config.keep_mean,
            momentum=config.momentum,
            max_log_precision_step=config.max_log_precision_step,
            max_mean_step=config.max_mean_step,
            temperature=config.temperature,
            point_lr=config.point_lr,
            clip_norm=config.clip_norm,
            max_skipped_steps=config.max_skipped_steps,
            seed=seed,
        )
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error


def _initial_noise(
    config: ProximalScoreConfig, module: nn.Module, losses: Callable[[], Iterable[Tensor]], seed: int
) -> float | None:
    if config.initial_noise is not None or config.initial_precision is not None:
        return config.initial_noise
    return bearable_noise(module, losses, INITIAL_NOISE, seed)


def _prior_schedule(epochs: float, horizon: Horizon) -> Schedule:
    steps, total = epochs * horizon.steps_per_epoch, horizon.total_steps
    if steps >= total:
        raise ValueError(
            f"prior_warmup is {epochs:g} epochs, {steps:g} steps of a run of {total}: the prior would never count in full; "
            f"use less than {total / horizon.steps_per_epoch:g}"
        )
    return Schedule("constant", warmup=steps)


def penalty_of(config: PenaltyConfig, horizon: Horizon) -> Penalty:
    """The penalty of the section, its schedules counted in the steps of a run."""
    penalty = PENALTIES[config.kind](
        precision=config.precision or float(horizon.total_steps),
        mean=config.mean,
        precision_schedule=_schedule(config.precision_schedule),
        mean_schedule=_schedule(config.mean_schedule),
    )
    return penalty.resolve(horizon.total_steps, horizon.steps_per_epoch)


def _family(config: Section) -> Family:
    settings = config.model_dump()
    return FAMILIES[settings.pop("kind")](**settings)


def _solver(config: SolverConfig) -> GradientSolver:
    optimizer: Any = getattr(torch.optim, config.optimizer, None)
    known = isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)
    if not known:
        names = [name for name, value in vars(torch.optim).items() if isinstance(value, type)]
        near = difflib.get_close_matches(config.optimizer, names, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else "for example 'Adam'"
        raise ValueError(f"solver.optimizer is {config.optimizer!r}, no optimizer of torch.optim; {hint}")
    solver = GradientSolver(config.inner_steps, optimizer, config.lr, config.options)
    solver.build([torch.zeros(1)])
    return solver


def _schedule(config: ScheduleConfig) -> Schedule:
    settings = config.model_dump()
    return Schedule(**settings | {"multipliers": tuple(settings["multipliers"])})


def data_size(config: ProximalScoreConfig, rows: int) -> float:
    """Data points that the posterior stands for, of so many training rows."""
    return config.effective_data_size or float(rows)


def prior(config: ProximalScoreConfig, module: nn.Module) -> Prior:
    """The prior of the section; see :func:`proxscore.methods.priors.prior_of`."""
    return prior_of(config.prior, module)
