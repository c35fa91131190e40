"""The quadratic target and the networks, and one run of a variant of the optimizer on them."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.inference import ForwardKL, Prior, ProximalScore
from proxscore.vision.data import load_images
from proxscore.vision.models import build_model
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.task import ModelConfig

#: How a run ended: ``value`` (infinite: not finite) decides by ``initial`` whether it diverged; and others.
Outcome = dict[str, float]
Weights = tuple[float, float]  # of precision and mean
N, BATCH = 50_000, 100  # of the quadratic target
FEW = 8  # gradient evaluations at which every dimension is compared
DEFAULTS = (1000.0, 2.0)  # weights
STARTS = {"narrow": 10**1.5, "wide": 1.0}  # initial precision / N
NONE = 0.001  # stands for a mean weight of zero, which the penalty refuses


@dataclass(frozen=True)
class Variant:
    """Settings besides the weights."""

    trust: bool
    momentum: float
    paired: bool

    @property
    def name(self) -> str:
        region = "trust region" if self.trust else "no trust region"
        return f"{region}, momentum {self.momentum:g}, {'pairs' if self.paired else 'single draws'}"

    def optimizer(
        self, parameters: Any, data_size: float, weights: tuple[float, float], seed: int, **settings: Any
    ) -> ProximalScore:
        chosen: dict[str, Any] = {"initial_precision": 0.1, "prior": Prior(scale=0.1)} | settings
        return ProximalScore(
            parameters,
            data_size,
            penalty=ForwardKL(*weights),
            paired=self.paired,
            momentum=self.momentum,
            max_log_precision_step=1.0 if self.trust else None,
            max_mean_step=0.1 if self.trust else math.inf,
            seed=seed,
            metric="posterior",
            **chosen,
        )

    def steps(self, evaluations: int) -> int:
        return evaluations // (2 if self.paired else 1)


VARIANTS = [Variant(*choice) for choice in itertools.product((True, False), (0.9, 0.0), (True, False))]


def diverged(outcome: Outcome) -> bool:
    return not outcome["value"] <= outcome["initial"]


class Quadratic:
    """The target above, and one run on it.

    Args:
        dimension: D.
        seed: of the mini-batches and draws.
        start: initial precision, divided by N.
    """

    def __init__(self, dimension: int, seed: int, start: float) -> None:
        self.start = start
        self.curvature = N * torch.logspace(-1.5, 1.5, dimension)
        self.theta = nn.Parameter(5 / self.curvature.sqrt())
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        self.noise, self.factor = torch.empty(dimension), torch.empty(dimension)

    def errors(self, mean: Tensor, precision: Tensor) -> dict[str, float]:
        """KL per dimension in nats; errors of the means (posterior standard deviations) and log-precisions."""
        offset, log_ratio = mean * self.curvature.sqrt(), (precision / self.curvature).log()
        kl = 0.5 * (offset.square() + (-log_ratio).exp() - 1 + log_ratio).double().mean().item()
        return {
            "kl": kl,
            "mean": offset.double().square().mean().sqrt().item(),
            "log_precision": log_ratio.double().square().mean().sqrt().item(),
            "largest_mean": offset.abs().max().item(),
            "largest_log_precision": log_ratio.abs().max().item(),
        }

    def run(self, variant: Variant, weights: Weights, evaluations: Sequence[int]) -> tuple[list[Outcome], float]:
        """Outcomes after each number of evaluations, and the median time of a step in milliseconds, target included."""
        settings: dict[str, Any] = {"prior": Prior(scale=0.1, norms="flat"), "initial_precision": self.start}
        optimizer = variant.optimizer([("theta", self.theta)], N, weights, self.seed, **settings)
        ((_, _, state),) = optimizer.sampled()
        initial = self.errors(state["mean"], state["precision"])["kl"]
        outcomes: list[Outcome] = []
        times: list[float] = []
        stops = [variant.steps(count) for count in evaluations]
        try:
            for step in range(stops[-1]):
                started = time.perf_counter()
                self.step(optimizer)
                times.append(1e3 * (time.perf_counter() - started))
                if step + 1 in stops:
                    errors = self.errors(state["mean"], state["precision"])
                    kl = errors["kl"]
                    outcomes.append({"value": kl if math.isfinite(kl) else math.inf, "initial": initial, **errors})
        except FloatingPointError:
            outcomes += [{"value": math.inf, "initial": initial}] * (len(stops) - len(outcomes))
        return outcomes, statistics.median(times)

    @torch.no_grad()
    def step(self, optimizer: ProximalScore) -> None:
        """One mini-batch: the same noise for all draws of the step."""
        self.noise.normal_(generator=self.generator).mul_((1 / (N * BATCH)) ** 0.5).mul_(self.curvature.sqrt())
        self.factor.normal_(generator=self.generator).mul_((2 / BATCH) ** 0.5).add_(1.0).mul_(self.curvature / N)
        for _ in optimizer.draws():
            gradient = torch.addcmul(self.noise, self.factor, self.theta)
            if self.theta.grad is None:
                self.theta.grad = gradient
            else:
                self.theta.grad += gradient
        optimizer.step()


class Network:
    """A network on digits."""

    def __init__(self, name: str, model: ModelConfig) -> None:
        data = load_images(DigitsConfig(kind="digits"))
        self.images, self.labels = data.train.__getitems__(list(range(len(data.train))))
        self.name, self.model, self.classes, self.shape = name, model, len(data.classes), data.shape

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build_model(self.model, classes=self.classes, shape=self.shape)

    @torch.no_grad()
    def loss(self, module: nn.Module) -> float:
        """Mean negative log-likelihood of the training data, nats."""
        return nn.functional.cross_entropy(module(self.images), self.labels).item()

    def run(self, variant: Variant, weights: Weights, evaluations: int, seed: int) -> Outcome:
        module, generator = self.build(seed), torch.Generator().manual_seed(seed)
        initial = self.loss(module)
        optimizer = variant.optimizer(module.named_parameters(), 100_000, weights, seed)
        losses: list[float] = []
        try:
            for _ in range(variant.steps(evaluations)):
                rows = torch.randint(len(self.images), (64,), generator=generator)
                for _ in optimizer.draws():
                    loss = nn.functional.cross_entropy(module(self.images[rows]), self.labels[rows])
                    loss.backward()
                    losses.append(loss.item())
                optimizer.step()
        except FloatingPointError:
            return {"value": math.inf, "initial": initial, "mean_loss": math.inf}
        final = statistics.mean(losses[-max(evaluations // 10, 2) :])
        value = final if math.isfinite(final) else math.inf
        return {"value": value, "initial": initial, "mean_loss": self.loss(module), "worst_loss": max(losses)}


NETWORKS = {
    "small_cnn": ModelConfig(name="small_cnn"),
    "small ViT": ModelConfig(
        name="vit_tiny_patch16_224", kwargs={"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}
    ),
}
