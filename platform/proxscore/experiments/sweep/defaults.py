"""The space that a search takes where none is given: around the configuration as it is."""

from __future__ import annotations

from typing import Any

from proxscore.config import Config, ConfigError
from proxscore.experiments.sweep.space import Domain


def default_space(config: Config, total_steps: int) -> dict[str, Domain]:
    """What the method says is worth a search; of one that searches its draws, the batch size as well.

    Args:
        total_steps: of a run.

    Raises:
        ConfigError: the method has nothing to search.
    """
    domains = config.method.default_space(total_steps)
    if not domains:
        raise ConfigError(f"tune.space: method.kind={config.method.kind} has no default space: give one")
    if config.training.draw_groups > 1:  # draws are shared out
        domains.pop("draws", None)
    space = {f"method.{key}": _domain(domain) for key, domain in domains.items()}
    if len(space) > 1:
        space["training.batch_size"] = Domain(choice=_batches(config.training.batch_size))
    return space


def _domain(domain: dict[str, Any]) -> Domain:
    """A domain of the space, whose condition names its keys in full."""
    when = {f"method.{key}": values for key, values in domain.get("when", {}).items()}
    return Domain(**domain | ({"when": when} if when else {}))


def _batches(size: int) -> list[Any]:
    return sorted({max(size // 2, 1), size, 2 * size})
