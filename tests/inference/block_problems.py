"""What the tests of blocks and solvers share: quadratic targets, a network of two layers, and heads of every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.inference import (
    FullCovariance,
    Kronecker,
    LowRank,
    Mixture,
    ProximalScore,
)
from proxscore.inference.families import Family, State
from proxscore.inference.penalties import Penalty
from proxscore.inference.step import ProximalStep

D = 4
INF = float("inf")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(eigenvalues: list[float], seed: int = 0) -> Tensor:
    vectors = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed)).Q
    return vectors @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ vectors.mT


def anchor_of(seed: int = 3) -> State:
    """A full-covariance anchor whose root is neither symmetric nor triangular."""
    return {
        "mean": normal(D, seed=seed),
        "factor": torch.eye(D, dtype=torch.float64) + 0.4 * normal(D, D, seed=seed + 1),
    }


def stepped(
    anchor: State, u: Tensor, k: Tensor, penalty: Penalty, weights: tuple[float, float], **limits: Any
) -> State:
    """The closed-form step from whitened statistics."""
    state = {name: value.clone() for name, value in anchor.items()}
    score = torch.linalg.solve(state["factor"].mT, u)  # u = C^T score
    FullCovariance().step(state, score, k.clone(), ProximalStep(penalty, weights, **limits), None)
    return state


def whitened(anchor: State, state: State) -> tuple[Tensor, Tensor]:
    """R = C^T Lambda C of a state, and its mean's step in whitened coordinates."""
    ratio = torch.linalg.solve(state["factor"], anchor["factor"])
    return ratio.mT @ ratio, torch.linalg.solve(anchor["factor"], state["mean"] - anchor["mean"])


class Bowl(nn.Module):
    """A quadratic target: with data size 1 and a flat prior, its score is exactly -A (w - centre)."""

    def __init__(self, precision: Tensor, centre: Tensor, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())
        self.precision, self.centre = precision, centre

    def forward(self) -> Tensor:
        offset = self.w - self.centre
        return 0.5 * offset @ self.precision @ offset


class Two(nn.Module):
    """Two layers whose losses add up: what happens to the head never reaches the body."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 2, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), self.head(x)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(20, 3, seed=seed), normal(20, 2, seed=seed + 100)


def evaluate(module: nn.Module, seed: int = 0) -> Tensor:
    x, y = data(seed)
    return sum((output - y).square().mean() for output in module(x))


def train(module: nn.Module, optimizer: ProximalScore, steps: int, first: int = 0) -> None:
    for seed in range(first, first + steps):
        for _ in optimizer.draws():
            evaluate(module, seed).backward()
        optimizer.step()


HEADS: dict[str, Callable[[], dict[str, Family]]] = {
    "mean_field": dict,
    "full_covariance": lambda: {"head.*": FullCovariance()},
    "low_rank": lambda: {"head.*": LowRank(2)},
    "kronecker": lambda: {"head.weight": Kronecker()},
    "mixture": lambda: {"head.*": Mixture(2)},
    "mixed": lambda: {"head.*": LowRank(1), "head.weight": Kronecker(), "head.bias": FullCovariance()},
}
BLOCKS = [kind for kind in HEADS if kind != "mean_field"]


def states(optimizer: ProximalScore) -> dict[str, Tensor]:
    """Everything that a family or the fast path knows."""
    found = {
        f"{index}.{name}": v for index, block in enumerate(optimizer.blocks()) for name, v in block.entries().items()
    }
    for name, parameter, state in optimizer.sampled():
        found |= {f"{name}.{entry}": state[entry] for entry in ("mean", "precision")} | {name: parameter}
    return {name: value.detach().clone() for name, value in found.items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def mixed(kind: str, **settings: Any) -> tuple[Two, ProximalScore]:
    module = Two()
    return module, ProximalScore(
        module.named_parameters(),
        20,
        families=HEADS[kind](),
        metric="posterior",
        **({"initial_precision": 0.1, "paired": True} | {"initial_precision": 0.1} | settings),
    )
