"""Where the iterations of each method end: variances and KL to the posterior after as many gradient evaluations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import ivon
import torch
from targets import Moments, N, Regression, sample  # type: ignore[import-not-found]  # beside this file
from torch import Tensor, nn

from proxscore.inference import ForwardKL, FullCovariance, Prior, ProximalScore, Schedule
from proxscore.methods.references import bam, gsm

EVALUATIONS = 8  # per step of the methods that take several draws

Fit = Callable[[Regression, int, int, Sequence[int]], list[list[Moments]]]


def cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def negative_log_likelihood(problem: Regression, weights: Tensor, rows: Tensor | None) -> Tensor:
    """Mean over a mini-batch (rows (S, B); none: all data), summed over the runs of weights (S, D)."""
    if rows is None:
        signal, y = weights @ problem.x.mT, problem.y
    else:
        signal, y = torch.einsum("sbd,sd->sb", problem.x[rows], weights), problem.y[rows]
    if problem.kind == "linear":
        return 0.5 * (signal - y).square().mean(1).sum()
    return (nn.functional.softplus(signal) - y * signal).mean(1).sum()


def proximal(paired: bool, full: bool) -> Fit:
    """Our optimizer at its defaults, but for both weights' cosine schedules and a precision weight for a converged run.

    All seeds run side by side: rows of one parameter (mean-field), or a block each (full covariance).
    """

    def fit(problem: Regression, batch: int, evaluations: int, seeds: Sequence[int]) -> list[list[Moments]]:
        rows = [nn.Parameter(problem.start.clone()) for _ in seeds] if full else []
        joint = nn.Parameter(problem.start.repeat(len(seeds), 1))
        draws = EVALUATIONS // 2 if full else 1
        steps = evaluations // (draws * (2 if paired else 1))
        schedule = Schedule("cosine", length=steps)
        optimizer = ProximalScore(
            [(f"row.{index}", row) for index, row in enumerate(rows)] or [("rows", joint)],
            N,
            prior=Prior(scale=1.0),
            penalty=ForwardKL(steps / 15, 2.0, schedule, schedule),
            families={f"row.{index}": FullCovariance() for index in range(len(rows))},
            initial_precision=(problem.start_precision - 1) / N,
            paired=paired,
            draws=draws,
            seed=seeds[0],
            metric="posterior",
        )
        generator, snapshots = torch.Generator().manual_seed(seeds[0]), []
        for step in range(steps):
            chosen = sample(len(seeds), batch, generator) if batch < N else None
            for _ in optimizer.draws():
                weights = torch.stack(list(rows)) if full else joint
                negative_log_likelihood(problem, weights, chosen).backward()
            optimizer.step()
            if is_snapshot(step, steps):
                snapshots.append(_moments(optimizer, full))
        return [list(run) for run in zip(*snapshots, strict=True)]

    return fit


def _moments(optimizer: ProximalScore, full: bool) -> list[Moments]:
    if full:
        states = [block.state for block in optimizer.blocks()]
        return [(state["mean"].clone(), state["factor"] @ state["factor"].mT) for state in states]
    ((_, _, state),) = optimizer.sampled()
    return [
        (mean.clone(), (1 / precision).diag())
        for mean, precision in zip(state["mean"], state["precision"], strict=True)
    ]


def is_snapshot(step: int, steps: int) -> bool:
    """Five over the last tenth of the run."""
    return step >= 0.9 * steps and (steps - 1 - step) % max(steps // 50, 1) == 0


def ivon_fit(problem: Regression, batch: int, evaluations: int, seeds: Sequence[int]) -> list[list[Moments]]:
    """IVON with the step sizes of ours to first order, cosine on both."""
    weights = nn.Parameter(problem.start.repeat(len(seeds), 1))
    optimizer = ivon.IVON(
        [weights], 0.2, ess=N, hess_init=(problem.start_precision - 1) / N, weight_decay=1 / N, rescale_lr=False
    )
    generator, snapshots = torch.Generator().manual_seed(seeds[0]), []
    torch.manual_seed(seeds[0])
    for step in range(evaluations):
        group = optimizer.param_groups[0]
        factor = cosine(step, evaluations)
        group["lr"], group["beta2"] = 0.2 * factor, 1 - factor * 15 / evaluations
        chosen = sample(len(seeds), batch, generator) if batch < N else None
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            negative_log_likelihood(problem, weights, chosen).backward()
        optimizer.step()
        if is_snapshot(step, evaluations):
            precision = (N * (group["hess"] + 1 / N)).view_as(weights)
            runs = zip(weights.detach().clone(), precision, strict=True)
            snapshots.append([(mean, (1 / row).diag()) for mean, row in runs])
    return [list(run) for run in zip(*snapshots, strict=True)]


def reference(module: Any, draws: int, **settings: Callable[[int], Any]) -> Fit:
    """GSM or BaM with that many draws per step, each with a mini-batch of its own; settings are functions of the steps."""

    def fit(problem: Regression, batch: int, evaluations: int, seeds: Sequence[int]) -> list[list[Moments]]:
        steps = evaluations // draws
        runs: list[list[Moments]] = []
        for seed in seeds:
            snapshots: list[Moments] = []

            def keep(step: int, _: int, mean: Tensor, covariance: Tensor, kept: list[Moments] = snapshots) -> None:
                if is_snapshot(step - 1, steps):
                    kept.append((mean, covariance))

            module.fit(
                lambda thetas, generator: (
                    problem.score(thetas, batch, generator)
                    if batch < N
                    else problem.residuals(thetas) @ problem.x - thetas
                ),
                problem.start,
                torch.eye(problem.dimension, dtype=torch.float64) / problem.start_precision,
                steps=steps,
                draws=draws,
                generator=torch.Generator().manual_seed(seed),
                trace=keep,
                **{name: setting(steps) for name, setting in settings.items()},
            )
            runs.append(snapshots)
        return runs

    return fit


def decaying(steps: int) -> Callable[[int], float]:
    return lambda step: max(cosine(step, steps), 1e-6)


FITS: dict[str, Fit] = {
    "ours, paired, mean-field": proximal(paired=True, full=False),
    "ours, unpaired, mean-field": proximal(paired=False, full=False),
    "ours, paired, full covariance": proximal(paired=True, full=True),
    "IVON, mean-field": ivon_fit,
    "BaM, λ from 1 to 0": reference(bam, EVALUATIONS, learning_rate=decaying),
    "BaM, λ of its paper": reference(bam, EVALUATIONS),
    "GSM": reference(gsm, 2),
}


def end(problem: Regression, method: str, batch: int, evaluations: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Where a method ends, by seed: ``ratio`` (log of the variance ratio) and ``kl`` (nats); empty where it diverged."""
    found: dict[str, Any] = {"ratio": [], "kl": []}
    try:
        for run in FITS[method](problem, batch, evaluations, seeds):
            logs = [(covariance.diagonal() / problem.variance).log().mean().item() for _, covariance in run]
            found["ratio"].append(statistics.mean(logs))
            found["kl"].append(statistics.mean(problem.kl(mean, covariance) for mean, covariance in run))
    except (FloatingPointError, torch.linalg.LinAlgError):
        return {"ratio": [], "kl": []}
    return found
