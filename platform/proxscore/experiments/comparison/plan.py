"""The cells of a comparison, and everything that is refused before the first one."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from proxscore import config as configuration
from proxscore.config import MAX_EPOCHS, MAX_SEED, Config, ConfigError
from proxscore.experiments.budget import Budget, equal_budget
from proxscore.experiments.comparison.settings import SPLIT_SEED, ComparisonConfig, method_config
from proxscore.methods import Setup, build_method, check_running_statistics
from proxscore.tasks import Task
from proxscore.training import launch
from proxscore.training.data.norm_rows import check_rows
from proxscore.training.loop.run_length import run_length
from proxscore.training.preflight.checks import example_losses
from proxscore.training.sharding import meshes

AS_GIVEN = "default"  # the setting of a method at its own learning rate
MATTERS = ("task.", "method.", "evaluation.", "seed", "training.batch_size", "training.precision")


@dataclass(frozen=True)
class Cell:
    """One training run and its evaluation.

    Attributes:
        method: its name in the comparison.
        setting: ``default``, or the learning rate that is tried, as ``lr=0.1``.
        config: the whole configuration, with the seed.
        folder: of what it leaves.
    """

    method: str
    setting: str
    config: Config
    budget: Budget
    folder: Path

    @property
    def seed(self) -> int:
        return self.config.seed

    def settings(self) -> dict[str, Any]:
        """The settings that the cell's results depend on, by dotted key."""
        flat = configuration.flatten(self.config).items()
        return {key: value for key, value in flat if key.startswith(MATTERS)} | {"evaluations": self.budget.evaluations}


@dataclass(frozen=True)
class Contender:
    """One method of the comparison.

    Attributes:
        configs: by setting: the method as it is given, and at each learning rate that is tried. Where a learning rate
            that is tried is the given one, it is the same setting.
        trials: settings by the value that is tried.
        key: that is tuned; empty: none.
    """

    name: str
    configs: dict[str, Config]
    trials: dict[float, str]
    key: str
    budget: Budget


@dataclass(frozen=True)
class Plan:
    """A comparison that may begin."""

    name: str
    folder: Path
    seeds: list[int]
    contenders: list[Contender]
    evaluations: int
    config: Config  # what is common to all cells
    task: Task
    split_by_seed: bool = False  # the task is that of another split than a cell's

    def cell(self, contender: Contender, setting: str, seed: int) -> Cell:
        """A method at a setting, from a seed, which also splits the data where ``split_by_seed`` says so."""
        config = contender.configs[setting].model_copy(update={"seed": seed})
        if self.split_by_seed:
            data = config.task.data.model_copy(update={SPLIT_SEED: seed})
            config = config.model_copy(update={"task": config.task.model_copy(update={"data": data})})
        folder = self.folder / slug(contender.name) / setting / str(seed)
        return Cell(contender.name, setting, config, contender.budget, folder)

    def first(self) -> list[Cell]:
        """The cells that wait for no other: the methods as they are given, and trials, which have the first seed."""
        given = [self.cell(c, AS_GIVEN, seed) for seed in self.seeds for c in self.contenders]
        return given + [cell for contender in self.contenders for cell in self.trials(contender)]

    def trials(self, contender: Contender) -> list[Cell]:
        """The cells that a method's learning rate is chosen by."""
        return [self.cell(contender, setting, self.seeds[0]) for setting in contender.trials.values()]

    def possible(self) -> list[Cell]:
        """All that there may ever be: every seed at every setting."""
        return [self.cell(c, setting, seed) for c in self.contenders for setting in c.configs for seed in self.seeds]


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^a-z0-9.=-]+", "-", name.lower()).strip("-") or "-"


def plan(comparison: ComparisonConfig, source: str) -> Plan:
    """Check a comparison, and lay out its cells.

    Raises:
        ConfigError: one line that says why it would be unfair, unequal or impossible.
    """
    _check_fairness(comparison)
    base = _resolved(configuration.parse(dict(comparison.base), f"{source}, base"), comparison)
    task = base.task.build()
    steps_per_epoch = math.ceil(len(task.data.train) / base.training.batch_size)
    total = round(comparison.budget * steps_per_epoch)
    contenders = []
    for name, entry in comparison.methods.items():
        (key, values), *_ = [*entry.tune.items(), ("", [])]
        configs, trials = {AS_GIVEN: method_config(comparison, source, name)}, {}
        for value in values:
            config = method_config(comparison, source, name, value)
            trials[value] = AS_GIVEN if config.method == configs[AS_GIVEN].method else f"{key}={value:g}"
            configs.setdefault(trials[value], config)
        budget = equal_budget(name, configs[AS_GIVEN].method, steps_per_epoch, total)
        configs = {s: _with_length(_resolved(config, comparison), budget, comparison) for s, config in configs.items()}
        for config in configs.values():
            _check_method(name, config, task, budget)
        contenders.append(Contender(name, configs, trials, key, budget))
    folder = Path(base.training.storage) / str(comparison.name)
    by_seed = comparison.split_by_seed
    return Plan(str(comparison.name), folder, list(comparison.seeds), contenders, total, base, task, by_seed)


def _check_fairness(comparison: ComparisonConfig) -> None:
    seeds, methods = comparison.seeds, comparison.methods
    if not seeds or min(seeds) < 0 or max(seeds) > MAX_SEED:
        raise ConfigError(f"seeds is {seeds}: name at least one, none below 0 or above {MAX_SEED}")
    if repeated := [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]:
        raise ConfigError(f"seeds: {repeated[0]} is repeated; the same run twice is no second sample")
    if not 1 <= comparison.budget <= MAX_EPOCHS:
        raise ConfigError(
            f"budget is {comparison.budget:g} epochs; it must be one epoch of the training data or more, at most {MAX_EPOCHS}"
        )
    folders: dict[str, str] = {}
    for name in methods:
        if (other := folders.setdefault(slug(name), name)) != name:
            raise ConfigError(f"methods: {other!r} and {name!r} would share the folder {slug(name)!r}: rename one")
    for name, entry in methods.items():
        if len(entry.tune) > 1:
            raise ConfigError(f"methods.{name}.tune has {len(entry.tune)} keys; one learning rate is tuned per method")
        for key, values in entry.tune.items():
            if len(set(values)) < len(values) or not values:
                raise ConfigError(f"methods.{name}.tune.{key} is {values}: give different values")
    trials = {name: sum(map(len, entry.tune.values())) for name, entry in methods.items()}
    fewest, most = min(trials, key=lambda n: trials[n]), max(trials, key=lambda n: trials[n])
    if trials[fewest] != trials[most]:
        raise ConfigError(
            f"methods.{most} tries {trials[most]} learning rates and methods.{fewest} {trials[fewest]}: a fair comparison "
            "tries as many for every method"
        )


def _resolved(config: Config, comparison: ComparisonConfig) -> Config:
    """With absolute paths; in one process, unless workers are asked for and the method can share its state among them."""
    if "://" in config.training.storage:
        raise ConfigError(
            f"training.storage {config.training.storage}: a comparison needs a folder, which all nodes share"
        )
    wanted = (comparison.base.get("training") or {}).get("workers", 0)
    workers = config.training.workers if wanted and config.method.shards else 0
    training = config.training.model_copy(update={"workers": workers, "keep_checkpoints": 1})
    return launch.with_absolute_paths(config.model_copy(update={"training": training, "name": comparison.name}))


def _with_length(config: Config, budget: Budget, comparison: ComparisonConfig) -> Config:
    """With the epochs that the budget gives. Validation on the way is no part of training: at the end, unless asked for."""
    update: dict[str, Any] = {"epochs": budget.epochs}
    if "validate_every" not in (comparison.base.get("training") or {}):
        update["validate_every"] = budget.epochs
    return config.model_copy(update={"training": config.training.model_copy(update=update)})


def _check_method(name: str, config: Config, task: Task, budget: Budget) -> None:
    """Build network and method once, as a cell will.

    Raises:
        ConfigError: the network cannot be built, or the method refuses it or its own settings.
    """
    own = copy.copy(task)
    own.config = config.task
    try:
        own.check(config)
        config.method.check_likelihood(own.likelihood)
        module = own.build_model()
        check_running_statistics(config.method, module, config.evaluation.norm_batches)
        meshes.arrangement(config, config.method)
        check_rows(config, [config.method], module, own)
        length = run_length(budget.steps_per_epoch, budget.epochs / budget.members, own)
        losses = partial(example_losses, module, own)
        build_method(config.method.member, Setup(module, length, config.seed, losses))
    except ConfigError as error:
        raise ConfigError(f"methods.{name}: {error}") from error
