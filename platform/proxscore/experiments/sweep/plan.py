"""What a sweep will do, and everything that is refused before its first trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.experiments.sweep import space as spaces
from proxscore.experiments.sweep.defaults import default_space
from proxscore.experiments.sweep.settings import TuneConfig
from proxscore.experiments.sweep.space import Space
from proxscore.methods import Setup, build_method, check_running_statistics
from proxscore.tasks import Task
from proxscore.tracking.runs import check_server
from proxscore.training import launch
from proxscore.training.data.norm_rows import check_rows
from proxscore.training.loop.run_length import run_length
from proxscore.training.preflight import checks
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.sharding import meshes

MATTERS = ("task.", "method.", "evaluation.", "training.batch_size", "training.precision", "training.epochs", "seed")


@dataclass(frozen=True)
class Plan:
    """A sweep that may begin.

    Attributes:
        config: of every trial, but for what is searched.
        preflight: the task, and what was counted of its network.
        space: domains by dotted key.
        objectives: validation metrics, and whether more of each is better; the first decides.
        scheduler: that stops trials early.
        steps: of a run as it is given.
        folder: of the sweep; ``trials_folder`` of its runs.
    """

    config: Config
    tune: TuneConfig
    preflight: Preflight
    space: Space
    objectives: Mapping[str, bool]
    scheduler: Literal["asha", "none"]
    steps: int
    folder: str

    @property
    def task(self) -> Task:
        return self.preflight.task

    @property
    def trials_folder(self) -> str:
        return f"{self.folder}/trials"

    def settings(self) -> dict[str, Any]:
        """The settings that the trials depend on; a sweep goes on with the same alone."""
        flat = {key: value for key, value in configuration.flatten(self.config).items() if key.startswith(MATTERS)}
        space = {f"tune.space.{key}": domain.model_dump() for key, domain in self.space.items()}
        same: dict[str, Any] = {"tune.search": self.tune.search, "tune.objectives": list(self.objectives)}
        if self.tune.search == "population":
            same["tune.population"] = self.tune.population.model_dump()
        return flat | space | same


def plan(config: Config, tune: TuneConfig) -> Plan:
    """The plan of a training configuration and its section ``tune``.

    Raises:
        ConfigError: a setting, file or row at fault, in one line.
    """
    if config.method.member is not config.method:
        raise ConfigError(
            f"method.kind={config.method.kind}: a search tunes one network; put its member's section in its place"
        )
    if config.training.workers == 0 and "://" in (storage := config.training.storage):
        raise ConfigError(
            f"training.storage {storage}: without Ray's workers it must be a local folder, or use one worker"
        )
    config = launch.with_absolute_paths(config)
    task = config.task.build()
    task.check(config)
    config.method.check_likelihood(task.likelihood)
    objectives = _objectives(tune, task)
    scheduler = _scheduler(tune, config, objectives)
    rows = len(task.data.train)
    steps_per_epoch = math.ceil(rows / config.training.batch_size)
    length = run_length(steps_per_epoch, config.training.epochs, task)
    if tune.search == "population":
        _check_population(tune, config, length.total_steps)
        space: Space = {}
    else:
        space = default_space(config, length.total_steps) if tune.space is None else tune.space
        spaces.check(space, config)
    meshes.arrangement(config, config.method)
    preflight = Preflight(config, task)
    module = preflight.initial.module
    assert module is not None
    check_running_statistics(config.method, module, config.evaluation.norm_batches)
    check_rows(config, [config.method], module, task)
    if not config.training.meta_init:
        losses = partial(checks.example_losses, module, task)
        build_method(config.method, Setup(module, length, config.seed, losses))
    checks.check_disk(preflight, [config.method])
    preflight.release()  # trials build their own
    assert config.tracking.uri is not None
    check_server(config.tracking.uri)
    folder = f"{config.training.storage.rstrip('/')}/{config.name}"
    return Plan(config, tune, preflight, space, objectives, scheduler, length.total_steps, folder)


def _objectives(tune: TuneConfig, task: Task) -> dict[str, bool]:
    names = tune.objectives or [next(iter(task.evaluator.objectives))]
    for name in names:
        if name not in task.evaluator.objectives:
            raise ConfigError(
                f"tune.objectives: no trial reports {name!r}; one of {', '.join(task.evaluator.objectives)} (on validation data)"
            )
    if len(names) > 2 or len(set(names)) < len(names):
        raise ConfigError(f"tune.objectives is {names}: give one, or two different ones")
    return {name: task.evaluator.objectives[name] for name in names}


def _scheduler(tune: TuneConfig, config: Config, objectives: dict[str, bool]) -> Literal["asha", "none"]:
    """Choose the scheduler that can work, where none is asked for.

    Raises:
        ConfigError: the one that is asked for cannot.
    """
    reason = None
    if tune.search == "population":
        reason = "a population replaces its worst members itself"
    elif len(objectives) > 1:
        reason = f"it stops trials by one objective, and there are two ({', '.join(objectives)})"
    elif config.training.validate_every >= config.training.epochs:
        reason = (
            f"trials report nothing on the way with training.validate_every={config.training.validate_every:g} and "
            f"training.epochs={config.training.epochs:g}"
        )
    elif tune.grace >= config.training.epochs:
        reason = f"tune.grace={tune.grace:g} is the whole run of training.epochs={config.training.epochs:g}"
    if tune.scheduler == "asha" and reason is not None:
        raise ConfigError(f"tune.scheduler=asha: {reason}; use tune.scheduler=none")
    return tune.scheduler or ("none" if reason else "asha")


def _check_population(tune: TuneConfig, config: Config, steps: int) -> None:
    if not config.method.proximal:
        raise ConfigError(
            f"tune.search=population learns the schedules of method.kind=proximal_score, not of {config.method.kind}"
        )
    if tune.space is not None:
        raise ConfigError("tune.search=population learns the two proximal steps' schedules: leave tune.space out")
    if len(tune.objectives) > 1:
        raise ConfigError("tune.search=population ranks by one objective: give one")
    if tune.population.rounds > steps:
        raise ConfigError(f"tune.population.rounds={tune.population.rounds}: a run has {steps} steps")
