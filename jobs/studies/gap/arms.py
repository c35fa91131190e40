"""How each arm fits the network: one Gaussian, from a start of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxscore.inference import ForwardKL, ProximalScore, Schedule, presets
from proxscore.inference.families import FullCovariance, MeanField

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "references"))
from reference_targets import Target  # type: ignore[import-not-found]

#: A Gaussian over theta: mean (D,) and a square root of its covariance (D, D); zero of a point.
Gaussian = tuple[Tensor, Tensor]
Fit = Callable[[Target, int], Gaussian]


def maximum(target: Target, seed: int) -> Tensor:
    """A maximum of the log joint, from a draw of the prior."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(target.dimension, generator=generator, dtype=torch.float64)
    theta = (target.prior_mean + target.prior_scale * start).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.02)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 2000)
        optimizer.zero_grad()
        (-target.log_joint(theta)).backward()
        optimizer.step()
    return theta.detach()


def trained(target: Target, start: Tensor, seed: int, steps: int, batch: int, **settings: Any) -> Gaussian:
    """A posterior after so many steps of mini-batches."""
    model = target.module(start)
    optimizer = ProximalScore(model.named_parameters(), target.rows, prior=target.prior(), seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        for rows in torch.randperm(target.rows, generator=generator).split(batch)[: target.rows // batch]:
            for _ in optimizer.draws():
                target.row_nll(model(target.inputs[rows]), rows).mean().backward()
            optimizer.step()
            done += 1
    found = target.join((name, parameter.detach()) for name, parameter in model.named_parameters())
    for block in optimizer.blocks():
        return found, block.state["factor"]
    return found, target.join((name, state["precision"]) for name, _, state in optimizer.sampled()).rsqrt().diag()


def point(target: Target, seed: int) -> Gaussian:
    theta = maximum(target, seed)
    return theta, torch.zeros(len(theta), len(theta), dtype=theta.dtype)


def full(target: Target, seed: int) -> Gaussian:
    cosine = Schedule("cosine", length=1000)
    settings: dict[str, Any] = dict(family=FullCovariance(), penalty=ForwardKL(1000.0, 2.0, cosine, cosine))
    settings |= dict(metric="posterior", initial_precision=10.0, paired=True)
    return trained(target, maximum(target, seed), seed, 1000, 70, **settings)


def diagonal(target: Target, seed: int) -> Gaussian:
    cosine = Schedule("cosine", length=2000)
    settings: dict[str, Any] = dict(family=MeanField(), penalty=ForwardKL(100.0, 2.0, cosine, cosine))
    settings |= dict(metric="posterior", initial_precision=10.0, paired=True)
    return trained(target, maximum(target, seed), seed, 2000, 35, **settings)


def defaults(target: Target, seed: int) -> Gaussian:
    """As the method is given, from a draw of the prior, for as many evaluations as the maxima's search takes."""
    generator = torch.Generator().manual_seed(seed)
    start = target.prior_scale * torch.randn(target.dimension, generator=generator, dtype=torch.float64)
    return trained(target, target.prior_mean + start, seed, 4000, 70, **presets.network(4000))


ARMS: dict[str, tuple[Fit, bool]] = {
    "defaults": (defaults, False),
    "defaults, several": (defaults, True),
    "mean field, converged": (diagonal, False),
    "mean field, converged, several": (diagonal, True),
    "full covariance": (full, False),
    "full covariance, several": (full, True),
    "maxima, several (deep ensemble)": (point, True),
}
