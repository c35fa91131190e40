"""Point estimates: parameters that are not sampled, trained by Adam on the scores of the draws of the others.

Logarithms of noise levels (``*log_noise``) take steps of their own. With noise s and squared residuals r^2 their gradient is
1 - E r^2 / s^2, and their Fisher information 2 per data point, so that

    log s <- log s - rate min(max(g / 2, -1), 1)

is a natural-gradient step: it arrives at log(true / first level) / rate steps from any level, and settles where the residuals
have it. Adam does neither: a step is its learning rate at most, and its long memory of the first gradients, which are
(true / first level)^2 times the last ones, holds the level where the first steps carried it.
"""

from __future__ import annotations

import fnmatch

import torch
from torch import Tensor
from torch.optim.adam import adam

from proxscore.inference import noise
from proxscore.inference.members import Member, still_trained
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts.part import Part, States
from proxscore.inference.priors import NOISE
from proxscore.inference.step import Draw, ProximalStep

#: Rate of the natural-gradient steps of noise levels, times the step's factor. Batches of B rows leave a relative error of about
#: sqrt(rate / B) / 2, that of 2 B / rate rows; up to 2 / rate outputs may share a level before steps overshoot.
NOISE_RATE = 0.1


class Points(Part):
    """Parameters with a point estimate. State of each: Adam's, and ``prior_mean`` if there is one.

    The gradients of a step's draws add up in the parameters' own ``grad``.

    Args:
        state: the optimizer's; gets the initial values.
        lr: Adam's learning rate, times the step's factor.
        scale: data size / temperature.
        evaluations: gradients that add up in a step.
    """

    def __init__(self, members: list[Member], state: States, lr: float, scale: float, evaluations: int) -> None:
        self._all, self.members, self._held = members, members, state
        self._lr, self._scale, self._evaluations = lr, scale, evaluations
        for member in members:
            parameter, held = member.parameter.detach(), state[member.parameter]
            held["exp_avg"], held["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            held["step"] = torch.zeros(())
            if member.prior_mean is not None:
                held["prior_mean"] = member.prior_mean_shard()

    def begin(self, state: States) -> None:
        self.members, self._held = still_trained(self._all), state

    def sample(self, draw: Draw) -> None:
        return

    def take(self, draw: Draw, gradients: list[Tensor]) -> None:
        return

    def taken(self) -> list[Tensor]:
        return self.gradients()

    def restore(self) -> None:
        return

    def forget(self) -> None:
        return

    def step(self, step: ProximalStep, monitor: Monitor | None) -> None:
        """Adam (noise levels: a natural-gradient step) on the mean gradient over the draws plus the prior's."""
        if not self.members:
            return
        states, gradients = [self._held[member.parameter] for member in self.members], self.gradients()
        for member, state, gradient in zip(self.members, states, gradients, strict=True):
            gradient.div_(self._evaluations)
            if member.prior.precision > 0:
                weights, prior_mean = noise.local(member.parameter), state.get("prior_mean")
                pull = weights if prior_mean is None else weights - noise.local(prior_mean)
                gradient.add_(pull, alpha=member.prior.precision * step.prior_weight / self._scale)
        held = [noise.local(member.parameter) for member in self.members]
        held += [noise.local(state[name]) for state in states for name in ("exp_avg", "exp_avg_sq")]
        before = [] if step.go is None else [tensor.clone() for tensor in held]
        adams = []
        for row in zip(self.members, states, gradients, strict=True):
            if fnmatch.fnmatchcase(row[0].name, NOISE):
                noise.local(row[0].parameter).sub_((row[2] / 2).clamp_(-1, 1), alpha=NOISE_RATE * step.factor)
            else:
                adams.append(row)
        adam(
            [noise.local(member.parameter) for member, _, _ in adams],
            [gradient for _, _, gradient in adams],
            [noise.local(state["exp_avg"]) for _, state, _ in adams],
            [noise.local(state["exp_avg_sq"]) for _, state, _ in adams],
            [],
            [state["step"] for _, state, _ in adams],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._lr * step.factor,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        if step.go is not None:
            for tensor, old in zip(held, before, strict=True):
                tensor.copy_(torch.where(step.go, tensor, old))
