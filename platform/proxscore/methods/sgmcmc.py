"""Stochastic-gradient Langevin dynamics and Hamiltonian Monte Carlo, with cyclical step sizes: samples of the posterior.

    v <- (1 - friction) v - lr (grad mean NLL + grad prior / N) + sqrt(2 friction lr temperature / N) eps
    theta <- theta + v

with N the training rows. ``friction = 1`` is SGLD (Welling and Teh, 2011, with their step 2 lr / N), less is SGHMC (Chen et
al., arXiv 1402.4102). On a quadratic potential of curvature h (of the mean loss) the variance of SGLD is too large by a
factor 1 / (1 - lr h / 2). Cyclical (Zhang et al., arXiv 1902.03932): in each of M cycles over K steps

    lr_k = lr / 2 (1 + cos(pi (k mod ceil(K / M)) / ceil(K / M)))

falls from ``lr`` to zero; the first part of a cycle (exploration) is without noise, and samples are kept from the rest. The
library ``posteriors`` takes gradients by torch.func, which sharded modules refuse, and its noise from the global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from proxscore.config import ConfigError, MethodSection
from proxscore.inference import Prior, noise
from proxscore.inference.names import named_parameters
from proxscore.methods.method import Setup
from proxscore.methods.priors import PriorConfig, assigned, prior_of
from proxscore.methods.steps import Steps, standard_normal
from proxscore.posterior import NameOf, Posterior, Samples


class SGLDConfig(MethodSection):
    """Stochastic-gradient Langevin dynamics, cyclical as published."""

    kind: Literal["sgld"] = "sgld"
    prior: PriorConfig = PriorConfig()
    lr: float = Field(0.5, gt=0)  # at the start of a cycle, of the mean loss
    # Of the learning rate: cosine cycles from lr to zero, or lr throughout.
    schedule: Literal["cyclical", "constant"] = "cyclical"
    cycles: int = Field(4, ge=1, le=1_000_000)  # of the learning rate over the run
    exploration: float = Field(0.8, ge=0, lt=1)  # fraction of each cycle without noise and samples
    burn_in: float = Field(0, ge=0)  # epochs at the start from which no sample is kept
    samples: int = Field(12, ge=1, le=10_000)  # kept, each a copy of the weights
    temperature: float = Field(1.0, gt=0)  # of the noise; below one, the posterior is colder than the data say
    # Steps in a row with gradients that are not finite, after which the run ends as diverged.
    max_skipped_steps: int = Field(10, ge=1)

    def build(self, setup: Setup) -> Sampler:
        """The sampler for a run of that length; N is the number of training rows.

        Raises:
            ConfigError: the run is too short for burn-in or samples.
        """
        burn_in = round(self.burn_in * setup.run.steps_per_epoch)
        if burn_in >= setup.run.total_steps:
            raise ConfigError(
                f"method.burn_in={self.burn_in:g} epochs is the whole run ({setup.run.total_steps / setup.run.steps_per_epoch:g} "
                "epochs): it must be shorter than training.epochs"
            )
        count = self.cycles if self.schedule == "cyclical" else 0
        return Sampler(
            setup.module,
            prior_of(self.prior, setup.module),
            setup.run.data_size,
            self.lr,
            Cycles(setup.run.total_steps, count, self.exploration, burn_in),
            friction=getattr(self, "friction", 1.0),
            samples=self.samples,
            temperature=self.temperature,
            max_skipped_steps=self.max_skipped_steps,
            seed=setup.seed,
        )


class SGHMCConfig(SGLDConfig):
    """Stochastic-gradient Hamiltonian Monte Carlo, cyclical as published."""

    kind: Literal["sghmc"] = "sghmc"  # type: ignore[assignment]
    friction: float = Field(0.9, gt=0, le=1)  # one minus momentum


@dataclass(frozen=True)
class Cycles:
    """When a sampler explores, samples and keeps.

    Args:
        steps: of the run.
        count: cycles; zero: a constant step size, with noise from the start.
        exploration: fraction of each cycle without noise.
        burn_in: steps of the run from which nothing is kept.
    """

    steps: int
    count: int
    exploration: float
    burn_in: int

    def progress(self, step: int) -> float:
        """The progress of the cycle at a step, in [0, 1)."""
        length = math.ceil(self.steps / max(self.count, 1))
        return (step % length) / length

    def factor(self, step: int) -> float:
        """The factor on the step size at a step."""
        return (1 + math.cos(math.pi * self.progress(step))) / 2 if self.count else 1.0

    def noisy(self, step: int) -> bool:
        """Whether a step adds noise."""
        return not self.count or self.progress(step) >= self.exploration

    def kept(self, samples: int) -> list[int]:
        """The steps after which a sample is kept, evenly spread over those with noise past the burn-in.

        Raises:
            ConfigError: there are fewer of them than samples.
        """
        eligible = [step for step in range(self.burn_in, self.steps) if self.noisy(step)]
        if len(eligible) < samples:
            raise ConfigError(
                f"method.samples={samples}: {len(eligible)} of the run's {self.steps} steps are left to sample in; take fewer "
                "samples, a longer run (training.epochs), or less method.exploration or method.burn_in"
            )
        return [eligible[(i + 1) * len(eligible) // samples - 1] for i in range(samples)]


class Sampler(Steps):
    """SGLD or SGHMC. State per parameter, with its sharding: ``momentum`` (SGHMC), and the samples that were kept.

    A parameter that the prior does not sample moves by gradient and momentum alone.

    Args:
        module: whose trained parameters are sampled.
        data_size: N.
        samples: numbers of samples to keep; each is a copy of the weights.
        seed: of the noise, which is a function of it and of the step.
    """

    def __init__(
        self,
        module: nn.Module,
        prior: Prior,
        data_size: float,
        lr: float,
        cycles: Cycles,
        *,
        friction: float = 1.0,
        samples: int = 12,
        temperature: float = 1.0,
        max_skipped_steps: int = 10,
        seed: int = 0,
    ) -> None:
        named = [(name, p) for name, p in named_parameters(module).items() if p.requires_grad]
        super().__init__([p for _, p in named], {"lr": lr, "seed": seed})
        self.prepare(cycles.factor, max_skipped_steps)
        self.cycles, self.friction, self.data_size, self.temperature = cycles, friction, data_size, temperature
        self.keep_at = {step: number for number, step in enumerate(cycles.kept(samples))}
        self.names: dict[Tensor, str] = {p: name for name, p in named}
        self.prior = assigned(prior, module)
        self.prior_mean = {name: noise.local(value) for name, value in prior.mean.items()}
        for _, parameter in named:
            names = [f"sample_{number}" for number in range(samples)]
            names += ["momentum"] if friction < 1 else []
            self.state[parameter] = {name: torch.zeros_like(parameter) for name in names}

    def collect(self) -> None:
        """Keep a sample if it is time for one."""
        iteration = self.param_groups[0]["iteration"] - 1
        if iteration in self.keep_at:
            for p in self.names:
                noise.local(self.state[p][f"sample_{self.keep_at[iteration]}"]).copy_(noise.local(p))

    @torch.no_grad()
    def update(self) -> None:
        """The move of weights and momentum."""
        (group,) = self.param_groups
        iteration, lr = group["iteration"] - 1, group["lr"]
        deviation = math.sqrt(2 * self.friction * lr * self.temperature / self.data_size)
        for p, name in self.names.items():
            if p.grad is None:
                continue
            weights, prior = noise.local(p), self.prior[name]
            offset = weights - self.prior_mean[name].to(weights) if name in self.prior_mean else weights
            move = -lr * (noise.local(p.grad) + prior.precision / self.data_size * offset)
            if prior.sampled and self.cycles.noisy(iteration):
                move.add_(standard_normal(p, group["seed"], "move", iteration, name), alpha=deviation)
            if "momentum" in self.state[p]:
                move = noise.local(self.state[p]["momentum"]).mul_(1 - self.friction).add_(move)
            weights.add_(move)

    def posterior_from(self, point: Posterior, name_of: NameOf) -> Posterior:
        """The samples so far; before the first, the weights as they are."""
        done = self.param_groups[0]["iteration"]
        members = []
        for step, number in self.keep_at.items():
            if step < done:
                sample = {name_of(p): self.state[p][f"sample_{number}"] for p in self.names}
                members.append(replace(point, mean=point.mean | sample, description={}))
        return Samples(members, point.description) if members else point
