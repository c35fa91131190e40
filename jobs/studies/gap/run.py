"""How much wider do predictions get where there are no data? A regression with a gap, beside NUTS.

    python jobs/studies/gap/run.py [--output gap] [--seeds 3] [--members 10] [--quick]

A network of 1-14-14-1 units (the problem ``network`` of tests/references: 140 rows on [-3, -1] and [0.5, 3], known noise,
Gaussian prior), whose posterior four long chains of NUTS have sampled. Arms: one Gaussian or several of equal weight, each from a
start of its own; and point estimates, one of which has no width. For each, over 33 inputs from -4 to 4, and 1,000 draws of
the network's function in all:

    mean            root mean square error of the predictive mean where there are data, in NUTS's standard deviations
    sd, data/gap/outside    geometric mean of the predictive standard deviation over NUTS's, in each region
    gap / data      how much wider the arm itself is in the gap than where there are data (the same of NUTS in its row)
"""

from __future__ import annotations

import sys
from argparse import Namespace

import torch
from arms import ARMS, Fit, Gaussian  # type: ignore[import-not-found]  # beside this file; makes tests/references importable
from matplotlib.figure import Figure
from reference_data import stored  # type: ignore[import-not-found]
from reference_targets import Target, load  # type: ignore[import-not-found]
from torch import Tensor

from proxscore.experiments.study import Rows, command, spread
from proxscore.tracking import Study

DRAWS = 1000


def functions(target: Target, found: list[Gaussian], seed: int) -> Tensor:
    """The network's function under draws, (DRAWS, M); as many of each Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for center, factor in found:
        normal = torch.randn(DRAWS // len(found), len(center), generator=generator, dtype=center.dtype)
        drawn.append(center + normal @ factor.mT)
    return torch.func.vmap(lambda theta: target.predict(theta, target.test_inputs))(torch.cat(drawn))


def measured(values: Tensor, target: Target) -> dict[str, float]:
    """The numbers of a row."""
    nuts = {key: torch.tensor(v, dtype=torch.float64) for key, v in stored("network")["predictive"].items()}
    x = target.test_inputs[:, 0]
    data = ((x >= -3) & (x <= -1)) | ((x >= 0.5) & (x <= 3))
    regions = {"data": data, "gap": (x > -1) & (x < 0.5), "outside": x.abs() > 3}
    sd = values.std(0)
    ratio = (sd / nuts["sd"]).log()
    error = (values.mean(0) - nuts["mean"]) / nuts["sd"]
    return {
        "mean": error[data].square().mean().sqrt().item(),
        **{f"sd, {name}": ratio[where].mean().exp().item() for name, where in regions.items()},
        "gap / data": (sd[regions["gap"]].log().mean() - sd[data].log().mean()).exp().item(),
        "NUTS": (nuts["sd"][regions["gap"]].log().mean() - nuts["sd"][data].log().mean()).exp().item(),
    }


def drawing(target: Target, arms: dict[str, Tensor]) -> Figure:
    """A panel per arm: mean and two standard deviations of the function, beside NUTS's."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    nuts, x = stored("network")["predictive"], target.test_inputs[:, 0]
    low, high = ([m + s * 2 * d for m, d in zip(nuts["mean"], nuts["sd"], strict=True)] for s in (-1, 1))
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flat
    for axes, (name, values) in zip(panels, arms.items(), strict=False):
        center, sd = values.mean(0), values.std(0)
        axes.fill_between(x, low, high, color="0.85", label="NUTS")
        axes.fill_between(x, center - 2 * sd, center + 2 * sd, color="C0", alpha=0.4, label=name)
        axes.plot(target.inputs[:, 0], target.targets, ".", color="0.3", markersize=2)
        axes.set_title(name, fontsize=9)
        axes.set_ylim(-4, 4)
    return figure


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    target, kept = load("network"), dict[tuple[Fit, int], Gaussian]()
    shown: dict[str, Tensor] = {}

    def run(key: tuple[str, int, int]) -> dict[str, float]:
        name, seed, _ = key
        fit, several = ARMS[name]
        first, count = seed * options.members, options.members if several else 1
        starts = range(first, first + count)
        for start in starts:
            if (fit, start) not in kept:
                kept[fit, start] = fit(target, start)
        shown[name] = functions(target, [kept[fit, start] for start in starts], seed)
        return measured(shown[name], target)

    arms = ["maxima, several (deep ensemble)"] if options.quick else ARMS
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for (name, _, _), row in rows.each(
        [(n, s, options.members) for s in reversed(range(options.seeds)) for n in arms], run
    ):
        found[name].append(row)
    columns = ("mean", "sd, data", "sd, gap", "sd, outside", "gap / data")
    table = [[name, *(spread([run[column] for run in runs], 2) for column in columns)] for name, runs in found.items()]
    table.append(["NUTS", "0", "1", "1", "1", f"{next(iter(found.values()))[0]['NUTS']:.1f}"])
    record.table("gap", ["arm", *columns], table)
    if len(shown) == len(arms):  # seed 0 of them all was run now
        record.figure("gap", drawing(target, shown))


if __name__ == "__main__":
    members = {"type": int, "default": 10, "help": "of the arms called several"}
    sys.exit(command("gap", __doc__, measure, {"members": members}))
