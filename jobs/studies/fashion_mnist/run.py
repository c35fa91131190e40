"""Fashion-MNIST with a small CNN: proximal score matching beside AdamW and IVON, at equal numbers of gradient evaluations.

    python jobs/studies/fashion_mnist/run.py --path /usr/share/datasets/fashion-mnist

10,000 training images, ``small_cnn`` (about 80,000 parameters), 10 epochs of batches of 100: 1,000 gradient evaluations
for every method. Each method is tuned over one step size, with the same number of trials, by validation NLL (seed 0), and
then run with three seeds; test metrics are computed for the chosen step size only. Posteriors predict with 16 draws.
IVON runs at its published settings (ess = N, hess_init 0.5, beta2 0.99999; arXiv 2402.17641) and weight decay 1e-4; all
learning rates decay by a cosine. Needs the ``peers`` extra. Plain Python: neither Ray nor MLflow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ivon
import torch
from torch import Tensor, nn
from tqdm import tqdm

from proxscore.calibration import ClassificationMetrics
from proxscore.config import ConfigError
from proxscore.inference import Categorical, ForwardKL, Prior, ProximalScore, Schedule
from proxscore.posterior import Posterior, predict
from proxscore.vision.data import ImageData, load_images
from proxscore.vision.models import build_model
from proxscore.vision.sources.idx import IdxConfig
from proxscore.vision.task import ModelConfig

DRAWS = 16
METRICS = ("accuracy", "nll", "ece", "brier")
Run = Callable[[nn.Module, "Problem", float, int], Posterior]


class Problem:
    """Data on a device, and the budget."""

    def __init__(self, data: ImageData, epochs: int, batch_size: int, device: torch.device) -> None:
        self.data, self.epochs, self.batch_size, self.device = data, epochs, batch_size, device
        self.size = len(data.train)
        self.train = self.tensors("train")
        self.likelihood = Categorical()

    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        rows = getattr(self.data, split)
        images, labels = rows.__getitems__(list(range(len(rows))))
        return images.to(self.device), labels.to(self.device)

    def batches(self, seed: int, batch_size: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        images, labels = self.train
        for _ in range(epochs):
            for rows in torch.randperm(self.size, generator=generator).to(self.device).split(batch_size):
                yield images[rows], labels[rows]

    def steps(self, batch_size: int, epochs: int) -> int:
        return epochs * -(-self.size // batch_size)

    def evaluate(self, module: nn.Module, posterior: Posterior, split: str) -> dict[str, float]:
        images, labels = self.tensors(split)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            yield from zip(images.split(1000), labels.split(1000), strict=True)

        predictive = predict(module, batches, posterior, draws=DRAWS)
        metrics = ClassificationMetrics(len(self.data.classes))
        metrics.update(predictive.log_probabilities, predictive.expected_entropy, predictive.targets)
        return metrics.compute()


def adamw(module: nn.Module, problem: Problem, lr: float, seed: int) -> Posterior:
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01)
    steps = problem.steps(problem.batch_size, problem.epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for images, labels in problem.batches(seed, problem.batch_size, problem.epochs):
        optimizer.zero_grad()
        problem.likelihood.nll(module(images), labels).mean().backward()
        optimizer.step()
        schedule.step()
    return Posterior.of(module)


def ivon_published(module: nn.Module, problem: Problem, lr: float, seed: int) -> Posterior:
    optimizer = ivon.IVON(module.parameters(), lr=lr, ess=problem.size, hess_init=0.5, beta2=0.99999, weight_decay=1e-4)
    steps = problem.steps(problem.batch_size, problem.epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for images, labels in problem.batches(seed, problem.batch_size, problem.epochs):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            problem.likelihood.nll(module(images), labels).mean().backward()
        optimizer.step()
        schedule.step()
    group = optimizer.param_groups[0]
    precision = (group["ess"] * (group["hess"] + group["weight_decay"])).split([p.numel() for p in module.parameters()])
    posterior = Posterior.of(module)
    named = module.named_parameters()
    posterior.precision = {name: flat.view_as(p) for (name, p), flat in zip(named, precision, strict=True)}
    return posterior


def proximal(paired: bool) -> Run:
    """Ours at its defaults; a pair takes half the images, so that steps and evaluated images are as for one draw."""

    def run(module: nn.Module, problem: Problem, step: float, seed: int) -> Posterior:
        batch_size, epochs = problem.batch_size, problem.epochs
        if paired:
            batch_size, epochs = batch_size // 2, epochs // 2
        steps = problem.steps(batch_size, epochs)
        cosine = Schedule("cosine", warmup=0.05 * steps).resolve(steps, 1)
        penalty = ForwardKL(precision=float(steps), mean=(1 / step - 1) / 2, mean_schedule=cosine)
        size = 100_000  # a cold posterior
        prior = Prior(scale=1.0)  # 1 / scale^2 = 1e-4 N, IVON's weight decay
        optimizer = ProximalScore(
            module.named_parameters(),
            size,
            prior=prior,
            penalty=penalty,
            paired=paired,
            seed=seed,
            metric="posterior",
            initial_precision=0.1,
        )
        for images, labels in problem.batches(seed, batch_size, epochs):
            for _ in optimizer.draws():
                problem.likelihood.nll(module(images), labels).mean().backward()
            optimizer.step()
        return Posterior.of(module, optimizer)

    return run


METHODS: dict[str, tuple[Run, str, list[float]]] = {
    "AdamW": (adamw, "lr", [3e-4, 1e-3, 2e-3, 4e-3, 8e-3]),
    "IVON": (ivon_published, "lr", [0.1, 0.2, 0.4, 0.8, 1.6]),
    "proximal score, single draws": (proximal(paired=False), "mean step", [0.05, 0.1, 0.2, 0.3, 0.4]),
    "proximal score, pairs": (proximal(paired=True), "mean step", [0.05, 0.1, 0.2, 0.3, 0.4]),
}


def one(method: str, value: float, seed: int, split: str, problem: Problem) -> dict[str, float]:
    torch.manual_seed(seed)
    shape = problem.data.shape
    module = build_model(ModelConfig(name="small_cnn"), classes=len(problem.data.classes), shape=shape).to(
        problem.device
    )
    started = time.perf_counter()
    posterior = METHODS[method][0](module, problem, value, seed)
    seconds = time.perf_counter() - started
    return problem.evaluate(module, posterior, split) | {"seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="folder with Fashion-MNIST's IDX files")
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON with every run")
    options = parser.parse_args()
    config = IdxConfig(kind="idx", path=options.path, limit=options.limit)
    try:
        problem = Problem(load_images(config), options.epochs, options.batch_size, torch.device(options.device))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    trials = sum(len(METHODS[method][2]) + options.seeds for method in options.methods)
    record: dict[str, Any] = {"torch": torch.__version__, "splits": problem.data.splits, "methods": {}}
    with tqdm(total=trials) as progress:
        for method in options.methods:
            record["methods"][method] = compare(method, options.seeds, problem, progress)
            if options.output:
                options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record["methods"]))
    return 0


def compare(method: str, seeds: int, problem: Problem, progress: Any) -> dict[str, Any]:
    """Tune on validation data with seed 0, then test the best value with every seed."""
    tuning = {}
    for value in METHODS[method][2]:
        tuning[value] = one(method, value, 0, "validation", problem)["nll"]
        progress.set_postfix_str(f"{method} {value:g}: validation NLL {tuning[value]:.4f}")
        progress.update()
    best = min(tuning, key=lambda value: tuning[value] if tuning[value] == tuning[value] else float("inf"))
    tested = []
    for seed in range(seeds):
        tested.append(one(method, best, seed, "test", problem))
        progress.set_postfix_str(f"{method} seed {seed}: test NLL {tested[-1]['nll']:.4f}")
        progress.update()
    return {"setting": METHODS[method][1], "best": best, "validation_nll": tuning, "test": tested}


def table(methods: dict[str, Any]) -> str:
    """Markdown: mean and standard deviation over the seeds."""
    lines = ["| method | tuned | accuracy | NLL | ECE | Brier |", "|---|---|---|---|---|---|"]
    for name, result in methods.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in result["test"]]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        lines.append(f"| {name} | {result['setting']} {result['best']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
