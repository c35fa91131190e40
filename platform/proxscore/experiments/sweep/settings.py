"""What a sweep is asked to do: the section ``tune`` of a training job's YAML file. Every key has a default.

tune:
  trials: 24
  time_limit: 2h
  objectives: [nll]
  space:
    method.max_mean_step: {loguniform: [0.05, 0.8]}
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from proxscore import config as configuration
from proxscore.config import MAX_SEED, Config, ConfigError, Section
from proxscore.config.commented import comments, dump_commented, with_comment
from proxscore.experiments.sweep.space import Domain, Space

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """90, "90s", "15m", "2h" or "3d" as seconds."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", value.strip())
    if not found:
        raise ValueError("write seconds, or a number with s, m, h or d, for example 90m")
    return float(found[1]) * UNITS[found[2] or "s"]


class PopulationConfig(Section):
    """Members that train side by side; after each round the worst take over the best one's state and vary its steps."""

    size: int = Field(6, ge=2, le=100_000)  # members
    rounds: int = Field(4, ge=2, le=1_000_000)  # equal parts of the run
    replaced: float = Field(0.25, gt=0, le=0.5)  # fraction of the members after each round
    spread: float = Field(4.0, gt=1)  # first multipliers lie between 1 / spread and spread
    factors: list[float] = Field([0.5, 0.8, 1.25, 2.0])  # what a multiplier may change by


class TuneConfig(Section):
    """The section as a whole."""

    space: dict[str, Domain] | None = None  # null: the default of the task; see ``defaults.py``
    search: Literal["tpe", "random", "population"] = "tpe"  # how the next settings are chosen
    scheduler: Literal["asha", "none"] | None = None  # null: asha where it can work
    objectives: list[str] = Field([])  # on validation data, one or two; empty: the task's own
    trials: int = Field(16, ge=1, le=1_000_000)  # of the search
    time_limit: Annotated[float | None, BeforeValidator(_seconds)] = Field(None, gt=0)  # of the search
    gpu_hours: float | None = Field(None, gt=0)  # of the search
    concurrent: int | None = Field(None, ge=1, le=100_000)  # null: as many trials as the cluster holds
    grace: float = Field(1.0, gt=0)  # epochs that the scheduler leaves every trial
    reduction: float = Field(3.0, gt=1)  # one in so many trials goes on past each rung
    population: PopulationConfig = PopulationConfig()
    top: int = Field(3, ge=1, le=1_000_000)  # settings that are repeated from other seeds
    # Of repetitions; the first is that of the search.
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field([0, 1, 2])
    seed: int = Field(0, ge=0, le=2**32 - 1)  # of the search


def load(path: Path | None, overrides: Sequence[str]) -> tuple[Config, TuneConfig]:
    """The training configuration of a file, with a name, and its section ``tune``.

    Raises:
        ConfigError: one line that names the key at fault.
    """
    return of(*configuration.read(path, overrides))


def of(tree: dict[str, Any], source: str) -> tuple[Config, TuneConfig]:
    """Validate a sweep that is given as a plain tree; see :func:`load`.

    Args:
        source: what to call the tree in messages.
    """
    tree = dict(tree)
    section = tree.pop("tune", None) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: tune is {section!r}: it must be a section")
    tune = configuration.validated(TuneConfig, section, f"{source}, tune")
    if not tune.seeds or len(set(tune.seeds)) < len(tune.seeds):
        raise ConfigError(f"{source}, tune: seeds is {tune.seeds}: give different seeds, at least one")
    if not all(factor > 0 for factor in tune.population.factors) or not tune.population.factors:
        raise ConfigError(f"{source}, tune: population.factors is {tune.population.factors}: give positive factors")
    config = configuration.parse(tree, source)
    name = config.name or f"tune-{time.strftime('%Y%m%d-%H%M%S')}"
    return config.model_copy(update={"name": name, "seed": tune.seeds[0]}), tune


def written(config: Config, tune: TuneConfig, space: Space) -> str:
    """Both as one YAML file with comments, as :func:`load` reads it.

    Args:
        space: that will be searched; empty where there is none to choose.
    """
    section = dump_commented(tune, tune.model_dump(mode="json", exclude={"space"}))
    domains = {key: domain.written() for key, domain in space.items()} or None
    section += with_comment(comments(TuneConfig)["space"], configuration.dump_yaml({"space": domains}).rstrip("\n"))
    return dump_commented(config) + with_comment("of a search by tune", "tune:") + textwrap.indent(section, "  ")
