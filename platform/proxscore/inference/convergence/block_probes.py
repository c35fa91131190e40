"""Probes of blocks of parameters that one family describes together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxscore.inference.convergence.averages import Now, Probed, probed
from proxscore.inference.convergence.runaway import CHECKED, check
from proxscore.inference.convergence.watched import KEY, SIDE
from proxscore.inference.convergence.windows import Seen, Windows
from proxscore.inference.families import Family, Mixture, State
from proxscore.inference.families.full_covariance import trust
from proxscore.inference.layout import filled
from proxscore.inference.parts.part import States
from proxscore.inference.step import ProximalStep

if TYPE_CHECKING:
    from proxscore.inference.parts.block import Block

LARGEST_FACTORED = 2048  # numbers of a covariance whose condition is told


class BlockProbes:
    """Of a block: some of its vector's numbers, and for a full covariance its statistic's matrix on some axes.

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
        """A full covariance's step from ``before``: the statistic's matrix, and the score, in units of the weights.

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
        """A step of the gradient solver, after draws with these scores and distances from the mean, (D,) each.

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
        block = self._block
        mean, log = block.family.mean(block.anchor), marginal_log_precision(block.family, block.anchor)
        if log is not None and (mean.device.type == "cpu" or step.number % CHECKED == 0):
            names = [member.name for member in block.members]
            check(names, self._sizes, log, block.prior_precision, self._initial, mean)

    def _add(self, k: Tensor, score: Tensor, before: State, clipped: Tensor, clipped_mean: Tensor) -> None:
        family, at = self._block.family, self.where
        square = k[at[:, None], at[None]] if self.side else None
        log, k = marginal_log_precision(family, before), k[at] if square is None else square.diagonal()
        assert log is not None
        one = torch.ones_like(k)
        self.windows.add(
            Seen(
                k,
                score[at],
                family.mean(before)[at],
                log[at],
                one * clipped.to(one),
                one * clipped_mean.to(one),
                own_scale=False,
                square=square,
            )
        )

    def probed(self, state: States, momentum: float) -> Iterator[Probed]:
        """One for the whole block."""
        block = self._block
        log = marginal_log_precision(block.family, block.state)
        if log is None:
            return
        at = self.where
        now = Now(block.family.mean(block.state)[at], log[at], block.prior_precision[at], block.prior_mean[at])
        name = ", ".join(member.name for member in block.members)
        found = probed(
            name, block.layout.size, 0, self.windows.sums, now, self.windows.every, momentum, own_scale=False
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
        if not self._block.layout.local:
            state[self._block.members[0].parameter][KEY] = self.windows.flat()

    def load(self, state: States, age: int) -> None:
        held = state[self._block.members[0].parameter].get(KEY)
        self.windows.fill(None if self._block.layout.local else held)
        self.windows.at(age)


def marginal_log_precision(family: Family, state: State) -> Tensor | None:
    """Logarithms of 1 / variance of every number, (D,); none for families that are given by code."""
    match family.kind:
        case "mean_field":
            return state["precision"].log()
        case "full_covariance":
            return -state["factor"].square().sum(1).log()
        case "low_rank":
            return -(state["variance"] + state["factor"].square().sum(1)).log()
        case "kronecker":
            return -torch.outer(*(state[side].square().sum(1) for side in ("rows", "columns"))).reshape(-1).log()
    if isinstance(family, Mixture):
        weights = state["means"].new_tensor(family.weights)
        second = (state["precisions"].reciprocal() + state["means"].square()) @ weights
        return -(second - (state["means"] @ weights).square()).log()
    return None
