"""A head's posterior, fitted anew on the features of a body that was trained with a posterior of the last layer.

    python jobs/studies/convergence/run.py [--body runs/convergence/last-layer/default] [--output convergence] [--quick]

The bodies are those that the comparison of compare.yaml leaves, one per seed. A head is fitted in large batches and with
several pairs of draws, so that it converges whatever its family; the gradient evaluations of the network are those of the
body. k is the curvature statistic E[-d^2 log p] / Lambda, mean over the last tenth of the steps and all coordinates (for a
full covariance: over its axes): 1 at the optimum.
"""

from __future__ import annotations

import math
import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.calibration import ClassificationMetrics
from proxscore.config import ConfigError
from proxscore.experiments.comparison import settings
from proxscore.experiments.study import Rows, command, spread
from proxscore.inference import Categorical, ForwardKL, FullCovariance, Prior, ProximalScore, Schedule
from proxscore.inference.penalties import Weight
from proxscore.posterior import Posterior, predict
from proxscore.tracking import Study

DRAWS, BATCH, SCALE = 16, 2_000, 0.3  # of the prior: that of the body's last layer
FAMILIES = ("mean field", "full covariance")


@dataclass(frozen=True)
class WatchedKL(ForwardKL):
    """The forward penalty, which notes the mean of the curvature statistics it is given at each step."""

    seen: list[float] = field(default_factory=list)

    def precision_ratio(self, curvature: Tensor, weight: Weight) -> Tensor:
        self.seen.append(curvature.mean().item())
        return super().precision_ratio(curvature, weight)


def batches(rows: Any, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(rows), size):
        yield rows.__getitems__(list(range(first, min(first + size, len(rows)))))


@torch.no_grad()
def features(module: Any, rows: Any) -> tuple[Tensor, Tensor]:
    """What the head sees of a split, and the labels."""
    pairs = [(module.forward_head(module.forward_features(x), pre_logits=True), y) for x, y in batches(rows)]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def fitted(
    full: bool, head: nn.Module, inputs: Tensor, labels: Tensor, steps: int, seed: int
) -> tuple[Posterior, float]:
    """The head's posterior, and k."""
    penalty = WatchedKL(
        1000.0 if full else 10.0,
        0.5 if full else 9.5,  # correlated features and a diagonal precision: only short steps of the mean are stable
        Schedule("linear", end=0.05).resolve(steps, 1),
        Schedule("cosine").resolve(steps, 1),
    )
    optimizer = ProximalScore(
        head.named_parameters(),
        len(labels),
        prior=Prior(scale=SCALE),
        penalty=penalty,
        families={"*": FullCovariance()} if full else {},
        initial_precision=3e-3 if full else 1e-4,
        draws=8 if full else 2,  # an average of one pair says too little of 490 x 490 numbers
        max_mean_step=math.inf if full else 0.1,
        paired=True,
        seed=seed,
        metric="posterior",
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(labels), generator=generator)[:BATCH]
        for _ in optimizer.draws():
            Categorical().nll(head(inputs[rows]), labels[rows]).mean().backward()
        optimizer.step()
    return Posterior.of(head, optimizer), statistics.mean(penalty.seen[-max(steps // 10, 1) :])


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    limit = ["base.task.data.limit=500"] if options.quick else []
    comparison, source = settings.load(Path(__file__).with_name("compare.yaml"), limit)
    task: Any = settings.method_config(comparison, source, "last layer").task.build()

    def run(key: tuple[str, int]) -> dict[str, Any]:
        family, seed = key
        if not (folder := options.body / str(seed) / "posterior").exists():
            raise ConfigError(f"--body {options.body}: {folder} is not there; the comparison of compare.yaml leaves it")
        module = task.build_model()
        Posterior.load(folder).load_into(module)
        module.eval()
        found: dict[str, Any] = {}
        head = module.get_submodule("head")
        inputs = features(module, task.data.train)
        posterior, found["k"] = fitted(family != "mean field", head, *inputs, 10 if options.quick else 300, seed)
        for split in ("validation", "test"):
            seen = features(module, getattr(task.data, split))
            predictive = predict(head, lambda seen=seen: [seen], posterior, draws=DRAWS)  # type: ignore[misc]
            metrics = ClassificationMetrics(len(task.data.classes))
            metrics.update(predictive.log_probabilities, predictive.expected_entropy, predictive.targets)
            found[split] = metrics.compute()
        return found

    cells: dict[str, list[dict[str, Any]]] = {family: [] for family in FAMILIES}
    for (family, _), row in rows.each([(f, s) for f in FAMILIES for s in range(options.seeds)], run):
        cells[family].append(row)
    table = [
        [f"last layer, refitted on its features: {family}", spread([row["k"] for row in found], 2)]
        + [spread([row["validation"]["nll"] for row in found])]
        + [spread([row["test"][name] for row in found]) for name in ("accuracy", "nll", "ece")]
        for family, found in cells.items()
    ]
    record.table("refitted", ["arm", "k", "validation NLL", "accuracy", "NLL", "ECE"], table)


if __name__ == "__main__":
    body = {
        "type": Path,
        "default": Path("runs/convergence/last-layer/default"),
        "help": "folder of the bodies, by seed",
    }
    sys.exit(command("convergence", __doc__, measure, {"body": body}))
