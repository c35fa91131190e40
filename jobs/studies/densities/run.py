"""Posteriors of three small statistical models beside the truth: what one call of ``proxscore.density.fit`` finds.

    python jobs/studies/densities/run.py [--steps 1000] [--seeds 1] [--only "eight schools"] [--quick]

    eight schools   Rubin (1981), not centred: mu ~ N(0, 5^2), log tau ~ N(log 5, 1), eta_j ~ N(0, 1), y_j ~ N(mu + tau eta_j,
                    sigma_j^2). Beside NUTS: the stored run of tests/references, four chains of 20,000.
    local level     the Nile's flow 1871 to 1970 in its unit / 100: level_1 ~ N(10, 5^2), level_t = level_(t-1) + tau z_t,
                    y_t ~ N(level_t, sigma^2); log sigma, log tau ~ N(0, 1), z_t ~ N(0, 1): 102 numbers. Beside the exact
                    posterior: a Kalman smoother on a grid of (log sigma, log tau).
    regression      12 correlated covariates (correlation 0.8), 1,000 rows in batches of 100, prior scale 10, noise 1. Beside
                    the closed form.

For each: the largest and the root-mean-square error of the means in the truth's standard deviations, the ratio of the standard
deviations, gradient evaluations of the density, and seconds; by proximal score matching (the default: preset, full covariance)
and, where the density is whole, by batch and match (``method="bam"``). Of a posterior that is not Gaussian, the Gaussian of
least KL(q || p) is no moment match: what differs by that stays.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from statsmodels.datasets import nile
from torch import Tensor
from torch.distributions import Normal

from proxscore.density import fit
from proxscore.experiments.study import Rows, command
from proxscore.posterior import Posterior
from proxscore.tracking import Study

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


def moments(model: Model, posterior: Posterior) -> tuple[Tensors, Tensors]:
    """Means and standard deviations of what is compared; of functions, those of 4,000 draws."""
    if model.functions is None:
        return posterior.mean, posterior.sd()
    drawn = posterior.sample(4000, seed=1)
    rows = [model.functions({name: value[i] for name, value in drawn.items()}) for i in range(4000)]
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {n: v.mean(0) for n, v in stacked.items()}, {n: v.std(0) for n, v in stacked.items()}


def row(model: Model, method: str, steps: int, seed: int) -> list[str]:
    """A line of the table: what was found for the truth, and what it cost."""
    count = 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal count
        count += 1
        return model.log_density(*arguments)

    began = time.process_time()
    posterior = fit(counted, model.start, method=method, steps=steps, seed=seed, **model.data)
    seconds = time.process_time() - began
    mean, sd = moments(model, posterior)
    cells = []
    for name, truth in model.mean.items():
        error, ratio = (mean[name] - truth) / model.sd[name], sd[name] / model.sd[name]
        worst, low, high = error.abs().max(), ratio.min(), ratio.max()
        if truth.ndim:
            cells.append(f"{name}: means off by at most {worst:.3f} sd, sd x {low:.3f} to {high:.3f}")
        else:
            found = f"{mean[name]:.3f} ± {sd[name]:.3f} for {truth:.3f} ± {model.sd[name]:.3f}"
            cells.append(f"{name}: {found}")
    return [model.name, f"{method}, seed {seed}", "; ".join(cells), f"{count:,}", f"{seconds:.0f}"]


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    steps = 20 if options.quick else options.steps
    table = []
    for build in (eight_schools, local_level, regression):
        model = build()
        if options.only not in (None, model.name):
            continue
        lengths = {"proximal_score": steps} | ({} if model.data else {"bam": max(steps // 2, 1)})
        for method, length in lengths.items():
            for seed in range(options.seeds):
                key = [model.name, method, length, seed]
                table.append(rows.row(key, lambda k=key, m=model: row(m, *k[1:])))  # type: ignore[misc]
    record.table("densities", ["model", "method", "found, for the truth", "gradients", "CPU seconds"], table)


if __name__ == "__main__":
    more: dict[str, dict[str, Any]] = {"steps": {"type": int, "default": 1000}, "only": {"help": "one of the models"}}
    sys.exit(command("densities", __doc__, measure, more | {"seeds": {"default": 1}}))
