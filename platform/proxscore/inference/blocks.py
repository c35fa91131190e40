"""Blocks: parameters that one family describes together.

A block flattens its parameters into one vector (:mod:`proxscore.inference.layout`). It takes its proximal step in the
family's closed form (:class:`ClosedFormBlock`), or by stochastic gradient steps on the objective (:class:`SolvedBlock`,
:mod:`proxscore.inference.solver`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxscore.inference.convergence import Probed
from proxscore.inference.families import ClosedForm, Family, State
from proxscore.inference.layout import Layout, empty
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts import Member, Part, States, trained
from proxscore.inference.penalties import Penalty
from proxscore.inference.probes import BlockProbes
from proxscore.inference.solver import GradientSolver, check_penalty, penalty_value
from proxscore.inference.step import Draw, ProximalStep


class Block(Part):
    """A block in training: its anchor, and the draws' statistics since the last step.

    Attributes:
        closed: whether its step is in closed form, from a curvature statistic.

    Args:
        family, members: what describes what.
        seed: of the initial state's noise.

    Raises:
        ValueError: the family cannot describe these parameters; names the first.
    """

    closed: ClassVar[bool] = False

    def __init__(self, family: Family, members: list[Member], seed: int) -> None:
        self.family, self.members, self._seed = family, members, seed
        count = sum(member.parameter.numel() for member in members)
        for member in members if family.per_parameter else members[:1]:
            family.check(member.name, member.parameter.shape, count)
        self.layout = Layout(family, [(m.name, m.parameter, m.start) for m in members])
        mean = self.layout.vector(member.parameter for member in members)
        self.prior_precision = self._rows([member.prior.precision for member in members], mean)
        self.prior_mean = torch.zeros_like(mean)
        for member, piece in zip(members, self.prior_mean.split(self.layout.sizes), strict=True):
            if member.prior_mean is not None:
                first = member.start if self.layout.local else 0
                piece.copy_(member.prior_mean.reshape(-1)[first : first + len(piece)])
        self._initial_precision = self._rows([member.initial_precision for member in members], mean)
        self.anchor = self._initial(mean)
        self.probes = BlockProbes(self)
        self._new = True  # neither stepped nor loaded
        self._first: Tensor | None = None

    def _rows(self, values: list[float], like: Tensor) -> Tensor:
        return torch.cat([like.new_full((size,), value) for size, value in zip(self.layout.sizes, values, strict=True)])

    def _initial(self, mean: Tensor) -> State:
        return self.family.initial(
            mean, self._initial_precision, self.layout.shape, lambda j: self.layout.normal(self._seed, "initial", j)
        )

    def spread(self, precision: Tensor) -> None:
        """Before the first step: start at these precisions, one for each of the vector's numbers."""
        self._initial_precision.copy_(precision)

    @property
    def state(self) -> State:
        """The current distribution."""
        return self.anchor

    def probed(self, momentum: float, age: int) -> Iterator[Probed]:
        yield from self.probes.probed(momentum, age)

    def save_probes(self, state: States) -> None:
        self.probes.save(state)

    def load_probes(self, state: States, age: int) -> None:
        self.probes.load(state, age)

    def begin(self, state: States) -> None:
        """Weights that were set between construction and the first draw (loaded, say) are the first mean."""
        if len(trained(self.members)) < len(self.members):
            frozen = next(member.name for member in self.members if not member.parameter.requires_grad)
            raise RuntimeError(
                f"{frozen} was frozen after the optimizer was built, but family {self.family.kind} describes it together "
                "with others: freeze it before, or leave it out of prior.select"
            )
        if self._new:
            for name, value in self._initial(self.layout.vector(m.parameter for m in self.members)).items():
                self.anchor[name].copy_(value)

    def sample(self, draw: Draw) -> None:
        if draw.sign > 0:
            for member in self.members:
                member.parameter.grad = None
        self.layout.put(self._weights(draw.seed, draw.sign), (m.parameter for m in self.members))

    def restore(self) -> None:
        self.layout.put(self.family.mean(self.state), (m.parameter for m in self.members))

    def take(self, draw: Draw, gradients: list[Tensor]) -> None:
        vector = self.layout.vector(m.parameter.grad for m in self.members if m.parameter.grad is not None)
        for gradient in gradients:  # cleared, not dropped: the second backward of a pair adds to them
            gradient.zero_()
        if not draw.last:
            self._first = vector
            return
        pair = [vector] if self._first is None else [self._first, vector]
        self._first = None
        self._take(draw, pair, [self._weights(draw.seed, sign) for sign in (1.0, -1.0)[: len(pair)]])

    @abstractmethod
    def _take(self, draw: Draw, gradients: list[Tensor], weights: list[Tensor]) -> None:
        """Take a draw or pair: the gradients of the mean negative log-likelihood, at these weights."""

    def _weights(self, seed: int, sign: float) -> Tensor:
        weights = self.layout.draw(self.anchor, sign, seed)
        assert not weights.requires_grad  # nothing is differentiated through a draw
        return weights

    def _target_scores(self, gradients: list[Tensor], weights: list[Tensor], draw: Draw) -> list[Tensor]:
        """The mini-batch scores of the target: of likelihood and prior."""
        pairs = zip(gradients, weights, strict=True)
        prior_precision = draw.prior_weight * self.prior_precision
        return [-draw.scale * g - prior_precision * (w - self.prior_mean) for g, w in pairs]

    # ------------------------------------------------------------ storage

    @abstractmethod
    def entries(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; tensors over the vector's rows, or whole ones."""

    def export(self, state: States) -> None:
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

    def names(self) -> dict[Tensor, set[str]]:
        """By parameter, the names of what :meth:`export` writes."""
        found: dict[Tensor, set[str]] = {member.parameter: set() for member in self.members}
        for name, value in self.entries().items():
            for member in self.members if self._by_parameter(value) else self.members[:1]:
                found[member.parameter].add(name)
        return found

    def load(self, state: States) -> None:
        """Read back what :meth:`export` wrote."""
        with torch.no_grad():
            for name, value in self.entries().items():
                if self._by_parameter(value):
                    value.copy_(self.layout.vector(state[member.parameter][name] for member in self.members))
                else:
                    value.copy_(state[self.members[0].parameter][name])
        self._new = False

    def _by_parameter(self, value: Tensor) -> bool:
        return self.family.shardable and value.ndim > 0


class ClosedFormBlock(Block):
    """A block of a family with a closed-form step. Checkpoint: the anchor, and the running mean of the gradient, and with the
    adaptive metric that of its square."""

    closed = True

    def __init__(self, family: Family, members: list[Member], seed: int, adaptive: bool) -> None:
        super().__init__(family, members, seed)
        self._score = torch.zeros_like(self.prior_mean)
        self._square = torch.zeros_like(self._score) if adaptive else None
        self._squares = torch.zeros(())
        self._total: Tensor | None = None
        self._curvature: Tensor | None = None

    def _take(self, draw: Draw, gradients: list[Tensor], weights: list[Tensor]) -> None:
        assert isinstance(self.family, ClosedForm)
        total = torch.stack(gradients).mean(0) / draw.draws
        self._total = total if draw.first or self._total is None else self._total + total
        scores = [-draw.scale * gradient for gradient in gradients]
        if draw.paired:
            scores = self._target_scores(gradients, weights, draw)
        prior_precision = draw.prior_weight * self.prior_precision
        curvature = self.family.curvature(self.anchor, self.layout.normal(draw.seed), scores, prior_precision)
        curvature /= draw.draws
        self._curvature = curvature if draw.first or self._curvature is None else self._curvature + curvature

    def taken(self) -> list[Tensor]:
        assert self._total is not None
        assert self._curvature is not None
        return [self._total, self._curvature]

    def step(self, step: ProximalStep, monitor: Monitor | None) -> None:
        assert isinstance(self.family, ClosedForm)
        assert self._total is not None
        assert self._curvature is not None
        self._score.lerp_(self._total, 1 - step.momentum)
        score = step.score_scale * self._score
        score -= step.prior_weight * self.prior_precision * (self.family.mean(self.anchor) - self.prior_mean)
        metric = None
        if step.metric is not None and self._square is not None:
            (metric,) = step.metric.of([self._square], [self._squares.item()])
            step.metric.add_([self._square], [self._total])
            self._squares += 1
        before = {name: value.clone() for name, value in self.anchor.items()}
        ratio = self.family.step(self.anchor, score, self._curvature, step, metric)
        self.restore()
        self.probes.add_closed(step, self._curvature, score, before, ratio)
        self._new = False
        self.forget()

    def forget(self) -> None:
        self._total = self._curvature = self._first = None

    def load(self, state: States) -> None:
        super().load(state)
        self.forget()

    def entries(self) -> dict[str, Tensor]:
        found = {f"block.{name}": value for name, value in self.anchor.items()} | {"score": self._score}
        return found if self._square is None else found | {"square": self._square, "step": self._squares}


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
        #: Score-matching loss at the last step's draws.
        self.loss = torch.zeros(())
        self._steps = torch.zeros((), dtype=torch.int64)
        self._leaves = {name: v.requires_grad_() for name, v in family.parameters(self.anchor).items()}
        self._optimizer = solver.build(self._leaves.values())

    @property
    def _inner(self) -> int:
        """Inner steps since the anchor moved."""
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
        """An inner step on the candidate; after the last one the anchor follows."""
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


def block(
    family: Family, members: list[Member], seed: int, solver: GradientSolver | None, penalty: Penalty, adaptive: bool
) -> Block:
    """A block with the solver's step; without a solver in closed form, or where there is none, with its defaults."""
    if solver is None and isinstance(family, ClosedForm):
        return ClosedFormBlock(family, members, seed, adaptive)
    return SolvedBlock(family, members, seed, solver or GradientSolver(), penalty)
