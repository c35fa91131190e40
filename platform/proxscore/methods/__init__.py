"""The methods that one training loop serves, by the kind that the configuration names.

A method is a torch optimizer that also has

    draws()               an iterator; its body runs forward and backward, once per gradient evaluation
    evaluations_per_step  how often that is
    nonfinite             0 or 1 on the device: did this rank see a gradient that is not finite?
    found_inf             set before ``step`` to the ranks' common answer
    monitor, statistics   values to record, of the local shards

and, where it leaves more than the weights,

    posterior_from(point, name_of)   what it knows beside the point estimate in them, by the names that ``name_of`` gives to
                                     its parameters (see ``proxscore.posterior.Posterior.of``)
    conclude(module, likelihood, batches, rows)   what it does once at the end of training, with the training rows

To add one: a file with a ``build`` function, and a line in ``METHODS``. The kind ``ensemble`` is of the loop
(:mod:`proxscore.training.ensemble`), not of a module's optimizer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from proxscore.config import ConfigError, MethodError
from proxscore.inference import Categorical, Gaussian, ProximalScore
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.diagnostics import Losses, verdict


class Method(Protocol):
    """An optimizer for a module's posterior or point estimate."""

    evaluations_per_step: int
    found_inf: Tensor | bool | None
    monitor: bool
    statistics: dict[str, float]
    param_groups: list[dict[str, Any]]

    @property
    def nonfinite(self) -> Tensor: ...

    def draws(self) -> Iterator[int]: ...

    def step(self) -> Any: ...


@dataclass(frozen=True)
class Horizon:
    """The length of a run: what schedules refer to."""

    total_steps: int
    steps_per_epoch: int
    data_size: int


# kind -> module of this package; imported when it is asked for, as some need packages of the extra "peers".
METHODS = {
    "adamw": "adamw",
    "elbo": "elbo",
    "ivon": "ivon",
    "laplace": "laplace",
    "mc_dropout": "mc_dropout",
    "proximal_score": "proximal_score",
    "sgd": "sgd",
    "sghmc": "sgmcmc",
    "sgld": "sgmcmc",
    "swag": "swag",
}

#: Kinds that know neither shards nor replicas: those of packages, and the ensemble, whose members wait in one process.
ONE_WORKER = frozenset({"ensemble", "ivon", "laplace"})


#: Kinds whose predictions all have the weights that training left.
FIXED_WEIGHTS = frozenset({"adamw", "mc_dropout", "sgd"})


def build_method(
    config: Any,
    module: nn.Module,
    horizon: Horizon,
    seed: int,
    losses: Callable[[], Iterator[Tensor]],
    draw_mesh: DeviceMesh | None = None,
) -> Method:
    """The method that a configuration section describes, for the parameters of a module.

    Args:
        losses: for a method that looks at data first: average losses of a few training batches; see
            :func:`proxscore.inference.initial.bearable_noise`.
        draw_mesh: for a method that makes draws: the groups of processes that score different ones.

    Raises:
        MethodError: a setting or network that the method refuses, or a package that is not installed.
    """
    try:
        found = importlib.import_module(f"proxscore.methods.{METHODS[config.kind]}")
    except ModuleNotFoundError as error:
        raise MethodError(
            f"method.kind={config.kind} needs the package {error.name}: install proxscore[peers]"
        ) from error
    try:
        method: Method = found.build(config, module, horizon, seed, losses, draw_mesh)
    except ConfigError as error:
        raise MethodError(str(error)) from error
    except (ValueError, OverflowError) as error:  # of a part that knows no settings, such as a prior
        raise MethodError(f"method: {' '.join(str(error).split())}") from error
    return method


def check_running_statistics(config: Any, module: nn.Module, norm_batches: int) -> None:
    """Refuse draws of weights below BatchNorm layers that keep the statistics which other weights left.

    Args:
        config: section of a method.
        norm_batches: training batches that set the statistics anew for each draw.

    Raises:
        MethodError: there are such layers, and no batches.
    """
    inner = config.of if config.kind == "ensemble" else config
    drawn = inner.subset if inner.kind == "laplace" else getattr(getattr(inner, "prior", None), "select", "all")
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if layers and not norm_batches and drawn != "last_layer" and inner.kind not in FIXED_WEIGHTS:
        raise MethodError(
            f"evaluation.norm_batches=0: the network has {len(layers)} BatchNorm layers ({layers[0]}, ...), whose statistics "
            f"belong to no draw of method.kind={inner.kind}; use evaluation.norm_batches=20"
        )


def check_likelihood(config: Any, likelihood: nn.Module) -> None:
    """Refuse a method that knows nothing of the task's likelihood.

    Args:
        config: section of a method.

    Raises:
        MethodError: laplace, of anything but classes by their logits or a Gaussian.
    """
    inner = config.of if config.kind == "ensemble" else config
    if inner.kind == "laplace" and not isinstance(likelihood, (Categorical, Gaussian)):
        raise MethodError(
            f"method.kind=laplace: laplace-torch has a curvature for categorical and Gaussian likelihoods, and none for "
            f"{type(likelihood).__name__}: use another method"
        )


def judged(method: Method, losses: Losses | None, rows: int) -> Verdict | None:
    """Whether a method's posterior converged (:func:`proxscore.posterior.diagnostics.verdict`); none of methods that do not tell.

    With sharded parameters, every rank must call it.

    Args:
        losses: on validation data, of mean and draws.
        rows: of the training data.
    """
    return verdict(method, losses=losses, rows=rows) if isinstance(method, ProximalScore) else None


def tells(method: Method) -> bool:
    """Whether :func:`judged` says something of it."""
    return isinstance(method, ProximalScore)


def evaluations_per_step(config: Any) -> int:
    """Gradient evaluations that one step of the configured method takes."""
    if config.kind == "proximal_score":
        return config.draws * (2 if config.paired else 1)
    if config.kind == "ensemble":  # a step of every member, if each has the whole budget
        return evaluations_per_step(config.of) * (config.members if config.budget == "each" else 1)
    return getattr(config, "draws", 1)


def conclude(
    method: Any, module: nn.Module, likelihood: Any, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]], rows: int
) -> None:
    """What a method does once at the end of training, if anything.

    Args:
        batches: called for a pass over the training rows.
        rows: their number.
    """
    if hasattr(method, "conclude"):
        method.conclude(module, likelihood, batches, rows)


def shards(config: Any) -> bool:
    """Whether the configured method works on several workers."""
    return config.kind not in ONE_WORKER
