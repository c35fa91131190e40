"""The space that a search takes where none is given: around the configuration as it is."""

from __future__ import annotations

from typing import Any

from proxscore.config import Config, ConfigError, ProximalScoreConfig
from proxscore.inference.initial import INITIAL_NOISE
from proxscore.inference.metric import LR
from proxscore.tuning.space import Domain

KIND = "method.penalty.mean_schedule.kind"


def default_space(config: Config, total_steps: int) -> dict[str, Domain]:
    """Everything of proximal score matching that is worth a search; the rate of other methods.

    Args:
        total_steps: of a run, which the precision's proximal weight is measured by.

    Raises:
        ConfigError: the method has no rate to search.
    """
    method = config.method
    if not isinstance(method, ProximalScoreConfig):
        rates = {key: value for key, value in (("lr", getattr(method, "lr", None)),) if value is not None}
        if not rates:
            raise ConfigError(f"tune.space: method.kind={method.kind} has no default space: give one")
        return {f"method.{key}": _around(value, 10) for key, value in rates.items()}
    precision = method.penalty.precision or float(total_steps)
    space: dict[str, Domain] = {
        "method.penalty.precision": _around(precision, 5),
        KIND: Domain(choice=["constant", "linear", "cosine", "power"]),
        "method.penalty.mean_schedule.warmup": Domain(uniform=[0.0, 1.0]),
        "method.penalty.mean_schedule.end": Domain(uniform=[0.0, 0.2], when={KIND: ["linear", "cosine"]}),
        "method.penalty.mean_schedule.power": Domain(uniform=[0.25, 1.0], when={KIND: "power"}),
        "method.momentum": Domain(choice=[0.8, 0.9, 0.95]),
        "method.temperature": _around(method.temperature, 10),
        "method.paired": Domain(choice=[True, False]),
        "method.draws": Domain(randint=[1, 2]),
        "training.batch_size": Domain(choice=_batches(config.training.batch_size)),
    }
    if not isinstance(method.prior.scale, str):
        space["method.prior.scale"] = _around(method.prior.scale, 5)
    if method.metric == "adaptive":
        space["method.lr"] = _around(method.lr or LR, 5)
    else:
        space["method.penalty.mean"] = _around(method.penalty.mean, 5)
        space["method.max_mean_step"] = _around(method.max_mean_step or 0.1, 5)
    if method.initial_precision is None:
        space["method.initial_noise"] = _around(method.initial_noise or INITIAL_NOISE, 4)
    else:
        space["method.initial_precision"] = _around(method.initial_precision, 10)
    if config.training.draw_groups > 1:  # draws are shared out
        del space["method.draws"]
    return space


def _around(value: float, factor: float) -> Domain:
    return Domain(loguniform=[value / factor, value * factor])


def _batches(size: int) -> list[Any]:
    return sorted({max(size // 2, 1), size, 2 * size})
