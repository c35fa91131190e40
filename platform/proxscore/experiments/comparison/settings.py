"""What a comparison is asked to do: a YAML file with one task, several methods, seeds and a budget.

name: fashion-mnist-cnn
budget: 10                      # gradient evaluations per method, in epochs of data
seeds: [0, 1, 2]
split_by_seed: true             # each seed splits the data anew; else all have the same
base:                           # task, training, evaluation, tracking: as of a training job, common to all
  task: {model: {name: small_cnn}, data: {kind: digits}}
methods:
  IVON:
    method: {kind: ivon}        # as it is published
    tune: {lr: [0.05, 0.1, 0.2, 0.4, 0.8]}
  MC dropout:
    method: {kind: mc_dropout}
    tune: {of.lr: [3.0e-4, 1.0e-3, 2.0e-3, 4.0e-3, 8.0e-3]}
    task: {model: {kwargs: {drop_rate: 0.1}}}
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, Section
from proxscore.config.commented import comments, dump_commented, with_comment


class _Model(Section):
    kwargs: dict[str, Any] = Field({})  # beside those of base.task.model


class _Task(Section):
    """What of the task may be a method's own: the data and the network are common."""

    model: _Model = _Model()


class EntryConfig(Section):
    """One method: its section, and the learning rates that are tried for it on validation data."""

    method: dict[str, Any]  # its section, as that of a training job
    tune: dict[str, list[float]] = Field({})  # one (dotted) key of the section, and its values
    task: _Task = _Task()


class ComparisonConfig(Section):
    """The file as a whole."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
    )  # null: a new one; a known one goes on
    base: dict[str, Any] = Field({})  # task, training, evaluation and tracking of a training job, common to all
    methods: dict[str, EntryConfig]  # name -> its section, and the learning rates to try
    seeds: list[int] = Field([0, 1, 2])  # that each method is trained from
    split_by_seed: bool = False  # task.data.split_seed of a cell is its seed; else all cells have the same rows
    budget: float = 10.0  # epochs of the training data, in gradient evaluations of a batch each


#: Keys of ``base`` that a comparison sets itself, and where they come from.
NOT_OF_BASE = {"method": "methods", "baseline": "methods", "seed": "seeds", "name": "name"}

SPLIT_SEED = "split_seed"  # the setting of the data that draws their split


def load(path: Path, overrides: Sequence[str]) -> tuple[ComparisonConfig, str]:
    """Read a file and apply overrides: keys of its top level, or of ``base`` (with or without this word before them).

    Returns:
        The settings, with a name, and what to call them in messages.

    Raises:
        ConfigError: one line that names the key at fault.
    """
    top = ComparisonConfig.model_fields
    placed = [text if re.split(r"[.=]", text)[0] in top else f"base.{text}" for text in overrides]
    return of(*configuration.read(path, placed))


def of(tree: dict[str, Any], source: str) -> tuple[ComparisonConfig, str]:
    """Validate a comparison that is given as a plain tree; see :func:`load`.

    Args:
        source: what to call the tree in messages.
    """
    comparison = configuration.validated(ComparisonConfig, tree, source)
    if not comparison.methods:
        raise ConfigError(f"{source}: methods is empty: name at least one")
    for key, where in NOT_OF_BASE.items():
        if key in comparison.base:
            raise ConfigError(f"{source}: base.{key} comes from {where!r} in a comparison: leave it out")
    training = comparison.base.get("training")
    if isinstance(training, dict) and "epochs" in training:
        raise ConfigError(f"{source}: base.training.epochs follows from 'budget' in a comparison: leave it out")
    base = configuration.parse({**comparison.base}, f"{source}, base")
    if comparison.split_by_seed:
        _check_split(comparison, base, source)
    name = comparison.name or f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    return comparison.model_copy(update={"name": name}), source


def _check_split(comparison: ComparisonConfig, base: Config, source: str) -> None:
    data = getattr(base.task, "data", None)
    if not hasattr(data, SPLIT_SEED):
        kind = getattr(data, "kind", base.task.kind)
        raise ConfigError(f"{source}: split_by_seed: data of kind {kind} are not split by a seed: leave it out")
    if SPLIT_SEED in ((comparison.base.get("task") or {}).get("data") or {}):
        raise ConfigError(
            f"{source}: base.task.data.{SPLIT_SEED} comes from 'seeds' with split_by_seed: leave one of them out"
        )


def method_config(comparison: ComparisonConfig, source: str, name: str, value: float | None = None) -> Config:
    """The whole configuration of a method of the comparison, at its own learning rate or at one that is tried.

    Raises:
        ConfigError: the method's section, or the key that is tuned, is not valid.
    """
    entry = comparison.methods[name]
    source = f"{source}, methods.{name}"
    section = entry.method
    if value is not None:
        (key,) = entry.tune
        section = configuration.with_value(section, key, value)
    tree = dict(comparison.base) | {"method": section}
    if kwargs := entry.task.model.kwargs:
        task = dict(tree.get("task") or {})
        model = dict(task.get("model") or {})
        tree["task"] = task | {"model": model | {"kwargs": dict(model.get("kwargs") or {}) | kwargs}}
    return configuration.parse(tree, source)


def written(comparison: ComparisonConfig, source: str) -> str:
    """The whole comparison as YAML with comments, as :func:`load` reads it; the base has all its settings."""
    beside = comments(ComparisonConfig)
    base = configuration.parse({**comparison.base}, f"{source}, base")
    tree = base.model_dump(mode="json", exclude={*NOT_OF_BASE})
    del tree["training"]["epochs"]  # follows from the budget
    if comparison.split_by_seed:
        del tree["task"]["data"][SPLIT_SEED]  # is the seed
    own = comparison.model_dump(mode="json", exclude={"base"})
    methods = {"methods": own.pop("methods")}
    return "".join(
        (
            dump_commented(comparison, own),
            with_comment(beside["methods"], configuration.dump_yaml(methods).rstrip("\n")),
            with_comment(beside["base"], "base:"),
            textwrap.indent(dump_commented(base, tree), "  "),
        )
    )
