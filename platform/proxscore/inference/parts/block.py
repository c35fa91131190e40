"""Blocks: parameters that one family describes together.

A block flattens its parameters into one vector (:mod:`proxscore.inference.layout`). It takes its proximal step in the
family's closed form (:mod:`.closed_form_block`), or by stochastic gradient steps on the objective (:mod:`.solved_block`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from proxscore.inference.convergence.block_probes import BlockProbes
from proxscore.inference.families import Family, State
from proxscore.inference.layout import Layout, filled, zeros_placed_as
from proxscore.inference.members import Member, still_trained
from proxscore.inference.parts.part import Part, States
from proxscore.inference.step import Draw


class Block(Part):
    """A block in training: its anchor, and the statistics of the draws since the last step.

    Attributes:
        closed: whether its step is in closed form, from a curvature statistic.

    Args:
        family: family of the distribution over all members together.
        seed: seed of the initial state's noise.

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
        self.prior_precision = filled([member.prior.precision for member in members], self.layout.sizes, mean)
        self.prior_mean = torch.zeros_like(mean)
        for member, piece in zip(members, self.prior_mean.split(self.layout.sizes), strict=True):
            if member.prior_mean is not None:
                first = member.start if self.layout.local else 0
                piece.copy_(member.prior_mean_numbers(first, len(piece)))
        self._initial_precision = filled([member.initial_precision for member in members], self.layout.sizes, mean)
        self.anchor = self._initial(mean)
        self.probes: BlockProbes = BlockProbes(self)
        self._new = True  # neither stepped nor loaded
        self._first: Tensor | None = None

    def _initial(self, mean: Tensor) -> State:
        return self.family.initial(
            mean, self._initial_precision, self.layout.shape, lambda j: self.layout.normal(self._seed, "initial", j)
        )

    def set_initial_precision(self, precision: Tensor) -> None:
        """Start at other precisions, one for each of the vector's numbers; only before the first step."""
        self._initial_precision.copy_(precision)

    @property
    def state(self) -> State:
        """The current distribution."""
        return self.anchor

    def begin(self, state: States) -> None:
        """Take the weights for the mean before the first step: they may have been loaded since the block was made."""
        if len(still_trained(self.members)) < len(self.members):
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
        """The mini-batch scores of the target, which is likelihood times prior."""
        pairs = zip(gradients, weights, strict=True)
        prior_precision = draw.prior_weight * self.prior_precision
        return [-draw.scale * g - prior_precision * (w - self.prior_mean) for g, w in pairs]

    # ------------------------------------------------------------ storage

    @abstractmethod
    def entries(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; the first dimension runs over the vector, or a tensor is whole."""

    def export(self, state: States) -> None:
        """Write :meth:`entries` into the optimizer's state: by parameter where it is sharded as they are."""
        for name, value in self.entries().items():
            if self._by_parameter(value):
                for parameter in (member.parameter for member in self.members):
                    if name not in state[parameter]:
                        state[parameter][name] = zeros_placed_as(parameter, *parameter.shape, *value.shape[1:])
                self.layout.put(value, (state[member.parameter][name] for member in self.members))
            else:
                state[self.members[0].parameter][name] = value.detach().clone()

    def names(self) -> dict[Tensor, set[str]]:
        """The names of what :meth:`export` writes, by parameter."""
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
