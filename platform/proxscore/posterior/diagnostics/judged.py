"""What the optimizer saw of each tensor, judged: how far precision and mean are from where they should be, and how sure that is.

:mod:`proxscore.posterior.diagnostics.verdict` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxscore.inference import ProximalScore
from proxscore.inference.convergence import Probed

#: Root-mean-square of k - 1: of a tensor that has arrived, and what it must be told from (half the right sds everywhere).
ARRIVED, HALVED = 0.4, 0.75
#: Of the average of k, beyond twice its standard error.
BIASED = 0.2
#: Standard deviations that a mean may be away, and what it must be told from.
NEAR, AWAY = 0.5, 1.0
#: Factor between variances beyond which a single number counts, and share of a tensor's numbers from which on.
ONE_OFF, MANY = 1.5**2, 0.05


@dataclass
class Judged:
    """A tensor or block: S^2 and U^2 with their standard errors, and what else is said of it."""

    probed: Probed
    spread: float
    spread_error: float
    outside: float
    score: float
    score_error: float
    lag: float

    @property
    def precision_off(self) -> bool:
        """Certainly."""
        far = self.spread > ARRIVED**2 and self.spread - 2 * self.spread_error > 0
        return far or self.biased or self.outside > MANY

    @property
    def biased(self) -> bool:
        """All of them alike, by little."""
        k, errors = self.probed.curvature, self.probed.curvature_error
        off, error = abs(k.mean().item() - 1), (2 * errors.square().sum()).sqrt().item() / len(k)
        return off > BIASED and 2 * error < off

    @property
    def precision_told(self) -> bool:
        return self.spread + 2 * self.spread_error < HALVED**2

    @property
    def mean_off(self) -> bool:
        far = self.score > NEAR**2 and self.score - 2 * self.score_error > 0
        return far or self.lag > NEAR

    @property
    def mean_told(self) -> bool:
        return self.score + 2 * self.score_error < AWAY**2


def gathered(optimizer: ProximalScore) -> list[Probed]:
    """What every rank saw of its shards; each shard once."""
    found = list(optimizer.probed())
    sharded = any(isinstance(parameter, DTensor) for _, parameter in optimizer.named_parameters())
    if not (sharded and dist.is_initialized() and dist.get_world_size() > 1):
        return found
    everywhere: list[list[Probed]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, found)
    once = {(probed.name, probed.first): probed for each in everywhere for probed in each if len(probed.curvature)}
    return list(once.values())


def merged(pieces: Iterable[Probed]) -> list[Probed]:
    """Shards of a tensor together."""
    by_name: dict[str, list[Probed]] = {}
    for piece in pieces:
        if len(piece.curvature):
            by_name.setdefault(piece.name, []).append(piece)
    merged = []
    for shards in by_name.values():
        columns: dict[str, Any] = {
            name: torch.cat([getattr(shard, name) for shard in shards])
            for name, value in vars(shards[0]).items()
            if isinstance(value, Tensor) and not name.startswith("square")
        }
        numbers, steps = sum(shard.numbers for shard in shards), max(shard.steps for shard in shards)
        merged.append(replace(shards[0], numbers=numbers, steps=steps, **columns))
    return merged


def judge(p: Probed) -> Judged:
    """A tensor or block with S^2, U^2 and their standard errors."""
    spread, error = _second_moment(p.curvature - 1, p.curvature_error)
    low, high = p.curvature + 3 * p.curvature_error, p.curvature - 3 * p.curvature_error
    outside = ((low < 1 / ONE_OFF) | (high > ONE_OFF)).double().mean().item()
    if p.coarse:
        count = len(p.curvature)
        off = p.curvature.mean() - 1
        noise = p.curvature_error.square().sum().mul(2).sqrt() / count  # numbers of a pair share their noise
        spread, error, outside = off.square().item(), (2 * off.abs() * noise + noise**2).item(), 0.0
    elif p.square is not None and p.square_error is not None:
        side, diagonal = len(p.square), torch.eye(len(p.square), dtype=torch.bool)
        weight = torch.where(diagonal, 1.0, (p.size - 1) / max(side - 1, 1)).double()
        off, noise = p.square - diagonal.double(), p.square_error
        spread = ((off.square() - noise.square()) * weight).sum().item() / side
        variance = (4 * off.square() * noise.square() + 2 * noise**4) * weight**2
        error = (2 * variance.sum()).sqrt().item() / side  # each number off the diagonal stands there twice
        eigenvalues, edge = torch.linalg.eigvalsh(p.square), 2 * (noise.square().mean() * side).sqrt()
        alone = (eigenvalues + 1.5 * edge < 1 / ONE_OFF) | (eigenvalues - 1.5 * edge > ONE_OFF)
        outside = 1.0 if bool(alone.any()) else 0.0
    score, score_error = _second_moment(p.score, p.score_error)
    lag = p.lag.square().mean().sqrt().item()
    return Judged(p, spread, error, outside, score, score_error, lag)


def _second_moment(values: Tensor, errors: Tensor) -> tuple[float, float]:
    """mean_i of values^2 without what their errors add, and its standard error."""
    if not bool((values.isfinite() & errors.isfinite()).all()):
        return math.inf if bool(errors.isfinite().all()) else 0.0, math.inf
    moment = (values.square() - errors.square()).mean().item()
    error = (4 * values.square() * errors.square() + 2 * errors**4).sum().sqrt().item() / len(values)
    return moment, error


def together(unsure: list[Judged], which: str, limit: float) -> bool:
    """Whether tensors that say too little one by one have arrived as a whole."""
    sizes = [float(len(each.probed.curvature)) for each in unsure]
    total = sum(sizes)
    moment = sum(n * getattr(each, which) for n, each in zip(sizes, unsure, strict=True)) / total
    errors = [n * getattr(each, f"{which}_error") for n, each in zip(sizes, unsure, strict=True)]
    error = math.sqrt(sum(value**2 for value in errors)) / total
    arrived = ARRIVED if which == "spread" else NEAR
    return moment < arrived**2 and moment + 2 * error < limit**2


def names_of(judged: list[Judged]) -> str:
    """The names of tensors, in a few words."""
    return some([name for each in judged for name in each.probed.name.split(", ")])


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
