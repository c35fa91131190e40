"""Blocks that take stochastic gradient steps on the objective (:mod:`proxscore.inference.solver`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxscore.inference.families import Family, State
from proxscore.inference.members import Member
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts.block import Block
from proxscore.inference.parts.part import States
from proxscore.inference.penalties import Penalty
from proxscore.inference.solver import GradientSolver, check_penalty, penalty_value
from proxscore.inference.step import Draw, ProximalStep


class SolvedBlock(Block):
    """A block that the gradient solver moves: the anchor, and a candidate until the anchor follows it.

    The candidate is what ``leaves`` (free numbers of order one) make of the anchor. Checkpoint: both, the inner optimizer's
    state, and the number of inner steps.

    Raises:
        ValueError: the penalty has no form for this family.
    """

    def __init__(
        self, family: Family, members: list[Member], seed: int, solver: GradientSolver, penalty: Penalty
    ) -> None:
        super().__init__(family, members, seed)
        check_penalty(penalty, family)
        self.solver = solver
        self._seen: list[tuple[Tensor, Tensor]] = []  # of this step's draws: score, and weights - mean
        #: The score-matching loss, averaged over the draws of the last step.
        self.loss = torch.zeros(())
        self._steps = torch.zeros((), dtype=torch.int64)
        self._leaves = {name: v.requires_grad_() for name, v in family.parameters(self.anchor).items()}
        self._optimizer = solver.build(self._leaves.values())

    @property
    def _inner(self) -> int:
        """How many inner steps were taken since the anchor moved."""
        return int(self._steps) % self.solver.inner_steps

    @property
    def state(self) -> State:
        """The current distribution: the candidate within an anchor's inner steps, else the anchor."""
        if self._inner == 0:
            return self.anchor
        with torch.no_grad():
            return self.family.candidate(self.anchor, {name: leaf.detach() for name, leaf in self._leaves.items()})

    @torch.enable_grad()
    def _take(self, draw: Draw, gradients: list[Tensor], weights: list[Tensor]) -> None:
        """Add the gradient of the score-matching loss of a draw or pair to the candidate's parameters."""
        total, candidate = self.layout.total, self.family.candidate(self.anchor, self._leaves)
        losses = []
        for target, at in zip(self._target_scores(gradients, weights, draw), weights, strict=True):
            losses.append(0.5 * self.family.norm(self.anchor, self.family.score(candidate, at, total) - target, total))
            self._seen.append((target.detach(), at - self.family.mean(self.anchor)))
        loss = torch.stack(losses).mean() / draw.draws
        self.loss = loss.detach().clone() if draw.first else self.loss + loss.detach()
        (loss / self.layout.ranks).backward()

    def taken(self) -> list[Tensor]:
        return [leaf.grad for leaf in self._leaves.values() if leaf.grad is not None] + [self.loss]

    def step(self, step: ProximalStep, monitor: Monitor | None) -> None:
        """Take an inner step on the candidate; after the last one the anchor moves there."""
        if self._inner > 0:  # at the anchor itself, the penalty's gradient is zero
            with torch.enable_grad():
                mirrored = [self._weights(step.seed, sign) for sign in (1.0, -1.0)]
                penalty = penalty_value(
                    step.penalty, self.family, self.anchor, self._leaves, step.weights, mirrored, self.layout.total
                )
                if penalty is not None:
                    (penalty / self.layout.ranks).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = self.solver.lr * step.factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        if self._inner == 0:
            for name, value in self.family.candidate(self.anchor, self._leaves).items():
                self.anchor[name].copy_(value)
            self._reset_leaves()
        self._new = False
        self.restore()
        self.probes.add_solved(step, self._seen)
        self._seen = []

    def _reset_leaves(self) -> None:
        with torch.no_grad():
            for name, value in self.family.parameters(self.anchor).items():
                self._leaves[name].copy_(value)

    def begin(self, state: States) -> None:
        super().begin(state)
        if self._new:
            self._reset_leaves()

    def forget(self) -> None:
        self._first, self._seen = None, []
        self._optimizer.zero_grad()

    def load(self, state: States) -> None:
        if not self._optimizer.state:
            for name, values in self._state_after_a_step().items():
                self._optimizer.state[self._leaves[name]] = values
        super().load(state)
        if self._steps == 0:
            self._optimizer.state.clear()
        self.forget()

    def entries(self) -> dict[str, Tensor]:
        found = {f"block.{name}": value for name, value in self.anchor.items()} | {"solver_steps": self._steps}
        # Before the first step the optimizer has no state; a checkpoint that is loaded then finds its place by it.
        inner = {name: self._optimizer.state[leaf] for name, leaf in self._leaves.items() if self._optimizer.state}
        for name, values in (inner or self._state_after_a_step()).items():
            found[f"solver.{name}"] = self._leaves[name].detach()
            found |= {f"solver.{name}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
        return found

    def _state_after_a_step(self) -> dict[str, dict[str, Any]]:
        """The names and shapes of an inner optimizer's state, which it makes in its first step."""
        leaves = {name: torch.zeros_like(leaf, requires_grad=True) for name, leaf in self._leaves.items()}
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)
        twin = self.solver.build(leaves.values())
        twin.step()
        return {name: twin.state[leaf] for name, leaf in leaves.items()}
