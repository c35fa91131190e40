"""What is watched of blocks of parameters that one family describes together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxscore.inference.convergence.averages import Current, Probed, averaged
from proxscore.inference.convergence.runaway import CHECK_EVERY, refuse_runaway
from proxscore.inference.convergence.watched import KEY, SIDE
from proxscore.inference.convergence.windows import Seen, Windows
from proxscore.inference.families import Family, Mixture, State
from proxscore.inference.families.full_covariance import trust
from proxscore.inference.layout import filled
from proxscore.inference.parts.part import States
from proxscore.inference.step import ProximalStep

if TYPE_CHECKING:
    from proxscore.inference.parts.block import Block

#: The most numbers of a full covariance whose condition number is computed.
LARGEST_FACTORED = 2048


class BlockProbes:
    """Some numbers of a block's vector, and of a full covariance the curvature statistic's matrix for some axes.

    A family that the gradient solver moves has the curvature statistic k = -(theta - m) s-hat of every number (Stein's
    identity: E k = 1 where q is the target), but may not describe each number's variance freely: then only the average of
    all k must be one, as the objective is least in the scale of q. Statistics are saved where the block is whole on every
    rank; of a block over shards, windows begin anew when a run is resumed.
    """

    def __init__(self, block: Block) -> None:
        full = block.family.kind == "full_covariance" and block.closed
        self._block, self.coarse = block, block.family.kind not in ("mean_field", "full_covariance")
        size = block.layout.size
        count = min(size, SIDE if full else 16 * SIDE)
        self.where = torch.arange(count, device=block.prior_precision.device) * size // max(count, 1)
        self.side = count if full else 0
        self.windows = Windows(count, self.side, block.prior_precision)
        sizes = block.layout.sizes
        initial = [member.initial_precision for member in block.members]
        self._sizes, self._initial = sizes, filled(initial, sizes, block.prior_precision)

    def add_closed(self, step: ProximalStep, curvature: Tensor, score: Tensor, before: State, ratio: Tensor) -> None:
        """Add a step of a full covariance, taken from the state ``before``.

        Args:
            curvature: the curvature statistic's matrix.
            score: at the mean, in units of the weights.
            before: the state before the step.
            ratio: the precision ratios of the step.

        Raises:
            RunawayError: numbers left every plausible range.
        """
        self._check(step)
        if not self.windows.watched(step.number):
            return
        factor, limit = before["factor"], trust(step.max_log_precision_step, len(ratio))
        excess = (curvature - torch.eye(len(ratio)).to(curvature)).norm()
        clipped, clipped_mean = excess > limit * step.weights[0], torch.zeros((), dtype=torch.bool)
        move = self._block.anchor["mean"] - before["mean"]
        if step.max_mean_step and step.metric is None:
            white = torch.linalg.solve(factor, move)
            clipped_mean = white.norm() >= 0.999 * step.max_mean_step * math.sqrt(len(white))
        elif step.max_mean_step:
            clipped_mean = (move.abs() >= 0.999 * step.max_mean_step).any()
        k = curvature if self.side else curvature.diagonal()
        self._add(k, factor.mT @ score, before, clipped, clipped_mean)

    def add_solved(self, step: ProximalStep, draws: list[tuple[Tensor, Tensor]]) -> None:
        """Add a step of the gradient solver; ``draws``: the score and the distance from the mean of each of its draws, (D,).

        Raises:
            RunawayError: numbers left every plausible range.
        """
        if not draws or marginal_log_precision(self._block.family, self._block.anchor) is None:
            return
        self._check(step)
        if not self.windows.watched(step.number):
            return
        state = self._block.state
        score, offset = (torch.stack(each) for each in zip(*draws, strict=True))
        log = marginal_log_precision(self._block.family, state)
        assert log is not None
        no = torch.zeros((), dtype=torch.bool)
        self._add(-(score * offset).mean(0), score.mean(0) * (-0.5 * log).exp(), state, no, no)

    def _check(self, step: ProximalStep) -> None:
        """Refuse a posterior that has left every plausible range, in the steps that are checked."""
        block = self._block
        mean, log = block.family.mean(block.anchor), marginal_log_precision(block.family, block.anchor)
        if log is not None and (mean.device.type == "cpu" or step.number % CHECK_EVERY == 0):
            names = [member.name for member in block.members]
            refuse_runaway(names, self._sizes, log, block.prior_precision, self._initial, mean)

    def _add(self, k: Tensor, score: Tensor, before: State, clipped: Tensor, clipped_mean: Tensor) -> None:
        family, at = self._block.family, self.where
        square = k[at[:, None], at[None]] if self.side else None
        log, k = marginal_log_precision(family, before), k[at] if square is None else square.diagonal()
        assert log is not None
        cut, cut_mean = (torch.ones_like(k) * each.to(k) for each in (clipped, clipped_mean))
        self.windows.add(Seen(k, score[at], family.mean(before)[at], log[at], cut, cut_mean, False, square))

    def probed(self, state: States, momentum: float) -> Iterator[Probed]:
        """The averages of the block, unless its family has no variances in closed form."""
        block = self._block
        log = marginal_log_precision(block.family, block.state)
        if log is None:
            return
        at = self.where
        now = Current(block.family.mean(block.state)[at], log[at], block.prior_precision[at], block.prior_mean[at])
        name = ", ".join(member.name for member in block.members)
        found = averaged(
            name, block.layout.size, 0, self.windows.sums, now, self.windows.spacing, momentum, own_scale=False
        )
        found.coarse, found.size = self.coarse, block.layout.size
        if block.layout.local:
            found.first = block.members[0].start
        if self.side:
            total, squares = self.windows.squares.double().sum(0).cpu()
            count = max(found.steps, 1.0)
            if found.size <= LARGEST_FACTORED:
                found.condition = torch.linalg.cond(block.state["factor"].double()).item() ** 2
            found.square = total / count
            found.square_error = ((squares / count - found.square**2).clamp_min(0) / max(count - 1, 1)).sqrt()
        yield found

    def save(self, state: States) -> None:
        """Write the sums into the optimizer's state, unless the block is cut into shards."""
        if not self._block.layout.local:
            state[self._block.members[0].parameter][KEY] = self.windows.as_vector()

    def load(self, state: States, age: int) -> None:
        """Read the sums from the optimizer's state after ``age`` steps; where there are none, windows begin anew."""
        held = state[self._block.members[0].parameter].get(KEY)
        self.windows.load_vector(None if self._block.layout.local else held)
        self.windows.resume(age)


def marginal_log_precision(family: Family, state: State) -> Tensor | None:
    """The logarithm of 1 / variance of every number, (D,); none for families that are given by code."""
    if family.kind == "mean_field":
        return state["precision"].log()
    if family.kind in ("full_covariance", "low_rank", "kronecker"):
        return -family.variance(state).log()
    if isinstance(family, Mixture):
        weights = state["means"].new_tensor(family.weights)
        second = (state["precisions"].reciprocal() + state["means"].square()) @ weights
        return -(second - (state["means"] @ weights).square()).log()
    return None
