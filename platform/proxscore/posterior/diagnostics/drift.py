"""How far the precisions of a posterior moved from where they started, and how near they are to the prior's.

A precision that is still the initial one says nothing about the data, and one that is the prior's says that the data
are silent. Whether they are where they should be, :mod:`proxscore.posterior.diagnostics.verdict` tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.inference import ProximalScore, noise
from proxscore.inference.convergence.block_probes import marginal_log_precision
from proxscore.inference.parts.solved_block import SolvedBlock

#: A number has moved when its precision changed by more than this factor.
MOVED = 1.05
_PROBES = 200


@dataclass(frozen=True)
class Drift:
    """How far the precisions of one parameter tensor are from the initial one, and from the prior's.

    Attributes:
        name: of the parameter.
        numbers: of this rank's shard.
        from_initial: mean of log(precision / initial precision).
        from_prior: mean of log(precision * scale^2), scale of the prior; none for a flat prior.
        moved: fraction of the numbers whose precision differs from the initial one by more than 5 %.
        at_prior: fraction of the numbers whose precision is within 5 % of 1 / scale^2; 0 for a flat prior.
        reach: by how much the log-precision of a number without curvature could have fallen until now; none where the
            gradient solver moves it.
    """

    name: str
    numbers: int
    from_initial: float
    from_prior: float | None
    moved: float
    at_prior: float
    reach: float | None


@torch.no_grad()
def drift(optimizer: ProximalScore) -> list[Drift]:
    """A row for every sampled parameter tensor, in the optimizer's order: mean-field ones first.

    Of parameters that a full-covariance, low-rank or Kronecker family describes together, marginal precisions are
    compared; those of a mixture are of its variances as a whole. Distributions given by code have no row. With sharded
    parameters, rows are of this rank's shards. One pass over the state; no forward passes, no communication.
    """
    priors, starts = optimizer.prior.assign(optimizer.named_parameters()), optimizer.initial_precisions()
    reach = _reach(optimizer)
    rows = []
    for name, precision, solved in _precisions(optimizer):
        if precision.numel():
            rows.append(_row(name, precision, starts[name], priors[name].precision, None if solved else reach))
    return rows


def _precisions(optimizer: ProximalScore) -> Iterator[tuple[str, Tensor, bool]]:
    """Name, (marginal) precisions, and whether the gradient solver moves them."""
    for name, _, state in optimizer.sampled():
        yield name, noise.local(state["precision"]), False
    for block in optimizer.blocks():
        log = marginal_log_precision(block.family, block.state)
        if log is not None:
            for member, piece in zip(block.members, log.exp().split(block.layout.sizes), strict=True):
                yield member.name, piece, isinstance(block, SolvedBlock)


def _row(name: str, precision: Tensor, initial: float, prior: float, reach: float | None) -> Drift:
    log, near = precision.double().log(), math.log(MOVED)
    from_initial = log - math.log(initial)
    from_prior = log - math.log(prior) if prior > 0 else None
    return Drift(
        name,
        precision.numel(),
        from_initial.mean().item(),
        None if from_prior is None else from_prior.mean().item(),
        (from_initial.abs() > near).double().mean().item(),
        0.0 if from_prior is None else (from_prior.abs() < near).double().mean().item(),
        reach,
    )


def _reach(optimizer: ProximalScore) -> float:
    """Sum over the steps taken of -log r for a curvature statistic of zero; from 200 of them where there are more."""
    steps, count = _steps(optimizer), min(_steps(optimizer), _PROBES)
    total = 0.0
    for probe in range(count):
        weight, _ = optimizer.penalty.weights(int((probe + 0.5) * steps / count))
        ratio = optimizer.penalty.precision_ratio(torch.zeros(1, dtype=torch.float64), weight)
        fall = -ratio.log().item()
        total += fall if optimizer.max_log_precision_step is None else min(fall, optimizer.max_log_precision_step)
    return total * steps / max(count, 1)


def _steps(optimizer: ProximalScore) -> int:
    """Steps that were not skipped."""
    group = optimizer.param_groups[0]
    return int(group["step"] - group["skipped"])
