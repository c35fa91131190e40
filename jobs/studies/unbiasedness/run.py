"""Bias and variance of one iteration under mini-batches, and where the iterations end: ours, GSM, BaM, IVON.

    python jobs/studies/unbiasedness/run.py [--quick]

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

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ivon
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from proxscore.config import ConfigError
from proxscore.inference import ForwardKL, FullCovariance, Prior, ProximalScore, Schedule, foreach_step
from proxscore.inference.bucket import Bucket
from proxscore.inference.penalties import Tensors
from proxscore.inference.step import ProximalStep
from proxscore.methods.references import bam, gsm
from proxscore.tracking import study

N = 2000
EVALUATIONS = 8  # per update of the first part, and per step of the methods of the second that take several draws
WEIGHT = 1000.0  # precision weight of the first part's steps: the default
Moments = tuple[Tensor, Tensor]

# ---------------------------------------------------------------- targets


class Regression:
    """A regression y ~ x with prior N(0, I) on its D coefficients, in float64.

    Args:
        kind: ``linear`` (noise 1, orthogonal columns) or ``logistic`` (normal columns).
        dimension: D, at most N.
        seed: of the data.
    """

    def __init__(self, kind: str, dimension: int, seed: int) -> None:
        self.kind, self.dimension, self.name = kind, dimension, f"{kind}, D = {dimension:,}"
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(N, dimension, generator=generator, dtype=torch.float64)
        if kind == "linear":
            self.x = torch.linalg.qr(self.x).Q * math.sqrt(N)
        self.x *= torch.logspace(-0.25, 0.25, dimension, dtype=torch.float64)
        truth = 2 * torch.randn(dimension, generator=generator, dtype=torch.float64) / math.sqrt(dimension)
        signal = self.x @ truth
        noise = torch.rand(N, generator=generator, dtype=torch.float64)
        self.y = (
            signal + 2**0.5 * torch.erfinv(2 * noise - 1) if kind == "linear" else (noise < signal.sigmoid()).double()
        )
        self.log_evidence, self.efficiency = 0.0, 1.0
        self.mean, self.covariance = self._linear() if kind == "linear" else self._logistic(generator)
        self.variance = self.covariance.diagonal()
        signs = 1 - 2 * (torch.arange(dimension, dtype=torch.float64) % 2)
        self.start = self.mean + signs * self.variance.sqrt()
        self.start_precision = 3 / self.variance.log().mean().exp().item()

    def residuals(self, thetas: Tensor) -> Tensor:
        """d log p(y_i | x_i, theta) / d(x_i theta), (S, N) for draws (S, D)."""
        signal = thetas @ self.x.mT
        return self.y - (signal if self.kind == "linear" else signal.sigmoid())

    def score(self, thetas: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """Mini-batch scores (S, D), with rows of its own for each draw."""
        rows = sample(len(thetas), batch, generator)
        x, y = self.x[rows], self.y[rows]
        signal = torch.einsum("sbd,sd->sb", x, thetas)
        residuals = y - (signal if self.kind == "linear" else signal.sigmoid())
        return N / batch * torch.einsum("sb,sbd->sd", residuals, x) - thetas

    def log_joint(self, thetas: Tensor) -> Tensor:
        """log p(y, theta) up to a constant of the data, (S,)."""
        signal = thetas @ self.x.mT
        if self.kind == "linear":
            likelihood = -0.5 * (self.y - signal).square().sum(1)
        else:
            likelihood = (self.y * signal - nn.functional.softplus(signal)).sum(1)
        return likelihood - 0.5 * thetas.square().sum(1)

    def kl(self, mean: Tensor, covariance: Tensor, draws: int = 500) -> float:
        """KL(N(mean, covariance) || posterior) in nats; by Monte Carlo for the logistic one."""
        factor = torch.linalg.cholesky(covariance)
        if self.kind == "logistic":
            noise = torch.randn(draws, self.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) - factor.diagonal().log().sum()
            return (log_q - self.log_joint(mean + noise @ factor.mT)).mean().item() + self.log_evidence
        exact = torch.linalg.cholesky(self.covariance)
        ratio = torch.linalg.solve_triangular(exact, factor, upper=False)
        offset = torch.linalg.solve_triangular(exact, (mean - self.mean)[:, None], upper=False)
        power = 0.5 * (ratio.square().sum() + offset.square().sum() - len(mean))
        return (power - ratio.diagonal().log().sum()).item()

    def _linear(self) -> Moments:
        precision = self.x.mT @ self.x + torch.eye(self.dimension, dtype=torch.float64)
        return torch.linalg.solve(precision, self.x.mT @ self.y), torch.linalg.inv(precision)

    def _logistic(self, generator: torch.Generator, draws: int = 20_000) -> Moments:
        """Newton's method for the mode, then importance sampling from the Laplace approximation, widened by 5 %."""
        mean = torch.zeros(self.dimension, dtype=torch.float64)
        for _ in range(20):
            p = (self.x @ mean).sigmoid()
            hessian = (self.x.mT * (p * (1 - p))) @ self.x + torch.eye(self.dimension, dtype=torch.float64)
            mean = mean + torch.linalg.solve(hessian, self.x.mT @ (self.y - p) - mean)
        factor = 1.05 * torch.linalg.cholesky(torch.linalg.inv(hessian))
        noise = torch.randn(draws, self.dimension, generator=generator, dtype=torch.float64)
        thetas = mean + noise @ factor.mT
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) - factor.diagonal().log().sum()
        ratio = torch.cat([self.log_joint(part) for part in thetas.split(2000)]) - log_q
        self.log_evidence = (ratio.logsumexp(0) - math.log(draws)).item()
        weights = ratio.softmax(0)
        self.efficiency = (1 / weights.square().sum() / draws).item()
        mean = weights @ thetas
        return mean, (weights * (thetas - mean).mT) @ (thetas - mean)


def sample(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """``count`` mini-batches of rows without replacement, (count, batch)."""
    return torch.stack([torch.randperm(N, generator=generator)[:batch] for _ in range(count)])


# ---------------------------------------------------------------- one iteration


class Recorder(ForwardKL):
    """Keeps the statistics that the proximal step hands to its penalty."""

    def precision_ratio_(self, curvature: Tensors, weight: float) -> Tensors:
        object.__setattr__(self, "curvature", torch.stack(list(curvature)).flatten())
        return super().precision_ratio_(curvature, weight)

    def mean_step_(self, score: Tensors, ratio: Tensors, weight: float) -> Tensors:
        object.__setattr__(self, "score", torch.stack(list(score)).flatten())
        return super().mean_step_(score, ratio, weight)


class Anchor:
    """The fixed Gaussian N(mean, diag(variance)) of the first part."""

    def __init__(self, problem: Regression) -> None:
        signs = 1 - 2 * (torch.arange(problem.dimension, dtype=torch.float64) % 2)
        self.mean = problem.mean + signs * problem.variance.sqrt()
        self.variance, self.deviation, self.signs = 2 * problem.variance, (2 * problem.variance).sqrt(), -signs


def ours(anchor: Anchor, thetas: Tensor, scores: Tensor, paired: bool) -> dict[str, Tensor]:
    """u, k - 1 and log r, (R, D) each, by the package's own closed form; draws and scores (R, S, D).

    The curvature statistics of a step's pairs (or draws) are averaged before the step, as the optimizer does.
    """
    replicates, dimension = len(thetas), thetas.shape[-1]
    gradients = -(scores + thetas)  # of the negative log-likelihood: the prior's part of the score is -theta
    curvatures = []
    for index in range(0, thetas.shape[1], 2 if paired else 1):
        gradient, theta = gradients[:, index], thetas[:, index]
        if paired:
            gradient, theta = gradients[:, index + 1] - gradient, thetas[:, index + 1]
        bucket = _bucket(anchor, theta, gradient.clone(), gradient)
        foreach_step.curvature_(bucket, 0.5 if paired else 1.0, paired)
        curvatures.append(bucket.statistic[0])
    bucket = _bucket(anchor, thetas[:, 0], torch.stack(curvatures).mean(0), gradients.mean(1))
    recorder: Any = Recorder(WEIGHT)
    (ratio,) = foreach_step.update_(
        bucket,
        ProximalStep(recorder, (WEIGHT, 2.0), score_scale=-1.0),
    )
    shape = (replicates, dimension)
    return {
        "u": recorder.score.view(shape),
        "k": recorder.curvature.view(shape) - 1,
        "step": ratio.view(shape).log(),
    }


def _bucket(anchor: Anchor, weights: Tensor, statistic: Tensor, score: Tensor) -> Bucket:
    """Replicates side by side: everything is elementwise."""
    count = len(weights)
    mean, precision = anchor.mean.repeat(count), (1 / anchor.variance).repeat(count)
    return Bucket(
        weights=[weights.flatten().clone()],
        mean=[mean],
        precision=[precision],
        score=[torch.zeros_like(mean)],
        total=[score.flatten()],
        statistic=[statistic.flatten()],
        square=[None],
        prior_mean=[None],
        displacement=[None],
        prior_precision=[1.0],
        squares=[0.0],
    )


def ivon_estimator(anchor: Anchor, thetas: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """The same of IVON: Hessian estimate mean(noise g) / sigma^2, and its update with the second-order correction."""
    gradients = -(scores + thetas) / N
    noise = thetas - anchor.mean
    decay, hess = 1.0 / N, (1 / anchor.variance - 1) / N
    estimate = (noise * gradients).mean(1) / anchor.variance
    rate = 1 / WEIGHT
    new = (1 - rate) * hess + rate * estimate + 0.5 * rate**2 * (hess - estimate).square() / (hess + decay)
    score = -N * (gradients.mean(1) + decay * anchor.mean) * anchor.deviation
    return {
        "u": score,
        "k": (estimate + decay) * N * anchor.variance - 1,
        "step": ((new + decay) / (hess + decay)).log(),
    }


def matched(update: Callable[..., Moments]) -> Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]:
    """Steps of mean (in standard deviations) and log-precision of GSM or BaM, replicate by replicate."""

    def steps(anchor: Anchor, thetas: Tensor, scores: Tensor) -> dict[str, Tensor]:
        results = [update(anchor.mean, anchor.variance.diag(), *pair) for pair in zip(thetas, scores, strict=True)]
        means = torch.stack([mean for mean, _ in results])
        variances = torch.stack([covariance.diagonal() for _, covariance in results])
        return {"u": (means - anchor.mean) / anchor.deviation, "step": -(variances / anchor.variance).log()}

    return steps


def batch_and_match(weight: float) -> Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]:
    def update(mean: Tensor, covariance: Tensor, draws: Tensor, scores: Tensor) -> Moments:
        solve = bam.low_rank_update if len(draws) < len(mean) else bam.full_update
        return solve(mean, covariance, draws, scores, weight)

    return matched(update)


@dataclass(frozen=True)
class Estimator:
    """One way to make an update of draws (R, S, D) and their scores."""

    update: Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]
    paired: bool = False
    own_batches: bool = False
    scale: float | None = None  # of the log-precision step; none: its full-batch expectation


def _ours(paired: bool) -> Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]:
    return lambda anchor, thetas, scores: ours(anchor, thetas, scores, paired)


SMALL = 1 / (2 * WEIGHT)  # BaM's lambda that moves the precision, without noise, as far as ours at WEIGHT
ESTIMATORS = {
    "ours, paired": Estimator(_ours(True), paired=True),
    "ours, unpaired": Estimator(_ours(False)),
    "IVON's": Estimator(ivon_estimator),
    "BaM, λ = 0.0005": Estimator(batch_and_match(SMALL)),
    "BaM, λ = 1": Estimator(batch_and_match(1.0)),
    "BaM, λ = 1, own batches": Estimator(batch_and_match(1.0), own_batches=True),
    "GSM": Estimator(matched(gsm.update), scale=math.log(2)),
}


@dataclass(frozen=True)
class Measured:
    """Relative bias of a statistic, its standard error and spread, and the coordinates' rms z-score (1: no bias)."""

    bias: float
    error: float
    z: float
    spread: float


def measure(problem: Regression, estimator: Estimator, batch: int, replicates: int, seed: int) -> dict[str, Measured]:
    """Bias of every statistic at one batch size, from replicates with mini-batch and full-batch scores of the same draws."""
    anchor, generator = Anchor(problem), torch.Generator().manual_seed(seed)
    pieces: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for first in range(0, replicates, 50):
        count = min(50, replicates - first)
        draws = EVALUATIONS // 2 if estimator.paired else EVALUATIONS
        noise = torch.randn(count, draws, problem.dimension, generator=generator, dtype=torch.float64)
        if estimator.paired:
            noise = torch.stack([noise, -noise], 2).flatten(1, 2)
        thetas = anchor.mean + anchor.deviation * noise
        residuals = problem.residuals(thetas.flatten(0, 1))
        full = (residuals @ problem.x).view_as(thetas) - thetas
        keys = torch.rand(count * (EVALUATIONS if estimator.own_batches else 1), N, generator=generator)
        mask = torch.zeros_like(keys, dtype=torch.float64)
        mask.scatter_(1, keys.topk(batch, 1).indices, N / batch)
        if not estimator.own_batches:
            mask = mask.repeat_interleave(EVALUATIONS, 0)
        mini = ((residuals * mask) @ problem.x).view_as(thetas) - thetas
        pieces.append((estimator.update(anchor, thetas, mini), estimator.update(anchor, thetas, full)))
    results = {}
    for name in pieces[0][0]:
        mini, full = (torch.cat([piece[side][name] for piece in pieces]) for side in (0, 1))
        sign = anchor.signs if name == "u" else torch.ones_like(anchor.signs)
        scale = (full * sign).mean().abs()
        if name == "step" and estimator.scale is not None:
            scale = torch.tensor(estimator.scale)
        difference = mini - full
        along = (difference * sign).mean(1)
        errors = difference.std(0) / math.sqrt(replicates)
        z = 0.0 if batch == N else (difference.mean(0) / errors).square().mean().sqrt().item()
        spread = mini.var(0).mean().sqrt() * math.sqrt(EVALUATIONS) / scale
        bias, error = along.mean() / scale, along.std() / math.sqrt(replicates) / scale
        results[name] = Measured(bias.item(), error.item(), z, spread.item())
    return results


# ---------------------------------------------------------------- the end of the iterations

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


@dataclass(frozen=True)
class End:
    """Mean and standard error over the seeds: variance ratio (geometric) and KL in nats; nan where a run diverged."""

    ratio: float
    ratio_error: float
    kl: float
    kl_error: float

    @classmethod
    def of(cls, problem: Regression, runs: list[list[Moments]]) -> End:
        ratios, divergences = [], []
        for run in runs:
            logs = [(covariance.diagonal() / problem.variance).log().mean().item() for _, covariance in run]
            ratios.append(statistics.mean(logs))
            divergences.append(statistics.mean(problem.kl(mean, covariance) for mean, covariance in run))
        count = math.sqrt(len(runs))
        errors = [statistics.stdev(values) / count if len(runs) > 1 else math.nan for values in (ratios, divergences)]
        ratio = math.exp(statistics.mean(ratios))
        return cls(ratio, ratio * errors[0], statistics.mean(divergences), errors[1])


def end(problem: Regression, method: str, batch: int, evaluations: int, seeds: Sequence[int]) -> End | str:
    """Where a method ends, or why it did not."""
    try:
        return End.of(problem, FITS[method](problem, batch, evaluations, seeds))
    except (FloatingPointError, torch.linalg.LinAlgError):
        return "diverged"


# ---------------------------------------------------------------- tables and figures


def number(value: float, error: float) -> str:
    digits = 4 if abs(value) < 10 else 1
    return f"{value:.{digits}f} ± {error:.{digits}f}" if abs(value) < 1e4 else f"{value:.1e} ± {error:.0e}"


def iteration_rows(results: dict[tuple[str, str, int], dict[str, Measured]]) -> list[list[str]]:
    rows = []
    for (problem, method, batch), measured in results.items():
        cells = [problem, method, f"{batch:,}"]
        for name in ("u", "k", "step"):
            found = measured.get(name)
            cells += ["", ""] if found is None else [number(found.bias, found.error), f"{found.z:.2f}"]
        cells += [f"{measured[name].spread:.3g}" if name in measured else "" for name in ("u", "k", "step")]
        rows.append(cells)
    return rows


ITERATION_HEADER = ["target", "method", "batch", "bias of mean", "rms z", "bias of curvature", "rms z"]
ITERATION_HEADER += ["bias of log-precision step", "rms z", "sd of mean", "sd of curvature", "sd of step"]


def iteration_figure(
    results: dict[tuple[str, str, int], dict[str, Measured]], quantity: str, attribute: str, label: str
) -> Figure:
    problems = list(dict.fromkeys(problem for problem, _, _ in results))
    figure = Figure(figsize=(4 * len(problems), 4.2), layout="constrained")
    axes = figure.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    for axis, problem in zip(axes, problems, strict=True):
        for number_, method in enumerate(ESTIMATORS):
            points = [
                (b, m[quantity]) for (p, n, b), m in results.items() if (p, n) == (problem, method) and quantity in m
            ]
            if not points:
                continue
            points = [(batch, point) for batch, point in points if attribute != "bias" or batch < N]
            batches = [batch * 1.03**number_ for batch, _ in points]
            values = [getattr(point, attribute) for _, point in points]
            errors = [2 * point.error if attribute == "bias" else 0.0 for _, point in points]
            axis.errorbar(batches, values, errors, marker="o", markersize=4, linewidth=1, capsize=2, label=method)
        _batch_axis(axis, problem, sorted({batch for _, _, batch in results if attribute != "bias" or batch < N}))
        if attribute == "bias":
            axis.set_yscale("symlog", linthresh=0.1)
            axis.axhline(0, color="black", linewidth=0.5)
        else:
            axis.set_yscale("log")
    axes[0].set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _batch_axis(axis: Any, title: str, batches: Sequence[int]) -> None:
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axis.set_xlim(batches[0] / 1.3, batches[-1] * 1.6)
    axis.set_title(title)
    axis.set_xlabel("batch size (rows)")


#: What the figures of the end show; GSM goes beyond, see the table.
END_LIMITS = {"ratio": (3e-3, 3e2), "kl": (1e-3, 1e4)}


def end_figure(results: dict[tuple[str, str, int], End | str], attribute: str, label: str) -> Figure:
    problems = list(dict.fromkeys(problem for problem, _, _ in results))
    figure = Figure(figsize=(4 * len(problems), 4.2), layout="constrained")
    axes = figure.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    for axis, problem in zip(axes, problems, strict=True):
        for method in FITS:
            points = [(b, e) for (p, n, b), e in results.items() if (p, n) == (problem, method) and isinstance(e, End)]
            values, errors = ([getattr(e, name) for _, e in points] for name in (attribute, f"{attribute}_error"))
            style = "--" if method.startswith(("BaM", "GSM")) else "-"
            batches = [batch for batch, _ in points]
            axis.errorbar(batches, values, errors, marker="o", markersize=4, linestyle=style, capsize=2, label=method)
        _batch_axis(axis, problem, sorted({batch for _, _, batch in results}))
        axis.set_yscale("log")
        axis.set_ylim(*END_LIMITS[attribute])
        if attribute == "ratio":
            axis.axhline(1, color="black", linewidth=0.5)
    axes[0].set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that everything works")
    parser.add_argument("--output", type=Path, help="folder that gets the tables and figures too")
    parser.add_argument("--seed", type=int, default=0, help="of data, draws and mini-batches")
    parser.add_argument("--seeds", type=int, default=3, help="runs per end")
    options = parser.parse_args()
    targets = [("linear", 10), ("linear", 100), ("linear", 1000), ("logistic", 10), ("logistic", 100)]
    batches, replicates, evaluations = [20, 100, 500, 2000], {10: 5000, 100: 600, 1000: 40}, 3000
    if options.quick:
        targets, batches, replicates, evaluations = [("linear", 10), ("logistic", 10)], [20, 2000], {10: 50}, 160
    seeds = [options.seed + 1000 * index for index in range(1, options.seeds + 1)]
    settings = {"quick": options.quick, "seed": options.seed, "seeds": options.seeds, "evaluations": evaluations}
    try:
        with study("unbiasedness", settings, options.output) as record:
            iterations: dict[tuple[str, str, int], dict[str, Measured]] = {}
            ends: dict[tuple[str, str, int], End | str] = {}
            problems = [Regression(kind, dimension, options.seed) for kind, dimension in targets]
            fitted = [problem for problem in problems if problem.dimension <= 100]
            total = len(batches) * (len(problems) * len(ESTIMATORS) + len(fitted) * len(FITS))
            with tqdm(total=total) as progress:
                for problem in problems:
                    for method, estimator in ESTIMATORS.items():
                        for batch in batches:
                            progress.set_postfix_str(f"one iteration: {problem.name}, {method}, batch {batch}")
                            iterations[problem.name, method, batch] = measure(
                                problem, estimator, batch, replicates[problem.dimension], options.seed + 1
                            )
                            progress.update()
                for problem in fitted:
                    for method in FITS:
                        for batch in batches:
                            progress.set_postfix_str(f"the end: {problem.name}, {method}, batch {batch}")
                            ends[problem.name, method, batch] = end(problem, method, batch, evaluations, seeds)
                            progress.update()
            for problem in problems:
                record.metrics({f"importance_efficiency/{problem.kind}_{problem.dimension}": problem.efficiency})
            report(record, iterations, ends)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(
    record: Any,
    iterations: dict[tuple[str, str, int], dict[str, Measured]],
    ends: dict[tuple[str, str, int], End | str],
) -> None:
    """Tables and figures of both parts."""
    record.table("one_iteration", ITERATION_HEADER, iteration_rows(iterations))
    rows = []
    for (problem, method, batch), result in ends.items():
        cells = [result, result]
        if isinstance(result, End):
            cells = [number(result.ratio, result.ratio_error), number(result.kl, result.kl_error)]
        rows.append([problem, method, f"{batch:,}", *cells])
    record.table("the_end", ["target", "method", "batch", "variance ratio", "KL (nats)"], rows)
    bias, two = "relative bias of the", "± 2 standard errors"
    record.figure("bias_precision", iteration_figure(iterations, "step", "bias", f"{bias} log-precision step\n{two}"))
    record.figure("bias_mean", iteration_figure(iterations, "u", "bias", f"{bias} mean statistic\n{two}"))
    spread = "relative standard deviation of the\nlog-precision step, per evaluation"
    record.figure("spread_precision", iteration_figure(iterations, "step", "spread", spread))
    record.figure("end_variance", end_figure(ends, "ratio", "fitted / exact marginal variance"))
    record.figure("end_kl", end_figure(ends, "kl", "KL(q || posterior) (nats)"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
