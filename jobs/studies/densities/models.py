"""Three densities, and what is known of their posteriors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from statsmodels.datasets import nile
from torch import Tensor
from torch.distributions import Normal

Tensors = dict[str, Tensor]
DOUBLE: dict[str, Any] = dict(dtype=torch.float64)
STORED = Path(__file__).parents[3] / "tests" / "references" / "eight_schools.json"


@dataclass
class Model:
    """A density, and what is known of its posterior.

    Args:
        log_density, start: as of :func:`proxscore.density.fit`.
        mean, sd: the truth, by name.
        functions: what is compared, from named tensors (a draw); none: the tensors themselves.
        data: what the density takes besides: data, batch_size, log_prior.
    """

    name: str
    log_density: Callable[..., Tensor]
    start: Tensors
    mean: Tensors
    sd: Tensors
    functions: Callable[[Tensors], Tensors] | None = None
    data: dict[str, Any] = field(default_factory=dict)


def eight_schools() -> Model:
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], **DOUBLE)
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], **DOUBLE)
    unit = Normal(torch.zeros((), **DOUBLE), 1.0)

    def log_density(t: Tensors) -> Tensor:
        prior = unit.log_prob(t["mu"] / 5) + unit.log_prob(t["log_tau"] - math.log(5)) + unit.log_prob(t["eta"]).sum()
        return prior + Normal(t["mu"] + t["log_tau"].exp() * t["eta"], sigma).log_prob(y).sum()

    known = json.loads(STORED.read_text())["parameters"]
    mean, sd = (
        {"mu": v[0], "log_tau": v[1], "eta": v[2:]} for v in (torch.tensor(known[k], **DOUBLE) for k in ("mean", "sd"))
    )
    start = {"mu": torch.zeros((), **DOUBLE), "log_tau": torch.zeros((), **DOUBLE), "eta": torch.zeros(8, **DOUBLE)}
    return Model("eight schools", log_density, start, mean, sd)


def smoothed(y: Tensor, noise: float, drift: float) -> tuple[float, Tensor, Tensor]:
    """log p(y), and means and variances of the levels, of a local level model: filter forwards, smooth backwards."""
    level, variance, evidence = 10.0, 25.0, 0.0
    filtered: list[tuple[float, float, float]] = []
    for value in y.tolist():
        total, error = variance + noise**2, value - level
        evidence -= 0.5 * (math.log(2 * math.pi * total) + error**2 / total)
        gain = variance / total
        level, variance = level + gain * error, variance * (1 - gain)
        filtered.append((level, variance, variance + drift**2))
        variance += drift**2
    means, variances = [filtered[-1][0]], [filtered[-1][1]]
    for mean, spread, ahead in reversed(filtered[:-1]):
        back = spread / ahead
        means.append(mean + back * (means[-1] - mean))
        variances.append(spread + back**2 * (variances[-1] - ahead))
    return evidence, torch.tensor(means[::-1], **DOUBLE), torch.tensor(variances[::-1], **DOUBLE)


def local_level() -> Model:
    y = torch.tensor(nile.load().data["volume"].to_numpy(), **DOUBLE) / 100
    unit = Normal(torch.zeros((), **DOUBLE), 1.0)

    def levels(t: Tensors) -> Tensor:
        first = 10 + 5 * t["first"]
        return torch.cat([first[None], first + t["log_tau"].exp() * t["z"].cumsum(0)])

    def log_density(t: Tensors) -> Tensor:
        prior = sum((unit.log_prob(value).sum() for value in t.values()), torch.zeros((), **DOUBLE))
        return prior + Normal(levels(t), t["log_sigma"].exp()).log_prob(y).sum()

    weights, rows = [], []
    for log_sigma in torch.linspace(-0.6, 1.2, 46, **DOUBLE).tolist():
        for log_tau in torch.linspace(-4.0, 2.0, 61, **DOUBLE).tolist():
            evidence, mean, variance = smoothed(y, math.exp(log_sigma), math.exp(log_tau))
            weights.append(evidence - 0.5 * (log_sigma**2 + log_tau**2))
            scales = torch.tensor([log_sigma, log_tau], **DOUBLE)
            rows.append((torch.cat([scales, mean]), torch.cat([torch.zeros(2, **DOUBLE), variance])))
    share = torch.tensor(weights, **DOUBLE).softmax(0)
    means, variances = (torch.stack(column) for column in zip(*rows, strict=True))
    mean = share @ means
    sd = (share @ (variances + (means - mean).square())).sqrt()

    def named(v: Tensor) -> Tensors:
        return {"log_sigma": v[0], "log_tau": v[1], "level": v[2:]}

    start = {name: torch.zeros((), **DOUBLE) for name in ("log_sigma", "log_tau", "first")}
    start["z"] = torch.zeros(len(y) - 1, **DOUBLE)

    def functions(t: Tensors) -> Tensors:
        return {"log_sigma": t["log_sigma"], "log_tau": t["log_tau"], "level": levels(t)}

    return Model("local level", log_density, start, named(mean), named(sd), functions)


def regression() -> Model:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.cholesky(0.8 * torch.ones(12, 12, **DOUBLE) + 0.2 * torch.eye(12, **DOUBLE))
    x = torch.randn(1000, 12, generator=generator, **DOUBLE) @ mixing.mT
    y = x @ torch.randn(12, generator=generator, **DOUBLE) + torch.randn(1000, generator=generator, **DOUBLE)
    precision = x.mT @ x + torch.eye(12, **DOUBLE) / 100
    data = dict(data=(x, y), batch_size=100, log_prior=lambda t: -0.5 * (t["w"] / 10).square().sum())
    return Model(
        "regression",
        lambda t, x, y: -0.5 * (y - x @ t["w"]).square(),
        {"w": torch.zeros(12, **DOUBLE)},
        {"w": torch.linalg.solve(precision, x.mT @ y)},
        {"w": torch.linalg.inv(precision).diagonal().sqrt()},
        data=data,
    )
