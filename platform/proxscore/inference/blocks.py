"""Blocks: parameters that one family describes together, in training.

The optimizer's fast path (mean-field, closed form) needs none of this: it works in place on buckets of shards. A block
flattens its parameters into one vector (:mod:`proxscore.inference.layout`), and takes its proximal step in the family's
closed form (:class:`~proxscore.inference.families.base.ClosedForm`) or by :mod:`proxscore.inference.solver`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.families import ClosedForm, Family, State
from proxscore.inference.layout import Layout, empty
from proxscore.inference.penalties import Penalty
from proxscore.inference.priors import Assignment
from proxscore.inference.solver import GradientSolver, check_penalty, penalty_value


@dataclass
class Member:
    """A parameter of a block: its name, its prior, and where its shard lies in the flattened whole."""

    name: str
    parameter: Tensor
    prior: Assignment
    start: int
    prior_mean: Tensor | None = None


class Block:
    """A block in training: its anchor, its candidate, and the draws' statistics since the last step.

    Args:
        family, members: what describes what.
        precision: initial precision of each member's numbers.
        seed: of the initial state's noise.
        solver: the gradient solver's settings; none: the closed form.

    Raises:
        ValueError: the family cannot describe these parameters; names the first.
    """

    def __init__(
        self,
        family: Family,
        members: list[Member],
        precision: list[float],
        seed: int,
        solver: GradientSolver | None,
        penalty: Penalty,
    ) -> None:
        self.family, self.members, self.solver, self.penalty = family, members, solver, penalty
        count = sum(member.parameter.numel() for member in members)
        for member in members if family.per_parameter else members[:1]:
            family.check(member.name, member.parameter.shape, count)
        self.layout = Layout(family, [(m.name, m.parameter, m.start) for m in members])
        mean = self.layout.vector(member.parameter for member in members)
        self._prior_precision = self._rows([member.prior.precision for member in members], mean)
        self._prior_mean = torch.zeros_like(mean)
        for member, piece in zip(members, self._prior_mean.split(self.layout.sizes), strict=True):
            if member.prior_mean is not None:
                first = member.start if self.layout.local else 0
                piece.copy_(member.prior_mean.reshape(-1)[first : first + len(piece)])
        self.anchor = family.initial(
            mean, self._rows(precision, mean), self.layout.shape, lambda j: self.layout.normal(seed, "initial", j)
        )
        self._score = torch.zeros_like(mean)  # closed form: running mean of the likelihood's gradient
        self._curvature: Tensor | None = None
        self._first: Tensor | None = None
        self._taken = self._inner = 0
        self.loss = 0.0
        if solver is not None:
            check_penalty(penalty, family)
            self._start(solver)
            self._prepare(solver)

    def _rows(self, values: list[float], like: Tensor) -> Tensor:
        return torch.cat([like.new_full((size,), value) for size, value in zip(self.layout.sizes, values, strict=True)])

    # ------------------------------------------------------------ draws

    def sample(self, sign: float, *words: int | str) -> None:
        """Put a draw from the anchor into the weights."""
        self.layout.put(self.layout.draw(self.anchor, sign, *words), (m.parameter for m in self.members))

    def restore(self) -> None:
        """Put the mean into the weights."""
        self.layout.put(self.family.mean(self.state), (m.parameter for m in self.members))

    def take(self, sign: float, paired: bool, scale: float, momentum: float, draws: int, *words: int | str) -> None:
        """Read the gradients of the mean negative log-likelihood at the draw that is in the weights, and clear them.

        Args:
            sign: 1 for the first draw of a pair, or a single one; -1 for the second.
            scale: data size / temperature.
            draws: of this step.
            words: what the draw was seeded with.
        """
        gradients = []
        for member in self.members:
            assert member.parameter.grad is not None
            gradients.append(member.parameter.grad)
        gradient = self.layout.vector(gradients)
        for each in gradients:  # cleared, not dropped: the second backward of a pair adds to them
            noise.local(each).zero_()
        if paired and sign > 0:
            self._first = gradient
            return
        gradients = [gradient] if self._first is None else [self._first, gradient]
        self._first = None
        if self.solver is None:
            self._statistics(gradients, scale, momentum, draws, words)
        else:
            self._descend(gradients, scale, draws, words)
        self._taken += 1

    def _target_score(self, gradient: Tensor, draw: Tensor, scale: float) -> Tensor:
        return -scale * gradient - self._prior_precision * (draw - self._prior_mean)

    def _statistics(
        self, gradients: list[Tensor], scale: float, momentum: float, draws: int, words: tuple[int | str, ...]
    ) -> None:
        assert isinstance(self.family, ClosedForm)
        self._score.mul_(momentum if self._taken == 0 else 1.0)
        self._score.add_(sum(gradients) / len(gradients), alpha=(1 - momentum) / draws)
        scores = [-scale * gradient for gradient in gradients]
        if len(gradients) == 2:
            draw = [self.layout.draw(self.anchor, sign, *words) for sign in (1.0, -1.0)]
            scores = [self._target_score(g, d, scale) for g, d in zip(gradients, draw, strict=True)]
        curvature = self.family.curvature(self.anchor, self.layout.normal(*words), scores, self._prior_precision)
        self._curvature = curvature / draws if self._curvature is None else self._curvature + curvature / draws

    # ------------------------------------------------------------ the step

    def step(
        self,
        penalty: Penalty,
        weights: tuple[float, float],
        score_scale: float,
        max_log_ratio: float | None,
        max_mean_step: float | None,
        factor: float,
    ) -> None:
        """The proximal step, from what was taken; or one inner step of the gradient solver.

        Args:
            weights: proximal weights (precision, mean) in force.
            score_scale: what the running gradient is multiplied with to be the likelihood's part of the score.
            factor: of the mean's schedule.
        """
        if self.solver is None:
            assert isinstance(self.family, ClosedForm)
            assert self._curvature is not None
            offset = self._prior_precision * (self.family.mean(self.anchor) - self._prior_mean)
            score = score_scale * self._score - offset
            self.family.step(self.anchor, score, self._curvature, penalty, weights, max_log_ratio, max_mean_step)
        else:
            self._inner_step(self.solver, weights, factor)
        self._curvature, self._taken = None, 0
        self.restore()

    def forget(self, *, momentum: bool) -> None:
        """Drop what was taken since the last step, and the running mean of the gradient with it."""
        if momentum:
            self._score.zero_()
        self._curvature, self._first, self._taken = None, None, 0
        if self.solver is not None:
            self._optimizer.zero_grad()

    @property
    def state(self) -> State:
        """The current distribution: the candidate within an anchor's inner steps, else the anchor."""
        if self.solver is None or self._inner == 0:
            return self.anchor
        with torch.no_grad():
            return self.family.candidate(self.anchor, self._leaves)

    # ------------------------------------------------------------ the gradient solver

    def _start(self, solver: GradientSolver) -> None:
        self._leaves = {name: v.requires_grad_() for name, v in self.family.parameters(self.anchor).items()}
        self._optimizer = solver.optimizer(list(self._leaves.values()), lr=solver.lr, **solver.options)
        self._inner = 0

    def _prepare(self, solver: GradientSolver) -> None:
        """Have the inner optimizer make its state, as a checkpoint that is loaded later finds its place by it."""
        for leaf in self._leaves.values():
            leaf.grad = torch.zeros_like(leaf)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._optimizer.step()
        for group in self._optimizer.param_groups:
            group["lr"] = solver.lr
        self._optimizer.zero_grad()
        self._reset_optimizer()

    def _reset_optimizer(self) -> None:
        for values in self._optimizer.state.values():
            for value in values.values():
                if isinstance(value, Tensor):
                    value.zero_()

    @torch.enable_grad()
    def _descend(self, gradients: list[Tensor], scale: float, draws: int, words: tuple[int | str, ...]) -> None:
        """Add the gradient of the score-matching loss of a draw or pair to the candidate's parameters."""
        total, candidate = self.layout.total, self.family.candidate(self.anchor, self._leaves)
        losses = []
        for gradient, sign in zip(gradients, (1.0, -1.0), strict=False):
            draw = self.layout.draw(self.anchor, sign, *words)
            assert not draw.requires_grad  # nothing is differentiated through a draw
            target = self._target_score(gradient, draw, scale)
            difference = self.family.score(candidate, draw, total) - target
            losses.append(0.5 * self.family.norm(self.anchor, difference, total))
        self._words = words
        self._backward(torch.stack(losses).mean() / draws)

    def _backward(self, loss: Tensor) -> None:
        self.loss = loss.item() if self._taken == 0 else self.loss + loss.item()
        (loss / self.layout.ranks).backward()

    def _inner_step(self, solver: GradientSolver, weights: tuple[float, float], factor: float) -> None:
        if self._inner > 0:  # at the anchor itself, its gradient is zero
            with torch.enable_grad():
                draws = [self.layout.draw(self.anchor, sign, *self._words) for sign in (1.0, -1.0)]
                penalty = penalty_value(
                    self.penalty, self.family, self.anchor, self._leaves, weights, draws, self.layout.total
                )
                if penalty is not None:
                    (penalty / self.layout.ranks).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = solver.lr * factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._inner += 1
        if self._inner == solver.inner_steps:
            with torch.no_grad():
                for name, value in self.family.candidate(self.anchor, self._leaves).items():
                    self.anchor[name].copy_(value)
                for name, value in self.family.parameters(self.anchor).items():
                    self._leaves[name].copy_(value)
            self._inner = 0

    # ------------------------------------------------------------ storage

    def entries(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; tensors over the vector's rows, or whole ones."""
        found = {f"block.{name}": value for name, value in self.anchor.items()}
        if self.solver is None:
            return found | {"score": self._score}
        for index, (name, leaf) in enumerate(self._leaves.items()):
            found[f"solver.{name}"] = leaf.detach()
            for key, value in self._optimizer.state[list(self._leaves.values())[index]].items():
                if isinstance(value, Tensor):
                    found[f"solver.{name}.{key}"] = value
        return found | {"solver.inner": torch.tensor(float(self._inner))}

    def export(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Write :meth:`entries` into the optimizer's state: by parameter where it is sharded as they are."""
        for name, value in self.entries().items():
            if self._by_parameter(value):
                columns = value.shape[1:]
                for member in self.members:
                    if name not in state[member.parameter]:
                        state[member.parameter][name] = empty(member.parameter, columns)
                self.layout.put(value, (state[member.parameter][name] for member in self.members))
            else:
                state[self.members[0].parameter][name] = value.detach().clone()

    def load(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Read back what :meth:`export` wrote."""
        with torch.no_grad():
            for name, value in self.entries().items():
                if self._by_parameter(value):
                    value.copy_(self.layout.vector(state[member.parameter][name] for member in self.members))
                elif name == "solver.inner":
                    self._inner = int(state[self.members[0].parameter][name])
                else:
                    value.copy_(state[self.members[0].parameter][name])
        self.forget(momentum=False)

    def _by_parameter(self, value: Tensor) -> bool:
        return self.family.shardable and value.ndim > 0
