"""Bias and variance of one iteration under mini-batches, and where the iterations end: ours, GSM, BaM, IVON.

    python jobs/studies/unbiasedness/run.py [--quick] [--seed 0] [--seeds 3]

Bayesian linear and logistic regression with 2,000 rows, batches of 20 to 2,000 rows, equal numbers of gradient evaluations.

**One iteration** from a fixed Gaussian: mean one posterior standard deviation off in every coordinate, variances twice the
posterior's. Eight gradient evaluations, then

* ours (mean-field): the statistics u and k that enter the closed form, and the step log r that follows from k;
* IVON's estimator (arXiv 2402.17641): gradient and Hessian eps g / sigma in the same units, and its step of the log-precision;
* GSM (arXiv 2307.07849) and BaM (arXiv 2402.14758): their step of mean and log-precision (= -log of the marginal variance).

Bias = expectation over mini-batches minus the full-batch value *at the same draws*, relative to the full-batch expectation:
0 is unbiased, -1 an update that stands still, below -1 one in the wrong direction. Of the mean, along the true direction.
GSM has no step size, and its expected full-batch step of the log-precision may be near zero: its bias is relative to log 2
instead, the whole distance to the posterior.
Rows are drawn without replacement; all draws of a step share a mini-batch, or each has its own where a method says so.

**The end**: every method from equal variances, a third of the posterior's geometric mean, and from means one posterior
standard deviation off in every coordinate, for the same number of evaluations. Variance ratio: fitted by exact marginal
variance, geometric mean over the coordinates; KL(q || posterior) in nats. Both averaged over the last tenth of the run. The
linear design has orthogonal columns, so that its posterior lies in the mean-field family too; the logistic posterior's
moments and evidence come from importance sampling.
"""

from __future__ import annotations

import math
import statistics
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from one_iteration import ESTIMATORS, measure  # type: ignore[import-not-found]  # beside this file
from targets import N, Regression  # type: ignore[import-not-found]
from the_end import FITS, end  # type: ignore[import-not-found]

from proxscore.experiments.study import Rows, command, lines
from proxscore.tracking import Study

Key = tuple[str, str, int]  # target, method, batch
TARGETS = [("linear", 10), ("linear", 100), ("linear", 1000), ("logistic", 10), ("logistic", 100)]
BATCHES, REPLICATES, LENGTH = [20, 100, 500, 2000], {10: 5000, 100: 600, 1000: 40}, 3000
QUICK: tuple[Any, ...] = ([("linear", 10), ("logistic", 10)], [20, 2000], {10: 50}, 160)


def number(value: float, error: float) -> str:
    digits = 4 if abs(value) < 10 else 1
    return f"{value:.{digits}f} ± {error:.{digits}f}" if abs(value) < 1e4 else f"{value:.1e} ± {error:.0e}"


def average(values: list[float], *, logs: bool = False) -> tuple[float, float]:
    """Mean and standard error over the seeds; of logarithms, the geometric mean."""
    mean = statistics.mean(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return (math.exp(mean), math.exp(mean) * error) if logs else (mean, error)


def iterations(found: dict[Key, dict[str, dict[str, float]]], record: Study) -> None:
    """Tables and figures of one iteration."""
    table = []
    for (problem, method, batch), measured in found.items():
        cells = [problem, method, f"{batch:,}"]
        for name in ("u", "k", "step"):
            one = measured.get(name)
            cells += ["", ""] if one is None else [number(one["bias"], one["error"]), f"{one['z']:.2f}"]
        table.append(cells + [f"{measured[n]['spread']:.3g}" if n in measured else "" for n in ("u", "k", "step")])
    header = ["target", "method", "batch", "bias of mean", "rms z", "bias of curvature", "rms z"]
    header += ["bias of log-precision step", "rms z", "sd of mean", "sd of curvature", "sd of step"]
    record.table("one_iteration", header, table)
    bias, two = "relative bias of the", "± 2 standard errors"
    for name, what in (("step", "log-precision step"), ("u", "mean statistic")):
        panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
        for (problem, method, batch), measured in found.items():
            if name in measured and batch < N:
                point = (batch, measured[name]["bias"], 2 * measured[name]["error"])
                panels.setdefault(problem, {}).setdefault(method, []).append(point)
        figure = lines(panels, "batch size (rows)", f"{bias} {what}\n{two}", y="symlog")
        record.figure(f"bias_{'precision' if name == 'step' else 'mean'}", figure)


def ends(found: dict[Key, dict[str, list[float]]], record: Study) -> None:
    """Table and figures of the ends."""
    table = []
    panels: dict[str, dict[str, dict[str, list[tuple[float, float, float]]]]] = {"ratio": {}, "kl": {}}
    for (problem, method, batch), runs in found.items():
        cells = []
        for name, values in runs.items():
            if not values:
                cells.append("diverged")
                continue
            mean, error = average(values, logs=name == "ratio")
            cells.append(number(mean, error))
            point = (batch, mean, 0.0 if math.isnan(error) else error)
            panels[name].setdefault(problem, {}).setdefault(method, []).append(point)
        table.append([problem, method, f"{batch:,}", *cells])
    record.table("the_end", ["target", "method", "batch", "variance ratio", "KL (nats)"], table)
    for name, what in (("ratio", "fitted / exact marginal variance"), ("kl", "KL(q || posterior) (nats)")):
        record.figure(f"end_{name}", lines(panels[name], "batch size (rows)", what))


def study(options: Namespace, record: Study, rows: Rows) -> None:
    targets, batches, replicates, length = QUICK if options.quick else (TARGETS, BATCHES, REPLICATES, LENGTH)
    seeds = [options.seed + 1000 * index for index in range(1, options.seeds + 1)]
    problems = {}
    for kind, dimension in targets:
        problem = Regression(kind, dimension, options.seed)
        problems[problem.name] = problem
        record.metrics({f"importance_efficiency/{kind}_{dimension}": problem.efficiency})

    def one(key: tuple[str, str, int, str, int]) -> dict[str, Any]:
        problem = problems[key[0]]
        count = replicates[problem.dimension]
        found = measure(problem, ESTIMATORS[key[1]], key[2], count, options.seed + 1)
        return {name: asdict(value) for name, value in found.items()}

    def last(key: tuple[str, str, int, str, int, int]) -> dict[str, Any]:
        return end(problems[key[0]], key[1], key[2], length, seeds)

    grid = [(p, m, b, "one iteration", options.seed) for p in problems for m in ESTIMATORS for b in batches]
    iterations({key[:3]: row for key, row in rows.each(grid, one)}, record)
    fitted = [name for name, problem in problems.items() if problem.dimension <= 100]
    long = [(p, m, b, "the end", options.seed, options.seeds) for p in fitted for m in FITS for b in batches]
    ends({key[:3]: row for key, row in rows.each(long, last)}, record)


if __name__ == "__main__":
    seed = {"type": int, "default": 0, "help": "of data, draws and mini-batches"}
    sys.exit(command("unbiasedness", __doc__, study, {"seed": seed}))
