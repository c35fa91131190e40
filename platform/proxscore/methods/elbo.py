"""Mean-field variational inference by reparametrized gradients of the evidence lower bound.

    q = N(m, diag(s^2)),   theta = m + s eps,   minimise   E_q[mean NLL(theta)] + (temperature / N) KL(q || prior)

per data point, with N the rows of the training set: the KL is divided by N, not by the batch or by the number of batches,
so that every mini-batch's loss is an unbiased estimate. With g the gradient of the batch's mean NLL at the draw, p0 the
prior's precision and m0 its mean,

    d/dm = g + temperature / N  p0 (m - m0),        d/dlog s = g s eps + temperature / N (p0 s^2 - 1)

Both go to Adam. Sources: Blundell et al., Weight uncertainty in neural networks (Bayes by Backprop), arXiv 1505.05424;
Kucukelbir et al., ADVI, arXiv 1603.00788 (the logarithmic parametrisation of s).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adam import adam

from proxscore.inference import Prior, noise
from proxscore.inference.members import named_groups
from proxscore.inference.names import named_parameters
from proxscore.inference.priors import Assignment
from proxscore.methods.method import Setup
from proxscore.methods.priors import PriorConfig, assigned, prior_of
from proxscore.methods.rates import LayerwiseRates
from proxscore.methods.steps import Factor, Steps, cosine, standard_normal
from proxscore.posterior import NameOf, Posterior


class ELBOConfig(LayerwiseRates):
    """Mean-field variational inference by reparametrized gradients (Bayes by Backprop)."""

    kind: Literal["elbo"] = "elbo"
    prior: PriorConfig = PriorConfig()
    lr: float = Field(1e-3, gt=0)  # Adam's
    initial_scale: float = Field(0.01, gt=0)  # standard deviations at the start
    draws: int = Field(1, ge=1, le=10_000)  # per step
    temperature: float = Field(1.0, gt=0)  # of the KL
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    # Steps in a row with gradients that are not finite, after which the run ends as diverged.
    max_skipped_steps: int = Field(10, ge=1)

    def evaluations_per_step(self) -> int:
        return self.draws

    def build(self, setup: Setup) -> ELBO:
        """The ELBO with warm-up and cosine decay of Adam's learning rate; N is the number of training rows."""
        return ELBO(
            setup.module,
            self.rated(setup.module, self.lr),
            prior_of(self.prior, setup.module),
            setup.run.data_size,
            self.lr,
            cosine(self.warmup, setup.run.total_steps),
            initial_scale=self.initial_scale,
            draws=self.draws,
            temperature=self.temperature,
            max_skipped_steps=self.max_skipped_steps,
            seed=setup.seed,
        )


class ELBO(Steps, torch.optim.Optimizer):
    """Mean-field ELBO by reparametrisation; the weights are the mean outside of the draw loop.

    State per sampled parameter, with its sharding: ``log_scale`` (log s), and Adam's two moments of both gradients:
    with weights and gradient 7 P numbers. A parameter that the prior does not sample is its mode, by Adam.

    Args:
        module: whose trained parameters are described.
        params: these, named, or groups of them with learning rates of their own.
        prior: with its selection of the sampled parameters.
        data_size: N.
        initial_scale: s at the start, in units of the weights.
        draws: per step.
        temperature: of the KL; below one, the posterior is colder than the data say.
        seed: of the noise, which is a function of it and of the step.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Iterable[Any],
        prior: Prior,
        data_size: float,
        lr: float,
        factor: Factor,
        *,
        initial_scale: float = 0.01,
        draws: int = 1,
        temperature: float = 1.0,
        max_skipped_steps: int = 10,
        seed: int = 0,
    ) -> None:
        named = [(name, p) for name, p in named_parameters(module).items() if p.requires_grad]
        super().__init__(named_groups(params), {"lr": lr, "seed": seed})
        self.prepare(factor, max_skipped_steps)
        self.evaluations_per_step = draws
        self.prior_weight = temperature / data_size
        self.names: dict[Tensor, str] = {p: name for name, p in named}
        self.prior: Mapping[str, Assignment] = assigned(prior, module)
        self.prior_mean = {name: noise.local(value) for name, value in prior.mean.items()}
        self._finite: Tensor | None = None
        self._gradients: dict[str, Tensor] = {}
        for name, parameter in named:
            state = self.state[parameter]
            leaves = ["mean"]
            if self.prior[name].sampled:
                state["log_scale"] = torch.full_like(parameter, initial_scale).log_()
                leaves.append("scale")
            for leaf in leaves:
                state |= {f"{leaf}_{moment}": torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
                state[f"{leaf}_step"] = torch.zeros((), dtype=torch.float32)

    def draws(self) -> Iterator[int]:
        """Put draws from q into the weights, one per pass of the loop's body; the mean is back afterwards."""
        seed, iteration = self.param_groups[0]["seed"], self.param_groups[0]["iteration"]
        means = {p: noise.local(p).clone() for p in self.names}
        self._gradients, self._finite = {}, None
        try:
            for index in range(self.evaluations_per_step):
                self.zero_grad()
                steps = {p: self._deviation(p, seed, iteration, index) for p in self.names}
                for p, deviation in steps.items():
                    noise.local(p).copy_(means[p] if deviation is None else means[p] + deviation)
                yield index
                self._take(steps)
        finally:
            for p, mean in means.items():
                noise.local(p).copy_(mean)
            self.zero_grad()

    def _deviation(self, parameter: Tensor, *words: int) -> Tensor | None:
        """s eps of a draw; none for a parameter that is not sampled."""
        state, name = self.state[parameter], self.names[parameter]
        if "log_scale" not in state:
            return None
        return noise.local(state["log_scale"]).exp() * standard_normal(parameter, *words, "draw", name)

    def _take(self, deviations: dict[Tensor, Tensor | None]) -> None:
        """Add a draw's gradients of the mean NLL, by mean and by log-scale."""
        found = [p for p in self.names if p.grad is not None]
        finite = super().nonfinite == 0
        self._finite = finite if self._finite is None else self._finite & finite
        for p in found:
            assert p.grad is not None
            gradient, deviation = noise.local(p.grad) / self.evaluations_per_step, deviations[p]
            values = {"mean": gradient} | ({} if deviation is None else {"scale": gradient * deviation})
            for leaf, value in values.items():
                key = f"{leaf}.{self.names[p]}"
                self._gradients[key] = self._gradients[key] + value if key in self._gradients else value

    @property
    def nonfinite(self) -> Tensor:
        """Whether a gradient of a draw was not finite (0 or 1, on the device)."""
        if self._finite is None:
            raise RuntimeError("no gradients yet: run the draws() loop first")
        return 1.0 - self._finite.float()

    @torch.no_grad()
    def update(self) -> None:
        """One step of Adam on means and log-scales."""
        for group in self.param_groups:
            leaves = self._leaves(group["params"])
            adam(
                leaves["value"],
                leaves["gradient"],
                leaves["exp_avg"],
                leaves["exp_avg_sq"],
                [],
                leaves["step"],
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group["lr"],
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
        self._gradients = {}

    def _leaves(self, parameters: Iterable[Tensor]) -> dict[str, list[Any]]:
        """Means and log-scales of some parameters, with their gradients and moments, as Adam takes them."""
        leaves: dict[str, list[Any]] = {key: [] for key in ("value", "gradient", "exp_avg", "exp_avg_sq", "step")}
        for p in parameters:
            name = self.names[p]
            if f"mean.{name}" not in self._gradients:
                continue
            state, prior, weights = self.state[p], self.prior[name], noise.local(p)
            offset = weights - self.prior_mean[name].to(weights) if name in self.prior_mean else weights
            parts = {"mean": (weights, self.prior_weight * prior.precision * offset)}
            if "log_scale" in state:
                log_scale = noise.local(state["log_scale"])
                parts["scale"] = log_scale, self.prior_weight * (prior.precision * (2 * log_scale).exp() - 1)
            for leaf, (value, of_prior) in parts.items():
                leaves["value"].append(value)
                leaves["gradient"].append(self._gradients[f"{leaf}.{name}"] + of_prior)
                for moment in ("exp_avg", "exp_avg_sq"):
                    leaves[moment].append(noise.local(state[f"{leaf}_{moment}"]))
                leaves["step"].append(state[f"{leaf}_step"])
        return leaves

    def posterior_from(self, point: Posterior, name_of: NameOf) -> Posterior:
        """The mean-field Gaussian: 1 / s^2 beside the means."""
        held = ((name_of(p), self.state[p]) for p in self.names)
        return replace(
            point, precision={n: (-2 * state["log_scale"]).exp() for n, state in held if "log_scale" in state}
        )
