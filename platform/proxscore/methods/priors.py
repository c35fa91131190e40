"""The Gaussian prior of a configuration section, for the parameters of a module."""

from __future__ import annotations

import glob
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from proxscore.config import ConfigError, Section
from proxscore.inference import Prior
from proxscore.inference.initial import initial_scales
from proxscore.inference.names import classifier_layers, named_parameters, parameter_kinds
from proxscore.inference.priors import Assignment


class PriorConfig(Section):
    """Gaussian prior, by groups of parameters; see ``inference.priors``."""

    scale: Annotated[float, Field(gt=0)] | Literal["fan_in"] = 1.0  # fan_in: sqrt(2 / fan-in), tensor by tensor
    # Informative: as all others; flat: no prior; point: not sampled.
    biases: Literal["informative", "flat", "point"] = "informative"
    norms: Literal["informative", "flat", "point"] = (
        "informative"  # the same for the parameters of normalisation layers
    )
    scales: dict[str, float] = Field({})  # glob pattern of parameter names -> scale
    # With mean=initial, of each tensor but the classifier's: the scale is this fraction of the root mean square of its weights.
    relative_scale: float | None = Field(None, gt=0)
    # initial: the loaded weights, except the classifier head; the default where task.model has weights.
    mean: Literal["zero", "initial"] = "zero"
    select: str | list[str] = "all"  # all, last_layer, or glob patterns: which parameters are sampled


def prior_of(config: PriorConfig, module: nn.Module) -> Prior:
    """The prior; with ``mean: initial``, its mean is the module's weights as they are, but for the classifier, whose is zero.

    Raises:
        ConfigError: ``relative_scale`` without such a mean.
    """
    mean: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    trained = {name: p for name, p in named_parameters(module).items() if p.requires_grad}
    if config.mean == "initial":
        head = classifier(module)
        mean = {name: p.detach().clone() for name, p in trained.items() if name.rpartition(".")[0] not in head}
    if config.relative_scale is not None:
        if config.mean != "initial":
            raise ConfigError(
                f"method.prior.relative_scale={config.relative_scale:g} is relative to the weights that training starts from, "
                "and the prior is about zero: use method.prior.scale, or method.prior.mean=initial"
            )
        scales = {name: config.relative_scale * rms for name, rms in initial_scales(trained).items() if name in mean}
    settings = config.model_dump(exclude={"mean", "relative_scale", "scales"})
    prior = Prior(**settings, scales=_by_pattern(scales) | config.scales, mean=mean, kinds=parameter_kinds(module))
    return prior.about_start(trained.items())


def classifier(module: nn.Module) -> tuple[str, ...]:
    """The names of the layers that give the outputs: timm's classifier, or, where none is named, the last trained layer."""
    trained = [name for name, p in named_parameters(module).items() if p.requires_grad]
    return classifier_layers(module) or (trained[-1].rpartition(".")[0],)


def _by_pattern(scales: dict[str, float]) -> dict[str, float]:
    """Scales by patterns that match these names alone."""
    return {glob.escape(name): scale for name, scale in scales.items()}


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
