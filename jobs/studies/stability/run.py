"""Does the iteration stay stable as the dimension grows, and which proximal weights and settings make it diverge?

    python jobs/studies/stability/run.py [--quick]

Eight variants of ``ProximalScore``: with and without its trust region (``max_log_precision_step`` 1 and ``max_mean_step``
0.1, or none of both), momentum 0.9 or 0, pairs or single draws, all at equal numbers of gradient evaluations; weights
constant over the run, the hardest case.

* **quadratic**: log p = -sum A_i theta_i^2 / 2 in D = 100 to 10^7 dimensions, with A between N / 31.6 and 31.6 N (condition
  number 1,000, log-uniform). Scores are those of a mini-batch of B = 100 out of N = 50,000 rows with independent features:
  noise of variance A_i N / B, and each A_i off by a factor with standard deviation sqrt(2 / B); both the same for the draws of
  a step. Left out is the noise that couples the coordinates. The start: means five posterior standard deviations off, and
  everywhere the precision 31.6 N (``narrow``: no coordinate starts wider than its posterior) or N (``wide``: the steepest
  one starts 31.6 times too wide in variance). Over dimensions: the narrow start, default weights. Over weights: both
  starts, D = 1,000. Reported: KL to the posterior per dimension (nats), and the errors of the means (in posterior
  standard deviations) and log-precisions, the largest of D or their root mean square.
* **networks**: ``small_cnn`` and the small Vision Transformer of ``jobs/configs/quickstart.yaml`` on scikit-learn's digits,
  batches of 64, effective data size 100,000 as in the jobs. Reported: the loss of the draws (nats), mean over the last tenth
  of the run, and that of the mean on all training data.

A run has diverged if something is not finite, the optimizer gives up, or it ends worse than it began (KL above the start's;
loss of the draws above the initial network's).
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from proxscore.config import ConfigError
from proxscore.inference import ForwardKL, Prior, ProximalScore
from proxscore.tracking import study
from proxscore.vision.data import load_images
from proxscore.vision.models import build_model
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.task import ModelConfig

N, BATCH = 50_000, 100  # of the quadratic target
FEW = 8  # gradient evaluations at which every dimension is compared
DEFAULTS = (1000.0, 2.0)
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


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the number that decides about divergence (infinite: not finite), and others by name."""

    value: float
    initial: float
    extra: dict[str, float]

    @property
    def diverged(self) -> bool:
        return not self.value <= self.initial


# ---------------------------------------------------------------- the quadratic target


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

    def run(
        self, variant: Variant, weights: tuple[float, float], evaluations: Sequence[int]
    ) -> tuple[list[Outcome], float]:
        """Outcomes after each number of evaluations, and the median time of a step in milliseconds, target included."""
        parameters = [("theta", self.theta)]
        optimizer = variant.optimizer(
            parameters, N, weights, self.seed, prior=Prior(scale=0.1, norms="flat"), initial_precision=self.start
        )
        ((_, _, state),) = optimizer.sampled()
        initial, outcomes, times = self.errors(state["mean"], state["precision"])["kl"], [], []
        stops = [variant.steps(count) for count in evaluations]
        try:
            for step in range(stops[-1]):
                started = time.perf_counter()
                self.step(optimizer)
                times.append(1e3 * (time.perf_counter() - started))
                if step + 1 in stops:
                    errors = self.errors(state["mean"], state["precision"])
                    outcomes.append(Outcome(errors["kl"] if math.isfinite(errors["kl"]) else math.inf, initial, errors))
        except FloatingPointError:
            outcomes += [Outcome(math.inf, initial, {})] * (len(stops) - len(outcomes))
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


# ---------------------------------------------------------------- networks


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

    def run(self, variant: Variant, weights: tuple[float, float], evaluations: int, seed: int) -> Outcome:
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
            return Outcome(math.inf, initial, {"mean_loss": math.inf})
        final = statistics.mean(losses[-max(evaluations // 10, 2) :])
        extra = {"mean_loss": self.loss(module), "worst_loss": max(losses)}
        return Outcome(final if math.isfinite(final) else math.inf, initial, extra)


NETWORKS = {
    "small_cnn": ModelConfig(name="small_cnn"),
    "small ViT": ModelConfig(
        name="vit_tiny_patch16_224", kwargs={"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}
    ),
}

# ---------------------------------------------------------------- tables and figures

Grid = dict[tuple[Variant, tuple[float, float]], list[Outcome]]
Dimensions = dict[tuple[int, Variant], tuple[list[list[Outcome]], float]]


def shown(values: Sequence[float]) -> str:
    """Mean and standard error of the runs' values."""
    if not all(math.isfinite(value) for value in values):
        return "diverged"
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {statistics.stdev(values) / math.sqrt(len(values)):.1g}"


def dimension_rows(results: Dimensions) -> list[list[str]]:
    rows = []
    for (dimension, variant), (runs, milliseconds) in results.items():
        cells = [f"{dimension:,}", variant.name, str(len(runs))]
        for index in range(2):
            outcomes = [run[index] for run in runs if index < len(run)]
            if not outcomes or not all(math.isfinite(outcome.value) for outcome in outcomes):
                cells += ["diverged" if outcomes else "", "", "", "", ""]
                continue
            worse = " (above the start)" if any(outcome.diverged for outcome in outcomes) else ""
            cells.append(shown([outcome.value for outcome in outcomes]) + worse)
            for name in ("mean", "largest_mean", "log_precision", "largest_log_precision"):
                cells.append(f"{statistics.mean(outcome.extra[name] for outcome in outcomes):.3g}")
        rows.append([*cells, f"{milliseconds:.3g}"])
    return rows


def grid_rows(grid: Grid) -> list[list[str]]:
    """Per variant: how many settings diverged, which, and the value at the default weights and at the best ones."""
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in grid):
        cells = {weights: outcomes for (other, weights), outcomes in grid.items() if other == variant}
        bad = [weights for weights, outcomes in cells.items() if any(outcome.diverged for outcome in outcomes)]
        good = {w: statistics.mean(o.value for o in outcomes) for w, outcomes in cells.items() if w not in bad}
        best = min(good, key=lambda weights: good[weights], default=None)
        default = cells[DEFAULTS]
        rows.append(
            [
                variant.name,
                f"{len(bad)} of {len(cells)}",
                listed(bad, cells),
                f"{shown([outcome.initial for outcome in default])}",
                f"{shown([o.value for o in default])}{' (diverged)' if DEFAULTS in bad else ''}",
                "" if best is None else f"{good[best]:.4g} at {label(best)}",
            ]
        )
    return rows


def listed(bad: Sequence[tuple[float, float]], every: Any) -> str:
    """Diverged settings, by mean weight."""
    if len(bad) == len(every):
        return "all"
    parts = []
    for mean in dict.fromkeys(mean for _, mean in every):
        precisions = [f"{precision:g}" for precision, other in bad if other == mean]
        if precisions:
            parts.append(f"mean {round(mean, 2):g}: precision {', '.join(precisions)}")
    return "; ".join(parts) or "none"


def label(weights: tuple[float, float]) -> str:
    return f"({weights[0]:g}, {round(weights[1], 2):g})"


GRID_HEADER = ["variant", "diverged", "at", "start", "at the defaults (1000, 2)", "best"]
DIMENSION_HEADER = ["D", "variant", "runs"]
for _count in (f"{FEW}", "1,000"):
    DIMENSION_HEADER += [f"KL / D after {_count}", "mean, rms", "mean, largest", "log-prec., rms", "log-prec., largest"]
DIMENSION_HEADER.append("ms per step")


def dimension_figure(results: Dimensions, name: str, ylabel: str) -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for index, axis in enumerate(axes):
        for number, variant in enumerate(VARIANTS):
            points = []
            for (dimension, other), (runs, _) in results.items():
                finite = [run[index] for run in runs if index < len(run) and math.isfinite(run[index].value)]
                if other == variant and finite:
                    points.append((dimension, statistics.mean(outcome.extra[name] for outcome in finite)))
            style = "-" if variant.trust else ":"
            axis.plot(
                *zip(*points, strict=True), style, marker="osv^"[number % 4], label=variant.name
            ) if points else None
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("dimension D")
        axis.set_title(f"after {FEW if index == 0 else '1,000'} gradient evaluations")
    axes[0].set_ylabel(ylabel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def grid_figure(grid: Grid, quantity: str) -> Figure:
    """A panel per variant: colour is the value, a cross a run that diverged."""
    precisions = sorted({weights[0] for _, weights in grid})
    means = sorted({weights[1] for _, weights in grid})
    finite = [outcome.value for outcomes in grid.values() for outcome in outcomes if not outcome.diverged]
    norm = LogNorm(max(min(finite, default=1e-3), 1e-5), max(max(finite, default=1.0), 2e-5))
    figure = Figure(figsize=(13, 6), layout="constrained")
    for panel, (axis, variant) in enumerate(
        zip(figure.subplots(2, 4, sharex=True, sharey=True).flat, VARIANTS, strict=True)
    ):
        values = torch.full((len(means), len(precisions)), math.nan)
        for (row, mean), (column, precision) in itertools.product(enumerate(means), enumerate(precisions)):
            outcomes = grid[variant, (precision, mean)]
            if any(outcome.diverged for outcome in outcomes):
                axis.plot(column, row, "x", color="crimson", markersize=12, markeredgewidth=2)
            else:
                values[row, column] = statistics.mean(outcome.value for outcome in outcomes)
        image = axis.imshow(values.numpy(), norm=norm, origin="lower", cmap="viridis", aspect="auto")
        axis.set_title(variant.name.replace(", momentum", ",\nmomentum"), fontsize="small")
        axis.set_xticks(range(len(precisions)), [f"{value:g}" for value in precisions])
        axis.set_yticks(range(len(means)), [f"{round(value, 2):g}" for value in means])
        if panel >= 4:
            axis.set_xlabel("precision weight")
        if panel % 4 == 0:
            axis.set_ylabel("mean weight")
    figure.colorbar(image, ax=figure.axes, label=f"{quantity}; crosses: diverged")
    return figure


# ---------------------------------------------------------------- the study


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    dimensions: dict[int, tuple[list[int], int]]  # D -> numbers of evaluations, runs
    precisions: list[float]
    quadratic_means: list[float]
    network_means: list[float]
    quadratic: int  # evaluations
    networks: dict[str, int]  # evaluations
    seeds: int  # runs at the default weights

    @property
    def total(self) -> int:
        runs = sum(runs for _, runs in self.dimensions.values()) * len(VARIANTS)
        quadratic = (len(self.precisions) * len(self.quadratic_means) + self.seeds - 1) * len(STARTS)
        networks = (len(self.precisions) * len(self.network_means) + self.seeds - 1) * len(self.networks)
        return runs + (quadratic + networks) * len(VARIANTS)


FULL = Plan(
    dimensions={
        **{10**power: ([FEW, 1000], 3) for power in (2, 3, 4)},
        10**5: ([FEW, 1000], 1),
        10**6: ([FEW], 1),
        10**7: ([FEW], 1),
    },
    precisions=[10.0, 100.0, 1000.0, 10_000.0],
    quadratic_means=[NONE, 0.5, 2.0, 10.0],
    network_means=[NONE, 2.0, 10.0],
    quadratic=600,
    networks={"small_cnn": 200, "small ViT": 120},
    seeds=3,
)
QUICK = Plan(
    dimensions={100: ([FEW, 100], 2), 10_000: ([FEW], 1)},
    precisions=[10.0, 1000.0],
    quadratic_means=[NONE, 2.0],
    network_means=[2.0],
    quadratic=50,
    networks={"small_cnn": 10},
    seeds=2,
)


def dimensions(plan: Plan, seed: int, progress: Any) -> Dimensions:
    """The quadratic target at the default weights, over dimensions."""
    results: Dimensions = {}
    for dimension, (evaluations, runs) in plan.dimensions.items():
        for variant in VARIANTS:
            progress.set_postfix_str(f"quadratic, D = {dimension:,}, {variant.name}")
            outcomes, times = [], []
            for run in range(runs):
                outcome, milliseconds = Quadratic(dimension, seed + run, STARTS["narrow"]).run(
                    variant, DEFAULTS, evaluations
                )
                outcomes.append(outcome)
                times.append(milliseconds)
                progress.update()
            results[dimension, variant] = outcomes, min(times)
    return results


def grid(name: str, run: Any, precisions: Sequence[float], means: Sequence[float], plan: Plan, progress: Any) -> Grid:
    """``run(variant, weights, run number)`` over variants and weights; several runs at the default weights."""
    results: Grid = {}
    for variant, weights in itertools.product(VARIANTS, itertools.product(precisions, means)):
        progress.set_postfix_str(f"{name}, {variant.name}, weights {label(weights)}")
        results[variant, weights] = []
        for index in range(plan.seeds if weights == DEFAULTS else 1):
            results[variant, weights].append(run(variant, weights, index))
            progress.update()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that everything works")
    parser.add_argument("--output", type=Path, help="folder that gets the tables and figures too")
    parser.add_argument("--seed", type=int, default=0, help="of networks, draws and mini-batches")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    try:
        with study("stability", {"quick": options.quick, "seed": options.seed}, options.output) as record:
            with tqdm(total=plan.total) as progress:
                scan = dimensions(plan, options.seed, progress)

                grids = {}
                for start, precision in STARTS.items():

                    def quadratic(
                        variant: Variant, weights: tuple[float, float], run: int, precision: float = precision
                    ) -> Outcome:
                        target = Quadratic(1000, options.seed + run, precision)
                        return target.run(variant, weights, [plan.quadratic])[0][0]

                    name, means = f"quadratic, {start} start", plan.quadratic_means
                    grids[name] = grid(name, quadratic, plan.precisions, means, plan, progress)
                for name, evaluations in plan.networks.items():
                    network = Network(name, NETWORKS[name])

                    def train(
                        variant: Variant,
                        weights: tuple[float, float],
                        run: int,
                        network: Network = network,
                        evaluations: int = evaluations,
                    ) -> Outcome:
                        return network.run(variant, weights, evaluations, options.seed + run)

                    grids[name] = grid(name, train, plan.precisions, plan.network_means, plan, progress)
            report(record, scan, grids)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(record: Any, scan: Dimensions, grids: dict[str, Grid]) -> None:
    """Tables and figures."""
    record.table("dimension", DIMENSION_HEADER, dimension_rows(scan))
    record.figure("dimension_kl", dimension_figure(scan, "kl", "KL per dimension (nats)"))
    largest = "largest error of a mean\n(posterior standard deviations)"
    record.figure("dimension_largest_mean", dimension_figure(scan, "largest_mean", largest))
    for name, results in grids.items():
        stem = name.replace(",", "").replace(" ", "_")
        quantity = "KL per dimension (nats)" if name.startswith("quadratic") else "loss of the draws (nats)"
        print(f"{name}: {quantity}")
        record.table(f"grid_{stem}", GRID_HEADER, grid_rows(results))
        record.figure(f"grid_{stem}", grid_figure(results, quantity))
        diverged = sum(any(outcome.diverged for outcome in outcomes) for outcomes in results.values())
        record.metrics({f"diverged/{stem}": diverged})


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
