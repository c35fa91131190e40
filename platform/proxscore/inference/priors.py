"""The Gaussian prior, and which parameters are random at all."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from torch import Tensor

from proxscore.inference.names import Kind, kinds_by_name

#: Logarithms of noise levels: their prior is flat unless ``scales`` names them, as no level is more likely for being near 1.
NOISE = "*log_noise"

Treatment = Literal["informative", "flat", "point"]


@dataclass(frozen=True)
class Assignment:
    """What the prior says of one parameter: is it sampled, with which prior precision (1/scale^2; 0: flat)?"""

    sampled: bool
    precision: float


@dataclass(frozen=True)
class Prior:
    """Independent Gaussian prior p(theta) = N(mean, scale^2), and the selection of the parameters that are sampled.

    A parameter that is not sampled is a point estimate: trained with the rest, by Adam, on the same scores.

    Args:
        scale: standard deviation, in units of the weights; infinite: flat. See also :meth:`flat`. ``fan_in``: sqrt(2 / fan-in)
            for each tensor with a fan-in (its numbers per entry of the first axis), which keeps the variance of activations
            from layer to layer (He et al. 2015, 1502.01852), and one for vectors.
        scales: glob pattern of parameter names -> scale, for groups of parameters; the last match counts. Without one,
            ``*log_noise`` is flat.
        biases: ``informative`` (as weights), ``flat`` (precision zero) or ``point`` (not sampled).
        norms: the same for the scales and shifts of normalisation layers, and for other vectors that are no biases, such as
            layer scales.
        kinds: which parameters are biases and norms, as :func:`proxscore.inference.names.parameter_kinds` finds from a
            module. Of those that are not listed, names and shapes decide: a layer whose ``weight`` is a vector normalises.
        mean: prior mean by parameter name, for example pretrained weights; zero where none is given, except that of norms,
            which :meth:`about_start` fills in.
        select: ``all``, ``last_layer`` (the module of the last parameter that is not ``point``), or glob patterns: what may
            be sampled.
        point: glob patterns of parameters that are never sampled.

    Raises:
        ValueError: a scale that is not positive, an unknown treatment, or (in :meth:`assign`) a pattern that matches
            no parameter.
    """

    scale: float | Literal["fan_in"] = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)
    biases: Treatment = "informative"
    norms: Treatment = "informative"
    mean: Mapping[str, Tensor] = field(default_factory=dict)
    select: str | Sequence[str] = "all"
    point: Sequence[str] = (NOISE,)
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, scale in [("scale", self.scale), *((f"scales[{p!r}]", s) for p, s in self.scales.items())]:
            if isinstance(scale, str) and (label, scale) != ("scale", "fan_in"):
                raise ValueError(f"prior.{label} is {scale!r}; it must be a number, or scale=fan_in")
            if not isinstance(scale, str) and not scale > 0:
                raise ValueError(f"prior.{label} is {scale}; it must be positive")
        for label in ("biases", "norms"):
            if getattr(self, label) not in ("informative", "flat", "point"):
                raise ValueError(f"prior.{label} is {getattr(self, label)!r}; it must be informative, flat or point")

    @classmethod
    def flat(cls, **settings: Any) -> Self:
        """The improper flat prior everywhere: precision 0.

        What the data leave open then stays improper: such a coordinate's precision falls for as long as the run lasts.

        Args:
            settings: what has nothing to do with a scale: ``select``, ``point``, ``kinds``.
        """
        return cls(scale=math.inf, **settings)

    def assign(self, parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Assignment]:
        """The prior's word on each (name, parameter), by name and shape."""
        named = dict(parameters)
        fans = {name: math.prod(parameter.shape[1:]) for name, parameter in named.items()}
        shapes = {name: parameter.ndim for name, parameter in named.items()}
        kinds = kinds_by_name(shapes) | dict(self.kinds)
        selected = self._selected(list(shapes))
        for pattern in self.scales:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in shapes):
                raise ValueError(f"prior.scales: the pattern {pattern!r} matches no parameter")
        return {name: self._assign(name, kinds[name], name in selected, fans[name]) for name in shapes}

    def about_start(self, parameters: Iterable[tuple[str, Tensor]]) -> Prior:
        """The same prior, with the means of normalisations' scales that have none at their present values, those of the start.

        They are one there, and a prior mean of zero would pull towards a layer that is switched off. They are the norms
        that a layer calls ``weight``, ``gamma`` or ``scale``.
        :class:`proxscore.inference.ProximalScore` calls this; its attribute ``prior`` is the result.
        """
        named = dict(parameters)
        kinds = kinds_by_name({name: parameter.ndim for name, parameter in named.items()}) | dict(self.kinds)
        scales = [name for name in named if kinds[name] == "norm" and name.endswith((".weight", ".gamma", ".scale"))]
        return replace(self, mean={name: named[name].detach().clone() for name in scales} | dict(self.mean))

    def _assign(self, name: str, kind: Kind, selected: bool, fan_in: int) -> Assignment:
        treatment = {"bias": self.biases, "norm": self.norms}.get(kind, "informative")
        sampled = selected and treatment != "point" and not self._never(name)
        precision = self._precision(name, fan_in) if treatment == "informative" else 0.0
        return Assignment(sampled, precision)

    def _never(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.point)

    def _precision(self, name: str, fan_in: int) -> float:
        matches = [scale for pattern, scale in self.scales.items() if fnmatch.fnmatchcase(name, pattern)]
        general = math.sqrt(2 / max(fan_in, 2)) if isinstance(self.scale, str) else self.scale
        scale = math.inf if fnmatch.fnmatchcase(name, NOISE) else general
        return (matches[-1] if matches else scale) ** -2

    def _selected(self, names: list[str]) -> set[str]:
        if self.select == "all":
            return set(names)
        if self.select == "last_layer":
            layer, _, _ = [name for name in names if not self._never(name)][-1].rpartition(".")
            return {name for name in names if name.rpartition(".")[0] == layer}
        chosen: set[str] = set()
        for pattern in [self.select] if isinstance(self.select, str) else self.select:
            matches = set(fnmatch.filter(names, pattern))
            if not matches:
                raise ValueError(
                    f"prior.select: the pattern {pattern!r} matches no parameter, for example {names[0]!r}"
                )
            chosen |= matches
        return chosen
