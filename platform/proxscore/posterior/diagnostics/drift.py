"""Whether the precisions of a posterior moved: away from where they started, and to the prior's.

A precision that is still the initial one says nothing about the data, and one that is the prior's says that the data
are silent. Both happen unnoticed: the network predicts well from its mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.inference import ProximalScore, noise
from proxscore.inference.blocks import Block, SolvedBlock

#: A number has moved when its precision changed by more than this factor.
MOVED = 1.05
#: Share of a tensor's numbers that have to be alike for a message.
MOST = 0.95
#: A precision that stays within 5 % although a number without curvature would have fallen by exp(-0.25) has a curvature
#: within 0.05 / 0.25 = 20 % of it: it started at its optimum.
LEAST_REACH = 0.25
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

    @property
    def stuck(self) -> bool:
        """Still at the initial precision, and not because that is the right one."""
        return 1 - self.moved >= MOST and (self.reach is None or self.reach < LEAST_REACH)

    @property
    def collapsed(self) -> bool:
        """At the prior's precision; not when it started there and could not move."""
        return self.at_prior >= MOST and not self.stuck


@torch.no_grad()
def drift(optimizer: ProximalScore) -> list[Drift]:
    """A row for every sampled parameter tensor, in the optimizer's order: mean-field ones first.

    Of parameters that a full-covariance, low-rank or Kronecker family describes together, marginal precisions are
    compared. Mixtures and distributions given by code have no row. With sharded parameters, rows are of this rank's
    shards. One pass over the state; no forward passes, no communication.
    """
    priors, starts = optimizer.prior.assign(optimizer.named_parameters()), optimizer.initial_precisions()
    reach = _reach(optimizer)
    rows = []
    for name, precision, solved in _precisions(optimizer):
        if precision.numel():
            rows.append(_row(name, precision, starts[name], priors[name].precision, None if solved else reach))
    return rows


def stuck(optimizer: ProximalScore) -> list[str]:
    """Warnings with advice, at most one line for each problem; none for a healthy posterior or before the first step.

    * Still at the initial precision: at least 95 % of a tensor's precisions moved by less than 5 %, although the
      penalty let so little movement happen that this says nothing about the curvature.
    * Collapsed to the prior: at least 95 % of a tensor's precisions are within 5 % of 1 / scale^2.
    """
    steps = _steps(optimizer)
    if steps == 0:
        return []
    rows = drift(optimizer)
    unmoved, collapsed = [row for row in rows if row.stuck], [row for row in rows if row.collapsed]
    messages = []
    if unmoved:
        reach, share = unmoved[0].reach, _percent(unmoved, [1 - row.moved for row in unmoved])
        most = "" if reach is None else f", which lets a precision fall by at most {-100 * math.expm1(-reach):.2g} %"
        messages.append(
            f"posterior of {_names(unmoved)} is still at its initial precision ({share} of the numbers moved by less than "
            f"5 % over {steps:,} steps): lower penalty.precision (now {optimizer.penalty.precision:g}{most}) or train longer"
        )
    if collapsed:
        share = _percent(collapsed, [row.at_prior for row in collapsed])
        messages.append(
            f"posterior of {_names(collapsed)} has collapsed to the prior ({share} of the numbers have a precision within "
            f"5 % of 1/scale^2): the data say nothing there at temperature {optimizer.temperature:g}; widen the prior "
            "(prior.scales), lower the temperature, or take point estimates (prior.point)"
        )
    return messages


def _precisions(optimizer: ProximalScore) -> Iterator[tuple[str, Tensor, bool]]:
    """Name, (marginal) precisions, and whether the gradient solver moves them."""
    for name, _, state in optimizer.sampled():
        yield name, noise.local(state["precision"]), False
    for block in optimizer.blocks():
        precision = _marginal_precision(block)
        if precision is not None:
            for member, piece in zip(block.members, precision.split(block.layout.sizes), strict=True):
                yield member.name, piece, isinstance(block, SolvedBlock)


def _marginal_precision(block: Block) -> Tensor | None:
    state, kind = block.state, block.family.kind
    if kind == "mean_field":
        return state["precision"]
    if kind == "full_covariance":
        return 1 / state["factor"].square().sum(1)
    if kind == "low_rank":
        return 1 / (state["variance"] + state["factor"].square().sum(1))
    if kind == "kronecker":
        return 1 / torch.outer(*(state[side].square().sum(1) for side in ("rows", "columns"))).reshape(-1)
    return None


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
        (ratio,) = optimizer.penalty.precision_ratio_([torch.zeros(1, dtype=torch.float64)], weight)
        fall = -ratio.log().item()
        total += fall if optimizer.max_log_precision_step is None else min(fall, optimizer.max_log_precision_step)
    return total * steps / max(count, 1)


def _steps(optimizer: ProximalScore) -> int:
    """Steps that were not skipped."""
    group = optimizer.param_groups[0]
    return int(group["step"] - group["skipped"])


def _names(rows: list[Drift]) -> str:
    names = [row.name for row in rows]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _percent(rows: list[Drift], fractions: list[float]) -> str:
    """Of all the rows' numbers."""
    share = sum(f * row.numbers for f, row in zip(fractions, rows, strict=True)) / sum(row.numbers for row in rows)
    return f"{100 * share:.0f} %"
