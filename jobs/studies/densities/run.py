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

import sys
import time
from argparse import Namespace
from typing import Any

import torch
from models import Model, Tensors, eight_schools, local_level, regression  # type: ignore[import-not-found]  # beside this file
from torch import Tensor

from proxscore.density import fit
from proxscore.experiments.study import Rows, command
from proxscore.posterior import Posterior
from proxscore.tracking import Study


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
