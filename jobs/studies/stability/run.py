"""Does the iteration stay stable as the dimension grows, and which proximal weights and settings make it diverge?

    python jobs/studies/stability/run.py [--quick] [--seed 0]

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

import itertools
import math
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from problems import (  # type: ignore[import-not-found]  # beside this file
    DEFAULTS,
    FEW,
    NETWORKS,
    NONE,
    STARTS,
    VARIANTS,
    Network,
    Outcome,
    Quadratic,
    Variant,
    Weights,
    diverged,
)

from proxscore.experiments.study import Rows, command, lines
from proxscore.tracking import Study


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    dimensions: dict[int, tuple[list[int], int]]  # D -> numbers of evaluations, runs
    precisions: tuple[float, ...]
    quadratic_means: tuple[float, ...]
    network_means: tuple[float, ...]
    quadratic: int  # evaluations
    networks: dict[str, int]  # evaluations


FULL = Plan(
    dimensions={**{10**power: ([FEW, 1000], 3) for power in (2, 3, 4)}, 10**5: ([FEW, 1000], 1)}
    | {10**6: ([FEW], 1), 10**7: ([FEW], 1)},
    precisions=(10.0, 100.0, 1000.0, 10_000.0),
    quadratic_means=(NONE, 0.5, 2.0, 10.0),
    network_means=(NONE, 2.0, 10.0),
    quadratic=600,
    networks={"small_cnn": 200, "small ViT": 120},
)
QUICK = Plan({100: ([FEW, 100], 2), 10_000: ([FEW], 1)}, (10.0, 1000.0), (NONE, 2.0), (2.0,), 50, {"small_cnn": 10})


def shown(values: Sequence[float]) -> str:
    """Mean and standard error of the runs' values, to four digits."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.1g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{error}"


def label(weights: Weights) -> str:
    return f"({weights[0]:g}, {round(weights[1], 2):g})"


def dimensions(plan: Plan, options: Namespace, record: Study, rows: Rows) -> None:
    """The quadratic target at the default weights, over dimensions: table and figures."""

    def run(key: tuple[int, str, int]) -> tuple[list[Outcome], float]:
        dimension, name, seed = key
        (variant,) = (v for v in VARIANTS if v.name == name)
        return Quadratic(dimension, seed, STARTS["narrow"]).run(variant, DEFAULTS, plan.dimensions[dimension][0])

    keys = [
        (dimension, variant.name, options.seed + index)
        for dimension, (_, runs) in plan.dimensions.items()
        for variant in VARIANTS
        for index in range(min(runs, options.seeds))
    ]
    found: dict[tuple[int, str], list[tuple[list[Outcome], float]]] = {}
    for (dimension, name, _), row in rows.each(keys, run):
        found.setdefault((dimension, name), []).append(row)
    kinds = ("mean", "largest_mean", "log_precision", "largest_log_precision")
    table, panels = [], {kind: {f"after {count}": {} for count in (FEW, "1,000")} for kind in ("kl", "largest_mean")}  # type: ignore[var-annotated]
    for (dimension, name), runs in found.items():
        cells = [f"{dimension:,}", name, str(len(runs))]
        for index, panel in enumerate(panels["kl"]):
            ends = [outcomes[index] for outcomes, _ in runs if index < len(outcomes)]
            if not ends or not all(math.isfinite(end["value"]) for end in ends):
                cells += ["diverged" if ends else "", "", "", "", ""]
                continue
            cells.append(shown([end["value"] for end in ends]) + (" (above the start)" * any(map(diverged, ends))))
            cells += [f"{statistics.mean(end[kind] for end in ends):.3g}" for kind in kinds]
            for kind in panels:
                point = (dimension, statistics.mean(end[kind] for end in ends), 0.0)
                panels[kind][panel].setdefault(name, []).append(point)
        table.append([*cells, f"{min(milliseconds for _, milliseconds in runs):.3g}"])
    header = ["D", "variant", "runs"]
    for count in (f"{FEW}", "1,000"):
        header += [f"KL / D after {count}", "mean, rms", "mean, largest", "log-prec., rms", "log-prec., largest"]
    record.table("dimension", [*header, "ms per step"], table)
    for kind, what in (("kl", "KL per dimension (nats)"), ("largest_mean", "largest error of a mean (sds)")):
        record.figure(f"dimension_{kind}", lines(panels[kind], "dimension D", what))


def grid(
    name: str,
    run: Callable[[Variant, Weights, int], Outcome],
    weights: Iterable[Weights],
    options: Namespace,
    record: Study,
    rows: Rows,
) -> None:
    """A problem over variants and weights, several runs at the default ones: a line per run, and one per variant."""
    variants = {variant.name: variant for variant in VARIANTS}
    keys = [
        (name, variant, pair, options.seed + index)
        for variant, pair in itertools.product(variants, weights)
        for index in range(options.seeds if pair == DEFAULTS else 1)
    ]
    found: dict[str, dict[Weights, list[Outcome]]] = {variant: {} for variant in variants}
    every = []
    for (_, variant, pair, seed), outcome in rows.each(keys, lambda key: run(variants[key[1]], key[2], key[3])):
        found[variant].setdefault(pair, []).append(outcome)
        every.append([variant, *pair, seed, f"{outcome['value']:.4g}", "diverged" if diverged(outcome) else ""])
    table = []
    for variant, cells in found.items():
        bad = [pair for pair, outcomes in cells.items() if any(map(diverged, outcomes))]
        good = {w: statistics.mean(o["value"] for o in ended) for w, ended in cells.items() if w not in bad}
        best = min(good, key=lambda pair: good[pair], default=None)
        at = [shown([outcome[key] for outcome in cells[DEFAULTS]]) for key in ("initial", "value")]
        where = "; ".join(map(label, bad)) or "none"
        last = "" if best is None else f"{good[best]:.4g} at {label(best)}"
        table.append([variant, f"{len(bad)} of {len(cells)}", where, *at, last])
    stem = name.replace(",", "").replace(" ", "_")
    record.table(f"grid_{stem}_runs", ["variant", "precision", "mean", "seed", "value", ""], every)
    header = ["variant", "diverged", "at (precision, mean)", "start", f"at the defaults {label(DEFAULTS)}", "best"]
    record.table(f"grid_{stem}", header, table)


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    plan = QUICK if options.quick else FULL
    dimensions(plan, options, record, rows)
    weights = list(itertools.product(plan.precisions, plan.quadratic_means))
    for start, precision in STARTS.items():

        def quadratic(variant: Variant, pair: Weights, seed: int, precision: float = precision) -> Outcome:
            return Quadratic(1000, seed, precision).run(variant, pair, [plan.quadratic])[0][0]

        grid(f"quadratic, {start} start", quadratic, weights, options, record, rows)
    for name, evaluations in plan.networks.items():
        network = Network(name, NETWORKS[name])

        def train(
            variant: Variant, pair: Weights, seed: int, network: Network = network, count: int = evaluations
        ) -> Outcome:
            return network.run(variant, pair, count, seed)

        grid(name, train, list(itertools.product(plan.precisions, plan.network_means)), options, record, rows)


if __name__ == "__main__":
    seed = {"type": int, "default": 0, "help": "the first, of networks, draws and mini-batches"}
    sys.exit(command("stability", __doc__, measure, {"seed": seed}))
