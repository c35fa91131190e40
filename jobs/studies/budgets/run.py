"""Who is ahead after budgets that people use? A CNN and a Vision Transformer on Fashion-MNIST, early stopping for all.

    python jobs/studies/budgets/run.py --path /usr/share/datasets/fashion-mnist [--output budgets] [--jobs 2] [--plan small]

Ten times in a run the validation NLL is measured, and the state where it is lowest is what the run is judged by on the test
split (16 draws). Learning rates are chosen by validation NLL: among four at 1,000 gradient evaluations
(``compare_fashion_mnist.yaml``), and here, in the first seed, between that one and its half, where two are named.
Ensembles and mixtures of posteriors are made of the states that the seeds left, and of shorter runs that share one budget.
An interrupted study goes on from ``runs/*/result.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.posterior import Posterior, Samples
from proxscore.tasks import Task
from proxscore.tracking.study import study
from proxscore.training import evaluation
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.fit import fit
from proxscore.training.run import Run

CNN: dict[str, Any] = {"name": "small_cnn", "channels_last": True}
VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 4},
}
NETWORKS: dict[str, tuple[dict[str, Any], str]] = {"CNN": (CNN, "drop_rate"), "ViT": (VIT, "proj_drop_rate")}
WIDE = {"initial_precision": 0.1, "prior": {"scale": 0.3}}
NEARLY = {
    "temperature": 0.1,
    "initial_precision": 0.1,
    "prior": {"scale": 0.1},
    "penalty": {"precision": 30, "precision_schedule": {"kind": "linear", "end": 0.05}},
}


@dataclass(frozen=True)
class Arm:
    """A method: its section without the learning rate, the rates that are tried, the network's dropout."""

    method: dict[str, Any]
    rates: tuple[float, ...]
    dropout: float = 0.0

    def section(self, lr: float) -> dict[str, Any]:
        """The configuration's section at a learning rate."""
        if self.method["kind"] == "mc_dropout":
            return {"kind": "mc_dropout", "of": {"kind": "adamw", "lr": lr}}
        return self.method | {"lr": lr}


CNN_ARMS = {
    "AdamW": Arm({"kind": "adamw"}, (4e-3, 2e-3)),
    "MC dropout 0.1": Arm({"kind": "mc_dropout"}, (8e-3, 4e-3), 0.1),
    "MC dropout 0.25": Arm({"kind": "mc_dropout"}, (4e-3,), 0.25),
    "MC dropout 0.4": Arm({"kind": "mc_dropout"}, (4e-3,), 0.4),
    "proximal score, defaults": Arm({"kind": "proximal_score"}, (4e-3,)),
    "proximal score, wide": Arm({"kind": "proximal_score", **WIDE}, (1.6e-2, 8e-3)),
    "proximal score, wide, dropout 0.1": Arm({"kind": "proximal_score", **WIDE}, (8e-3,), 0.1),
    "proximal score, wide, dropout 0.25": Arm({"kind": "proximal_score", **WIDE}, (8e-3,), 0.25),
    "proximal score, nearly converged": Arm({"kind": "proximal_score", **NEARLY}, (8e-3,)),
}
VIT_ARMS = {
    "AdamW": Arm({"kind": "adamw"}, (2e-3,)),
    "MC dropout 0.1": Arm({"kind": "mc_dropout"}, (2e-3,), 0.1),
    "proximal score, defaults": Arm({"kind": "proximal_score"}, (4e-3,)),
    "proximal score, noise of 30 %": Arm({"kind": "proximal_score", "initial_noise": 0.3}, (4e-3,)),
    "proximal score, noise of 30 %, dropout 0.1": Arm({"kind": "proximal_score", "initial_noise": 0.3}, (4e-3,), 0.1),
}
MORE_DATA = {  # the rates that the shorter runs chose
    "AdamW": Arm({"kind": "adamw"}, (2e-3,)),
    "MC dropout 0.25": Arm({"kind": "mc_dropout"}, (4e-3,), 0.25),
    "proximal score, wide, dropout 0.1": Arm({"kind": "proximal_score", **WIDE}, (8e-3,), 0.1),
}
ENSEMBLE = 4


@dataclass(frozen=True)
class Cell:
    """One run."""

    network: str
    arm: str
    method: Arm = field(compare=False)
    lr: float
    seed: int
    limit: int | None
    epochs: float

    def folder(self, output: Path) -> Path:
        """Where its result and its posterior are kept."""
        name = f"{self.network}-{self.arm}-{self.lr:g}-{self.seed}-{self.limit or 'all'}-{self.epochs:g}"
        return output / "runs" / name.replace(" ", "_").replace(",", "").replace("%", "percent")


@dataclass(frozen=True)
class Part:
    """A budget: a network, its data and length, and who takes part."""

    network: str
    limit: int | None
    epochs: float
    arms: dict[str, Arm]
    seeds: int
    shared: Sequence[str] = ()  # arms of which there is also an ensemble whose members share one budget

    def title(self) -> str:
        """As the tables name it."""
        return f"{self.network}, {self.limit or 60_000:,} images x {self.epochs:g} epochs"

    def trials(self) -> list[Cell]:
        """Every arm at every rate, from the first seed."""
        return [
            Cell(self.network, name, arm, lr, 0, self.limit, self.epochs)
            for name, arm in self.arms.items()
            for lr in arm.rates
        ]


PLANS = {
    "full": [
        Part("CNN", 10_000, 50, CNN_ARMS, 3, ("AdamW", "proximal score, wide, dropout 0.25")),
        Part("ViT", 10_000, 50, VIT_ARMS, 2),
        Part("CNN", None, 20, MORE_DATA, 1),
        Part("ViT", None, 20, VIT_ARMS, 1),
    ],
    "small": [Part("CNN", 1_000, 2, CNN_ARMS, 2, ("AdamW",))],
}


def configure(cell: Cell, path: Path, output: Path) -> Config:
    """The configuration of a run, without its tracking: the study records it."""
    network, dropout = NETWORKS[cell.network]
    arm = cell.method
    kwargs = network.get("kwargs", {}) | ({dropout: arm.dropout} if arm.dropout else {})
    every = max(cell.epochs / 10, 0.1)
    return configuration.parse(
        {
            "name": cell.folder(output).name,
            "seed": cell.seed,
            "task": {
                "model": network | ({"kwargs": kwargs} if kwargs else {}),
                "data": {"kind": "idx", "path": str(path), "limit": cell.limit},
            },
            "method": arm.section(cell.lr),
            "training": {
                "epochs": cell.epochs,
                "batch_size": 100,
                "workers": 0,
                "device": "cpu",
                "validate_every": every,
                "checkpoint_every": every,
                "keep_checkpoints": 1,
                "early_stopping": True,
            },
            "evaluation": {"validation_draws": 8},
            "tracking": {"interval": 1e6},
        }
    )


def run(cell: Cell, path: Path, output: Path) -> dict[str, Any]:
    """Train; judge the state of the lowest validation NLL on the test split, and keep its posterior."""
    folder = cell.folder(output)
    if (done := folder / "result.json").exists():
        return json.loads(done.read_text())
    torch.set_num_threads(1)
    config = configure(cell, path, output)
    task, curve = config.task.build(), []

    def watch(payloads: list[dict[str, Any]]) -> None:
        (payload,) = payloads
        if payload["metrics"]:
            curve.append({"epoch": payload["epoch"], **payload["metrics"]})

    worker = LocalWorker(folder, torch.device("cpu"), watch, keep=1)
    fitted = fit(config, config.method, cell.epochs, task, worker)
    posterior = Posterior.of(fitted.run.module, fitted.method).gather()
    posterior.save(folder / "posterior")
    draws = config.evaluation.draws if posterior.random else 0
    metrics, _ = evaluation.evaluate(fitted.run, "test", draws, posterior)
    found = {
        **asdict(cell),
        "curve": curve,
        "stopped": fitted.lowest["epoch"],
        "validation": fitted.lowest["nll"],
        "validation_end": curve[-1]["validation/nll"],
        "test": metrics,
        "seconds": fitted.seconds,
        "verdict": None if fitted.verdict is None else fitted.verdict.answer,
    }
    done.write_text(json.dumps(found, indent=1))
    return found


def mixed(cells: list[Cell], path: Path, output: Path) -> dict[str, float]:
    """Test metrics of the equal-weight mixture of what runs left: 16 draws of all together, or each member once."""
    torch.set_num_threads(1)
    config = configure(cells[0], path, output)
    task: Task = config.task.build()
    members = [Posterior.load(cell.folder(output) / "posterior") for cell in cells]
    posterior = Samples(members, {})
    draws = config.evaluation.draws if members[0].random else len(members)
    worker = LocalWorker(output / "none", torch.device("cpu"), lambda payloads: None, keep=1)
    metrics, _ = evaluation.evaluate(Run(config, task, worker, task.build_model()), "test", draws, posterior)
    return metrics


class Pool:
    """Runs side by side, with one bar of progress."""

    def __init__(self, jobs: int) -> None:
        self.executor = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
        self.progress = tqdm(total=0, unit="run")

    def all(self, work: Callable[..., Any], items: Sequence[Any], *rest: Any) -> list[Any]:
        """The results of ``work(item, *rest)``, in the items' order."""
        futures: list[Future[Any]] = [self.executor.submit(work, item, *rest) for item in items]
        self.progress.total = (self.progress.total or 0) + len(futures)
        for future in as_completed(futures):
            future.result()
            self.progress.update()
        return [future.result() for future in futures]


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{mean(values):.4f}"
    return f"{mean(values):.4f} ± {stdev(values) / math.sqrt(len(values)):.4f}"


def curves(part: Part, found: dict[str, list[dict[str, Any]]]) -> Figure:
    """NLL and ECE on the validation split over the epochs, mean over the seeds; where the first seed stopped."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, runs in found.items():
        epochs = [point["epoch"] for point in runs[0]["curve"]]
        for axis, metric in zip(axes, ("nll", "ece"), strict=True):
            values = [mean(run["curve"][k][f"validation/{metric}"] for run in runs) for k in range(len(epochs))]
            (line,) = axis.plot(epochs, values, label=name)
            at = min(range(len(epochs)), key=lambda k: abs(epochs[k] - runs[0]["stopped"]))
            axis.plot(epochs[at], values[at], "o", color=line.get_color())
    axes[0].set_ylabel("validation NLL (nats)")
    axes[1].set_ylabel("validation ECE")
    for axis in axes:
        axis.set_xlabel("epochs")
    axes[0].legend(fontsize=7)
    figure.suptitle(part.title())
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="folder of Fashion-MNIST's four idx files")
    parser.add_argument("--output", type=Path, default=Path("budgets"), help="folder of runs, tables and figures")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, of one core each")
    parser.add_argument("--plan", choices=PLANS, default="full", help="small: a look at the study itself")
    parser.add_argument("--seeds", type=int, help="at most so many per budget")
    options = parser.parse_args()
    output = options.output.absolute()
    try:
        with study("budgets", {"plan": options.plan, "seeds": options.seeds}, output) as recorded:
            pool = Pool(options.jobs)
            for part in PLANS[options.plan]:
                part = replace(part, seeds=min(part.seeds, options.seeds or part.seeds))
                first = part.trials()
                tried = dict(zip(first, pool.all(run, first, options.path, output), strict=True))
                best = {
                    name: min((c for c in first if c.arm == name), key=lambda c: tried[c]["validation"])
                    for name in part.arms
                }
                cells = {name: [replace(c, seed=seed) for seed in range(part.seeds)] for name, c in best.items()}
                # Members of an ensemble that together cost what one run does.
                shorter = {
                    name: [
                        replace(best[name], seed=100 + seed, epochs=part.epochs / ENSEMBLE) for seed in range(ENSEMBLE)
                    ]
                    for name in part.shared
                }
                flat = [c for seed in range(1, part.seeds) for name in part.arms for c in [cells[name][seed]]]
                flat += [c for members in shorter.values() for c in members]
                tried |= dict(zip(flat, pool.all(run, flat, options.path, output), strict=True))
                found = {name: [tried[c] for c in own] for name, own in cells.items()}
                mixtures = {f"{ENSEMBLE} x {name}, shared": members for name, members in shorter.items()}
                mixtures |= {f"{len(own)} x {name}": own for name, own in cells.items() if len(own) > 1}
                judged = pool.all(mixed, list(mixtures.values()), options.path, output)
                rows = [
                    [
                        f"{name}, {best[name].lr:g}",
                        1,
                        *(spread([one["test"][key] for one in runs]) for key in ("accuracy", "nll", "ece")),
                        spread([one["validation"] for one in runs]),
                        spread([one["validation_end"] for one in runs]),
                        " ".join(f"{one['stopped']:g}" for one in runs),
                        f"{mean(one['seconds'] for one in runs):.0f}",
                        " ".join(sorted({str(one["verdict"]) for one in runs} - {"None"})),
                    ]
                    for name, runs in found.items()
                ]
                rows += [
                    [name, 1 if "shared" in name else len(mixtures[name])]
                    + [f"{metrics[key]:.4f}" for key in ("accuracy", "nll", "ece")]
                    + [""] * 5
                    for name, metrics in zip(mixtures, judged, strict=True)
                ]
                header = (
                    *("method", "budgets", "accuracy", "NLL", "ECE", "validation NLL, stopped", "at the end"),
                    *("stopped at epoch", "seconds", "verdict"),
                )
                print(part.title(), flush=True)
                slug = f"{part.network}-{part.limit or 'all'}".lower()
                recorded.table(f"budgets-{slug}", header, rows)
                recorded.figure(f"budgets-{slug}", curves(part, found))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
