"""The configuration of the task that a saved posterior describes. Nothing that a description names is fetched or read."""

from __future__ import annotations

from typing import Any, cast

from proxscore import config as configuration
from proxscore.config import TASKS, Config, ConfigError, TaskSection


def configuration_of(description: dict[str, Any], overrides: list[str], where: str) -> Config:
    """The configuration of a description's task, with overrides.

    Args:
        description: of a posterior.
        overrides: ``key=value``.
        where: the description lies, for messages.

    Raises:
        ConfigError: it describes no task, or an override is not valid.
    """
    task = description.get("task")
    if not isinstance(task, dict):
        raise ConfigError(
            f"{where}: has no section 'task', which says what the posterior was trained on: a posterior of a network of your own "
            "is opened by proxscore.posterior.Posterior.load"
        )
    for key in ("model", "data"):
        if not isinstance(task.get(key), dict):
            raise ConfigError(f"{where}: task has no section {key!r}")
    section = _section(task.get("kind"))
    task = task | {"model": section.described_model(task["model"], where)}
    configuration.parse({"name": "posterior", "task": task}, where)  # what is wrong there is not the overrides' fault
    kinds = [override.partition("=")[2] for override in overrides if override.startswith("task.data.kind=")]
    if kinds and kinds[-1] != task["data"].get("kind"):  # another kind of data has other keys
        task["data"] = section.prepared_as(task["data"], kinds[-1])
    return configuration.load(overrides=overrides, base={"name": "posterior", "task": task})


def _section(kind: Any) -> type[TaskSection]:
    """The section of a task's kind; what is no kind of a task is refused with the rest of the configuration."""
    known = kind if isinstance(kind, str) and kind in TASKS.kinds() else TASKS.kinds()[0]
    return cast(type[TaskSection], TASKS.section(known))
