"""Blocks that take their proximal step in their family's closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.inference.families import ClosedForm, Family
from proxscore.inference.members import Member
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts.block import Block
from proxscore.inference.parts.part import States
from proxscore.inference.step import Draw, ProximalStep


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
            metric = step.metric.of(self._square, self._squares.item())
            self._square.lerp_(self._total.square(), 1 - step.metric.decay)
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
