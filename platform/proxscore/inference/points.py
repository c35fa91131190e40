"""Point estimates: parameters that are not sampled, trained by Adam on the scores of the draws of the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from proxscore.inference import noise
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts import Member, Part, States, trained
from proxscore.inference.step import Draw, ProximalStep


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
        self.members, self._held = trained(self._all), state

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
        """Adam on the mean gradient over the draws plus the prior's."""
        if not self.members:
            return
        states, gradients = [self._held[member.parameter] for member in self.members], self.gradients()
        for member, state, gradient in zip(self.members, states, gradients, strict=True):
            gradient.div_(self._evaluations)
            if member.prior.precision > 0:
                weights, prior_mean = noise.local(member.parameter), state.get("prior_mean")
                pull = weights if prior_mean is None else weights - noise.local(prior_mean)
                gradient.add_(pull, alpha=member.prior.precision * step.prior_weight / self._scale)
        adam(
            [noise.local(member.parameter) for member in self.members],
            gradients,
            [noise.local(state["exp_avg"]) for state in states],
            [noise.local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._lr * step.factor,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
