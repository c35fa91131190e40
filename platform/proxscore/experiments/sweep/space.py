"""Search spaces: a domain for each of some dotted keys of the configuration.

    method.max_mean_step: {loguniform: [0.05, 0.8]}
    method.penalty.mean_schedule.kind: {choice: [constant, cosine, power]}
    method.penalty.mean_schedule.power: {uniform: [0.25, 1.0], when: {method.penalty.mean_schedule.kind: power}}

Both ends of a range belong to it. A key with ``when`` is searched where the keys named there have the value, or one of the
values: keys of the space, or of the configuration as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, Section

#: What all trials have in common, and why: the budget, the meaning of the objective, the place.
NOT_SEARCHED = {
    "training.epochs": "every trial has the same budget",
    "training.storage": "every trial has the same storage",
    "seed": "good settings are repeated from other seeds",
    "name": "trials are numbered",
    "evaluation.": "the objective would change its meaning",
    "task.data.": "the objective would change its meaning",
    "tracking.": "the sweep is recorded in one place",
    "baseline": "a trial has no baseline",
}
KINDS = ("choice", "uniform", "loguniform", "randint")


class Domain(Section):
    """Where one value comes from: exactly one of the four kinds."""

    choice: list[Any] | None = None  # one of these
    uniform: list[float] | None = None  # between these two
    loguniform: list[float] | None = None  # between these two, evenly on a logarithmic scale
    randint: list[int] | None = None  # a whole number between these two, both included
    when: dict[str, Any] = Field({})  # keys and values of other domains under which this one counts

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> list[Any]:
        """The two ends, or the choices."""
        found: list[Any] = getattr(self, self.kind)
        return found

    def written(self) -> dict[str, Any]:
        """The domain as people write it in a configuration."""
        return {self.kind: self.values} | ({"when": self.when} if self.when else {})


Space = Mapping[str, Domain]
Params = dict[str, Any]


def distribution(domain: Domain) -> BaseDistribution:
    """The domain as Optuna has it."""
    if domain.kind == "choice":
        return CategoricalDistribution(domain.values)
    low, high = domain.values
    if domain.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "loguniform")


def within(value: Any, domain: Domain) -> bool:
    """Whether a value lies in a domain; ends and choices belong to it."""
    if domain.kind == "choice":
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in domain.values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = domain.values
    return bool(low <= value <= high) and (domain.kind != "randint" or value == int(value))


def active(domain: Domain, params: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether a key is searched, given the values of the keys before it.

    Args:
        params: of the space's keys; one that is not active has none.
        base: the configuration's flat values, for keys that are not searched.
    """
    for key, wanted in domain.when.items():
        value = params.get(key, base.get(key))
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def ordered(space: Space) -> list[str]:
    """The keys, each after those that its condition names.

    Raises:
        ConfigError: conditions go in a circle.
    """
    done: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [key for key in waiting if not any(other in waiting for other in space[key].when)]
        if not ready:
            raise ConfigError(f"tune.space: the conditions of {', '.join(waiting)} depend on each other")
        done += ready
        waiting = [key for key in waiting if key not in ready]
    return done


def applied(config: Config, params: Params) -> Config:
    """The configuration with the values of a trial, and as many gradient evaluations as without.

    Where a step takes more of them (pairs, more draws), there are fewer epochs.
    """
    tree = configuration.plain(config)
    for key, value in params.items():
        tree = configuration.with_value(tree, key, value)
    changed = configuration.parse(tree, "trial")
    cost = relative_cost(changed, config)
    training = changed.training
    lengths = {name: getattr(training, name) / cost for name in ("epochs", "validate_every", "checkpoint_every")}
    return changed.model_copy(update={"training": training.model_copy(update=lengths)})


def relative_cost(config: Config, base: Config) -> float:
    """Gradient evaluations of a step, relative to those of the base."""
    return config.method.evaluations_per_step() / base.method.evaluations_per_step()


def check(space: Space, config: Config) -> None:
    """Refuse what no trial could be made from.

    Raises:
        ConfigError: an unknown key, an empty or upside-down range, a logarithm of zero, a value that the configuration
            refuses; names the key.
    """
    base = configuration.flatten(config)
    if not space:
        raise ConfigError("tune.space is empty: name at least one key, or leave it out for the default space")
    for key in ordered(space):
        for prefix, reason in NOT_SEARCHED.items():
            if key.startswith(prefix):
                raise ConfigError(f"tune.space.{key}: {reason}: leave it out")
        _check_domain(key, space[key])
        for other in space[key].when:
            if other not in space and other not in base:
                raise ConfigError(f"tune.space.{key}.when: {other!r} is no key of the space or the configuration")
    for key, domain in space.items():
        params = _reaching(key, space, base)
        for value in domain.values:
            try:
                applied(config, params | {key: value})
            except ConfigError as error:
                raise ConfigError(f"tune.space.{key}: {str(error).partition(': ')[2]}") from error


def _check_domain(key: str, domain: Domain) -> None:
    given = [kind for kind in KINDS if getattr(domain, kind) is not None]
    if len(given) != 1:
        raise ConfigError(f"tune.space.{key} has {' and '.join(given) or 'no domain'}: give one of {', '.join(KINDS)}")
    values = domain.values
    if domain.kind == "choice":
        if not values:
            raise ConfigError(f"tune.space.{key}.choice is empty: list at least one value")
        if not all(value is None or isinstance(value, (bool, int, float, str)) for value in values):
            raise ConfigError(f"tune.space.{key}.choice is {values}: list numbers, texts, true, false or null")
        if len({repr(value) for value in values}) < len(values):
            raise ConfigError(f"tune.space.{key}.choice is {values}: list different values")
        return
    if len(values) != 2:
        raise ConfigError(f"tune.space.{key}.{domain.kind} is {values}: give two ends, [low, high]")
    low, high = values
    if low >= high:
        raise ConfigError(
            f"tune.space.{key}.{domain.kind} is [{low:g}, {high:g}]: an empty range; the low end comes first"
        )
    if domain.kind == "loguniform" and low <= 0:
        raise ConfigError(
            f"tune.space.{key}.loguniform starts at {low:g}: a logarithmic scale needs a positive low end; use uniform"
        )


def _reaching(key: str, space: Space, base: Mapping[str, Any]) -> Params:
    """Values of other keys under which this one is searched."""
    params: Params = {}
    for other, wanted in space[key].when.items():
        if other in space:
            params |= _reaching(other, space, base)
            params[other] = wanted[0] if isinstance(wanted, list) else wanted
    return params
