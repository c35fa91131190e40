"""The Gaussian prior of a configuration section, for the parameters of a module."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from proxscore.config import ConfigError, Section
from proxscore.inference import Prior
from proxscore.inference.names import named_parameters, parameter_kinds
from proxscore.inference.priors import Assignment


class PriorConfig(Section):
    """Gaussian prior, by groups of parameters; see ``inference.priors``."""

    scale: Annotated[float, Field(gt=0)] | Literal["fan_in"] = 1.0  # fan_in: sqrt(2 / fan-in), tensor by tensor
    biases: Literal["informative", "flat", "point"] = "informative"
    norms: Literal["informative", "flat", "point"] = "informative"
    scales: dict[str, float] = Field({})  # glob pattern of parameter names -> scale
    # initial: the loaded weights, except the classifier head; the default where task.model has weights.
    mean: Literal["zero", "initial"] = "zero"
    select: str | list[str] = "all"  # all, last_layer, or glob patterns: which parameters are sampled


def prior_of(config: PriorConfig, module: nn.Module) -> Prior:
    """The prior; with ``mean: initial``, its mean is the module's weights as they are."""
    mean: dict[str, Tensor] = {}
    if config.mean == "initial":
        trained = [(name, p.detach().clone()) for name, p in named_parameters(module).items() if p.requires_grad]
        head = trained[-1][0].rpartition(".")[0]  # the classifier is new: its prior mean stays zero
        mean = {name: value for name, value in trained if name.rpartition(".")[0] != head}
    prior = Prior(**config.model_dump(exclude={"mean"}), mean=mean, kinds=parameter_kinds(module))
    return prior.about_start((name, p) for name, p in named_parameters(module).items() if p.requires_grad)


def assigned(prior: Prior, module: nn.Module) -> dict[str, Assignment]:
    """The prior's assignment of each trained parameter, by canonical name.

    Raises:
        ConfigError: a pattern of the prior matches no parameter.
    """
    trained = [(name, p) for name, p in named_parameters(module).items() if p.requires_grad]
    try:
        return prior.assign(trained)
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error
