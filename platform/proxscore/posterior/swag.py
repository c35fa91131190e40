"""The Gaussian of SWAG: a diagonal, and deviations of snapshots from their mean.

    theta = m + sqrt(v / 2) z1 + D z2 / sqrt(2 (K - 1)),    z1 ~ N(0, I_P),  z2 ~ N(0, I_K)

with v the diagonal variance and D the K columns of deviations. Maddox et al., A simple baseline for Bayesian uncertainty in
deep learning, arXiv 1902.02476, equation (1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.inference import noise
from proxscore.posterior.posterior import WEIGHTS_FILE, Joint, Posterior


@dataclass
class SWAGPosterior(Posterior):
    """Low rank plus diagonal over all weights together. ``precision`` is that of the diagonal part of a draw: 2 / v.

    Args:
        deviations: the columns of D, each by parameter name and shaped (and sharded) as the parameters.
    """

    kind = "swag"
    deviations: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def family(self) -> str:
        return self.kind

    def _together_(self, targets: Mapping[str, Tensor], index: int, seed: int) -> None:
        super()._together_(targets, index, seed)
        generator = torch.Generator().manual_seed(noise.key(seed, "posterior", index, "deviations") >> 1)
        count = len(self.deviations)
        if count < 2:
            raise ConfigError(f"a SWAG posterior has {count} deviation(s), and its variance needs two or more")
        factors = torch.randn(count, generator=generator) / math.sqrt(2 * (count - 1))
        for factor, deviation in zip(factors.tolist(), self.deviations, strict=True):
            for name, column in deviation.items():
                target = noise.local(targets[name])
                target.add_(noise.local(column).to(target), alpha=factor)

    def _variances(self) -> dict[str, Tensor]:
        found = super()._variances()
        for deviation in self.deviations:
            for name, column in deviation.items():
                found[name] = found[name] + column.square() / (2 * (len(self.deviations) - 1))
        return found

    def _covariance(self, at: Mapping[str, slice]) -> Tensor:
        result = super()._covariance(at)
        columns = result.new_zeros(len(result), len(self.deviations))
        for index, deviation in enumerate(self.deviations):
            for name, place in at.items():
                if name in deviation:
                    columns[place, index] = deviation[name].reshape(-1).to(result)
        return result + columns @ columns.mT / (2 * (len(self.deviations) - 1))

    def _with_tensors(self, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> Posterior:
        changed = super()._with_tensors(change)
        assert isinstance(changed, SWAGPosterior)
        return replace(changed, deviations=[change(deviation) for deviation in self.deviations])

    def groups(self) -> dict[str, dict[str, Tensor]]:
        return super().groups() | {f"deviation-{k}": deviation for k, deviation in enumerate(self.deviations)}

    @classmethod
    def from_groups(
        cls, folder: Path, description: dict[str, Any], groups: dict[str, dict[str, Tensor]], joint: list[Joint]
    ) -> Posterior:
        deviations: list[dict[str, Tensor]] = []
        while (key := f"deviation-{len(deviations)}") in groups:
            deviations.append(groups.pop(key))
        if len(deviations) < 2:
            raise ConfigError(
                f"{folder / WEIGHTS_FILE}: {len(deviations)} deviation(s); SWAG's variance needs two or more"
            )
        found = super().from_groups(folder, description, groups, joint)
        assert isinstance(found, SWAGPosterior)
        return replace(found, deviations=deviations)
