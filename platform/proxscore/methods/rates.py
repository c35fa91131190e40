"""Learning rates by layer: factors by names of parameters, and by depth.

A parameter's learning rate is the method's, times the factor of the last pattern of ``lr_scales`` that matches its name, times
layer_decay^(L - l) for a parameter of layer l of a network with L (timm's groups: the stem is 0, the classifier L). Clark et al.,
ELECTRA, arXiv 2003.10555, and BEiT, arXiv 2106.08254, fine-tune so.

In place of a pattern, ``body`` is everything but the classifier, whatever a network calls it: ``lr_scales={"body": 0.01}``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from proxscore.config import ConfigError, MethodSection
from proxscore.inference.names import named_parameters
from proxscore.methods.priors import classifier

#: Everything but the classifier.
BODY = "body"


class LayerwiseRates(MethodSection):
    """A method whose learning rate may differ from layer to layer."""

    # Glob pattern of parameter names, or body (all but the classifier) -> factor on their learning rate; the last match counts.
    lr_scales: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    layer_decay: float = Field(
        1.0, gt=0, le=1
    )  # factor on the learning rate for each layer further from the classifier

    def rated(self, module: nn.Module, lr: float) -> list[Any]:
        """What an optimizer takes for its parameters: groups with a learning rate each, or, of one rate, named parameters.

        Args:
            lr: the method's.

        Raises:
            ConfigError: a pattern matches no parameter, or the network does not tell its layers' depths.
        """
        if not self.lr_scales and self.layer_decay == 1:
            return list(module.named_parameters())
        groups: dict[float, list[tuple[str, Tensor]]] = {}
        for name, (parameter, factor) in factors(self, module).items():
            groups.setdefault(factor, []).append((name, parameter))
        return [{"params": members, "lr": factor * lr} for factor, members in groups.items()]


def factors(section: LayerwiseRates, module: nn.Module) -> dict[str, tuple[Tensor, float]]:
    """Each trained parameter by name, and the factor on its learning rate.

    Raises:
        ConfigError: as :meth:`LayerwiseRates.rated`.
    """
    scales = section.lr_scales
    trained = {name: p for name, p in named_parameters(module).items() if p.requires_grad}
    matches = {pattern: _matching(module, list(trained), pattern) for pattern in scales}
    for pattern, names in matches.items():
        if not names:
            raise ConfigError(
                f"method.lr_scales: the pattern {pattern!r} matches no trained parameter, for example {next(iter(trained))!r}"
            )
    depth = _depths(module, trained, section.layer_decay)
    found: dict[str, tuple[Tensor, float]] = {}
    for name, parameter in trained.items():
        matching = [scales[pattern] for pattern, names in matches.items() if name in names]
        found[name] = (parameter, (matching[-1] if matching else 1.0) * depth[name])
    return found


def _matching(module: nn.Module, names: list[str], pattern: str) -> set[str]:
    """The parameters of these that a pattern is about."""
    if pattern == BODY:
        head = classifier(module)
        return {name for name in names if name.rpartition(".")[0] not in head}
    return {name for name in names if fnmatch.fnmatchcase(name, pattern)}


def _depths(module: nn.Module, trained: Mapping[str, Tensor], decay: float) -> dict[str, float]:
    """layer_decay^(L - l) of each parameter."""
    if decay == 1:
        return dict.fromkeys(trained, 1.0)
    if not hasattr(module, "group_matcher"):
        raise ConfigError(
            f"method.layer_decay={decay:g}: {type(module).__name__} does not tell its layers' depths (timm's group_matcher): "
            "use method.lr_scales"
        )
    from timm.optim import param_groups_layer_decay  # takes a second

    grouped = param_groups_layer_decay(module, layer_decay=decay)
    scale = {id(parameter): group["lr_scale"] for group in grouped for parameter in group["params"]}
    return {name: scale[id(parameter)] for name, parameter in trained.items()}
