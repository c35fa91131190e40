"""Two small problems and the loop that all methods are tried on: many copies of a linear regression, and two moons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

from proxscore.config import METHODS
from proxscore.inference import Categorical, Gaussian
from proxscore.methods import RunLength, Setup, build_method
from proxscore.posterior import Posterior

ROWS, INPUTS, NOISE = 120, 3, 1.5


def section(**settings: Any) -> Any:
    """A validated section of a method."""
    return METHODS.section(str(settings["kind"])).model_validate(settings)  # type: ignore[return-value]


class Copies(nn.Module):
    """Independent copies of one linear model: (B, D) inputs to (B, copies) outputs.

    The losses of the copies add up, so each row of ``weight`` has the posterior of the one model: what a method claims of
    it is tried on all of them at once.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(copies, INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@dataclass(frozen=True)
class Regression:
    """Rows of a linear regression with known noise, and its posterior under the prior N(0, 1 / prior_precision)."""

    x: Tensor
    y: Tensor

    def exact(self, prior_precision: float) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) in closed form."""
        precision = self.x.T @ self.x / NOISE**2 + prior_precision * torch.eye(INPUTS)
        return torch.linalg.solve(precision, self.x.T @ self.y / NOISE**2), torch.linalg.inv(precision)


def regression() -> Regression:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, INPUTS, generator=generator) @ (torch.eye(INPUTS) + 0.4)  # correlated columns
    y = x @ torch.tensor([0.8, -0.5, 0.3]) + NOISE * torch.randn(ROWS, generator=generator)
    return Regression(x, y)


class Moons(nn.Module):
    """2 - 32 - 32 - 2, with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(dropout))
        )
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def moons(seed: int = 0, rows: int = 200) -> tuple[Tensor, Tensor]:
    x, y = make_moons(rows, noise=0.15, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


class Trial:
    """A method in training on rows that fit into memory, as the loop trains it.

    Args:
        batch: rows of a step; all of them without shuffling if it is their number.
    """

    def __init__(
        self,
        settings: Any,
        module: nn.Module,
        likelihood: Categorical | Gaussian,
        rows: tuple[Tensor, Tensor],
        steps: int,
        batch: int,
        seed: int = 0,
    ) -> None:
        self.module, self.likelihood, self.rows, self.batch, self.seed = module, likelihood, rows, batch, seed
        self.horizon = RunLength(steps, math.ceil(len(rows[0]) / batch), len(rows[0]))
        self.method: Any = build_method(settings, Setup(module, self.horizon, seed))
        self.taken = 0

    def go(self, steps: int | None = None) -> Trial:
        """Some steps, or all that are left."""
        inputs, targets = self.rows
        for _ in range(self.horizon.total_steps - self.taken if steps is None else steps):
            epoch, number = divmod(self.taken, self.horizon.steps_per_epoch)
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
            order = order[number * self.batch : (number + 1) * self.batch]
            self.module.train()
            for _ in self.method.draws():
                torch.manual_seed(self.taken)
                self.likelihood.nll(self.module(inputs[order]), targets[order]).mean().backward()
            self.method.step()
            self.taken += 1
        if self.taken == self.horizon.total_steps:
            self.method.conclude(self.module, self.likelihood, lambda: iter([self.rows]), len(inputs))
        return self

    def posterior(self) -> Posterior:
        return Posterior.of(self.module, self.method)


def copies_trial(settings: Any, copies: int, steps: int, batch: int = ROWS, problem: Regression | None = None) -> Trial:
    """The regression, with so many copies."""
    problem = problem or regression()
    rows = problem.x, problem.y[:, None].expand(-1, copies)
    return Trial(settings, Copies(copies), Gaussian(NOISE), rows, steps, batch)


def moons_trial(settings: Any, steps: int = 400, dropout: float = 0.0, seed: int = 0) -> Trial:
    torch.manual_seed(seed)
    return Trial(settings, Moons(dropout), Categorical(), moons(), steps, batch=50, seed=seed)
