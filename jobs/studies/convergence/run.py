"""Which posterior over a CNN is both converged and good? Fashion-MNIST, 10,000 images, ``small_cnn``.

    python jobs/studies/convergence/run.py --path /usr/share/datasets/fashion-mnist --output convergence [--groups adaptive]

Arms differ from one another in temperature, prior scale, weight of the precision, sampled parameters, or family. All
take the same number of gradient evaluations of the network: ``--epochs`` epochs of batches of 100, single draws. In a
group of arms that differ in one setting, validation NLL (2,000 images, seed 0) chooses; the chosen arms are tested
(10,000 images) with all seeds. Posteriors predict with 16 draws. A precision that is still on its way owes its quality
to where it was stopped, so it is measured where it is:

    k           curvature statistic E[-d^2 log p] / Lambda, mean over the last epoch and all coordinates: 1 at the optimum.
                Measured where the step is closed form (for a full covariance: over its axes).
    drift       change of the mean log-precision in the last epoch (mean-field parts)
    longer      the chosen arms of some groups, trained two and four times as long (seed 0, validation)

Arms called *refitted* fit a head anew on the features of a body that was trained with the last layer's posterior, in
large batches and with several pairs of draws, so that the head converges whatever its family; the gradient evaluations of
the network are those of the body. Results are kept in ``--output``: the same command goes on where it was stopped. Tables
and a figure are recorded in MLflow.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from proxscore.calibration import ClassificationMetrics
from proxscore.config import ConfigError
from proxscore.inference import Categorical, ForwardKL, GradientSolver, Prior, ProximalScore, Schedule
from proxscore.inference.families import Family, FullCovariance, Kronecker, LowRank, Mixture
from proxscore.inference.penalties import Tensors
from proxscore.posterior import Posterior, predict
from proxscore.tracking.study import Study, study
from proxscore.vision.data import ImageData, load_images
from proxscore.vision.models import build_model
from proxscore.vision.sources.idx import IdxConfig
from proxscore.vision.task import ModelConfig

DRAWS, BATCH_SIZE, TRAINING_IMAGES, VALIDATION_IMAGES = 16, 100, 10_000, 2_000
METRICS = ("accuracy", "nll", "ece")
#: Prior scales sqrt(2 / fan-in) of the hidden layers, sqrt(1 / fan-in) of the last.
FAN_IN = {"conv1.*": (2 / 9) ** 0.5, "conv2.*": (2 / 144) ** 0.5, "fc.*": (2 / 1568) ** 0.5, "head.*": (1 / 48) ** 0.5}
DIVERGED = {"k": None, "levels": [None, None], "train_nll": None, "validation": {"nll": math.inf}}
KEPT = "kept"  # precision weight: the number of steps, which keeps the precision near its start


@dataclass(frozen=True)
class Arm:
    """One setting of the method.

    Args:
        group: arms of a group differ in one setting; validation NLL chooses one of them.
        precision: weight of the precision at the start; its step falls linearly to a twentieth. Or ``KEPT``.
        refit: the family of a head that is fitted to the features of the chosen arm of the group ``last layer``.
        metric, lr: of the mean's step.
        noise: initial standard deviations relative to each tensor's weights; none: 0.1 of precision per data point.
    """

    group: str
    name: str
    temperature: float = 1.0
    prior: Prior = field(default_factory=lambda: Prior(scale=0.1))
    precision: float | str = 30.0
    families: dict[str, Family] = field(default_factory=dict)
    solver: GradientSolver | None = None
    point_lr: float = 1e-3
    refit: str | None = None
    metric: Literal["posterior", "adaptive"] = "posterior"
    lr: float | None = None
    noise: float | None = None


def last_layer(scale: float) -> Prior:
    return Prior(scale=scale, select="last_layer")


def arms() -> list[Arm]:
    """All of them, in the order in which they run."""
    found = [Arm("cold, kept near its start (default)", "reference", 0.1, Prior(scale=1.0), KEPT)]
    found += [
        Arm("last layer", f"last layer, prior {scale:g}", prior=last_layer(scale), point_lr=4e-3)
        for scale in (0.1, 0.3, 1.0)
    ]
    found += [
        Arm("last layer, refitted mean field", "refitted mean field", refit="mean_field"),
        Arm("last layer, refitted full covariance", "refitted full covariance", refit="full_covariance"),
    ]
    found += [Arm("mean field", f"mean field, prior {s:g}", prior=Prior(scale=s)) for s in (0.03, 0.1, 0.3, 1.0)]
    found += [Arm("mean field", "mean field, prior by fan-in", prior=Prior(scales=FAN_IN))]
    found += [
        Arm(f"mean field, temperature {t:g}", f"temperature {t:g}, prior {s:g}", t, Prior(scale=s))
        for t in (0.3, 0.1)
        for s in (0.1, 0.3, 1.0)
    ]
    kept = "mean field, kept near its start"
    head: dict[str, Family] = {"head.*": FullCovariance()}
    found += [
        Arm(kept, "kept", prior=Prior(scale=1.0), precision=KEPT),
        Arm(f"{kept}, full-covariance head", "kept, full head", prior=Prior(scale=1.0), precision=KEPT, families=head),
    ]
    families: dict[str, tuple[str, Family, Prior]] = {
        "kronecker head": ("head.weight", Kronecker(), last_layer(0.3)),
        "low rank 4": ("*", LowRank(rank=4), Prior(scale=0.3)),
        "mixture of 2": ("*", Mixture(components=2), Prior(scale=0.3)),
    }
    for name, (pattern, family, prior) in families.items():
        for lr in (0.02, 0.1):
            solver = GradientSolver(inner_steps=5, lr=lr)
            arm = Arm(name, f"{name}, lr {lr:g}", prior=prior, families={pattern: family}, solver=solver, point_lr=4e-3)
            found.append(arm)
    free: dict[str, Any] = {"metric": "adaptive", "lr": 0.016}
    scales: tuple[float | Literal["fan_in"], ...] = (0.1, 0.3, "fan_in")
    group = "adaptive, kept near its start"
    found += [
        Arm(group, "adaptive, kept (default)", prior=Prior(scale=1.0), precision=KEPT, metric="adaptive", noise=0.02),
        Arm(group, "adaptive, kept, lr 0.016", prior=Prior(scale=1.0), precision=KEPT, noise=0.02, **free),
    ]
    for temperature in (1.0, 0.1):
        group = f"adaptive, temperature {temperature:g}"
        found += [Arm(group, f"{group}, prior {s}", temperature, Prior(scale=s), **free) for s in scales]
    found += [
        Arm("adaptive, last layer", f"adaptive, last layer, prior {s:g}", prior=last_layer(s), point_lr=4e-3, **free)
        for s in (0.1, 0.3)
    ]
    return found


LONGER = ("last layer", "mean field", "cold, kept near its start (default)", "adaptive, kept near its start")
REFIT_STEPS, REFIT_BATCH = 300, 2_000


@dataclass(frozen=True)
class WatchedKL(ForwardKL):
    """The forward penalty, which notes the sum and the count of the curvature statistics it is given at each step."""

    seen: list[tuple[float, int]] = field(default_factory=list)

    def precision_ratio_(self, curvature: Tensors, weight: float) -> Tensors:
        self.seen.append((sum(k.sum().item() for k in curvature), sum(k.numel() for k in curvature)))
        return super().precision_ratio_(curvature, weight)

    def average(self, steps: int) -> float | None:
        """Mean k over the last steps; none where no step was closed form."""
        last = self.seen[-steps:]
        return sum(total for total, _ in last) / sum(count for _, count in last) if last else None


class Problem:
    """Data in memory; channels last, which makes the network's forward pass twice as fast on a CPU."""

    def __init__(self, data: ImageData, epochs: int, quick: bool) -> None:
        self.data, self.epochs = data, epochs
        self.limit = {"train": None, "validation": 200 if quick else VALIDATION_IMAGES, "test": 200 if quick else None}
        self.likelihood = Categorical()
        self.held = {split: self._read(split) for split in self.limit}
        self.size = len(self.held["train"][1])

    def _read(self, split: str) -> tuple[Tensor, Tensor]:
        rows = getattr(self.data, split)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        images, labels = rows.__getitems__(order[: self.limit[split]])
        return images.permute(0, 2, 3, 1).contiguous(), labels

    def module(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build_model(ModelConfig(name="small_cnn"), classes=len(self.data.classes), shape=self.data.shape)

    def batches(self, split: str, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass; in the given order of rows."""
        images, labels = self.held[split]
        for rows in (torch.arange(len(labels)) if order is None else order).split(BATCH_SIZE):
            yield images[rows].permute(0, 3, 1, 2), labels[rows]

    def evaluate(self, module: nn.Module, posterior: Posterior, split: str) -> dict[str, float]:
        predictive = predict(module, lambda: self.batches(split), posterior, draws=DRAWS)
        metrics = ClassificationMetrics(len(self.data.classes))
        metrics.update(predictive.log_probabilities, predictive.expected_entropy, predictive.targets)
        return metrics.compute()


def train(arm: Arm, module: nn.Module, problem: Problem, seed: int, stretch: int) -> tuple[Posterior, dict[str, Any]]:
    """Train an arm ``stretch`` times as long as the others; the posterior, and what was measured on the way."""
    epochs, per_epoch = problem.epochs * stretch, -(-problem.size // BATCH_SIZE)
    steps = epochs * per_epoch
    cosine = Schedule("cosine", warmup=0.05 * steps).resolve(steps, 1)
    falling = Schedule("linear", end=0.05).resolve(steps, 1)
    # Kept: as far from the start however long the run is, for what longer training changes is to be seen.
    kept = arm.precision == KEPT
    weight = float(problem.epochs * per_epoch) if kept else float(arm.precision)
    penalty = WatchedKL(weight, 2.0, Schedule() if kept else falling, cosine)
    optimizer = ProximalScore(
        module.named_parameters(),
        problem.size,
        prior=arm.prior,
        penalty=penalty,
        families=arm.families,
        solver=arm.solver,
        temperature=arm.temperature,
        paired=False,
        point_lr=arm.point_lr,
        seed=seed,
        metric=arm.metric,
        lr=arm.lr,
        initial_noise=arm.noise,
        initial_precision=0.1 if arm.noise is None else None,
    )
    generator = torch.Generator().manual_seed(seed)
    levels = [level(optimizer)]
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for images, labels in problem.batches("train", torch.randperm(problem.size, generator=generator)):
            for _ in optimizer.draws():
                loss = problem.likelihood.nll(module(images), labels).mean()
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
        levels.append(level(optimizer))
    measured = {"k": penalty.average(per_epoch), "levels": levels, "train_nll": statistics.mean(losses)}
    return Posterior.of(module, optimizer), measured


def level(optimizer: ProximalScore) -> float | None:
    """Mean log-precision of the parameters with a mean-field posterior."""
    logs = [state["precision"].log().flatten() for _, _, state in optimizer.sampled()]
    return torch.cat(logs).mean().item() if logs else None


def refit(
    family: str, prior: Prior, module: nn.Module, problem: Problem, seed: int
) -> tuple[Posterior, dict[str, Any]]:
    """A head's posterior for fixed features, with large batches and many draws."""
    with torch.no_grad():
        features = torch.cat(
            [module.forward_head(module.forward_features(x), pre_logits=True) for x, _ in problem.batches("train")]  # type: ignore[operator]
        )
    labels = problem.held["train"][1]
    full = family == "full_covariance"
    head = nn.ModuleDict({"head": module.get_submodule("head")})  # the names of the whole network
    penalty = WatchedKL(
        1000.0 if full else 10.0,
        0.5 if full else 9.5,  # correlated features and a diagonal precision: only short steps of the mean are stable
        Schedule("linear", end=0.05).resolve(REFIT_STEPS, 1),
        Schedule("cosine").resolve(REFIT_STEPS, 1),
    )
    optimizer = ProximalScore(
        head.named_parameters(),
        problem.size,
        prior=Prior(scale=prior.scale),
        penalty=penalty,
        families={"*": FullCovariance()} if full else {},
        initial_precision=3e-3 if full else 1e-4,
        draws=8 if full else 2,  # an average of one pair says too little of 490 x 490 numbers
        max_mean_step=math.inf if full else 0.1,
        seed=seed,
        metric="posterior",
    )
    levels, losses = [level(optimizer)], []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(REFIT_STEPS):
        rows = torch.randperm(problem.size, generator=generator)[:REFIT_BATCH]
        for _ in optimizer.draws():
            loss = problem.likelihood.nll(head["head"](features[rows]), labels[rows]).mean()
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        levels.append(level(optimizer))
    last = REFIT_STEPS // 10
    measured = {"k": penalty.average(last), "levels": levels[::last], "train_nll": statistics.mean(losses[-last:])}
    part = Posterior.of(head, optimizer)
    posterior = Posterior.of(module)
    return Posterior(posterior.mean, part.precision, posterior.buffers, joint=part.joint), measured


class Runs:
    """Runs of arms, each made once: measurements in a JSON file, posteriors beside it.

    Args:
        folder: of both.
        settings: that all runs share; a file of other settings is refused.
        groups: how the names of the groups begin that are run.

    Raises:
        ConfigError: the folder holds results of other settings.
    """

    def __init__(self, problem: Problem, folder: Path, settings: dict[str, Any], groups: str) -> None:
        self.problem, self.folder, self.file = problem, folder, folder / "convergence.json"
        folder.mkdir(parents=True, exist_ok=True)
        held = json.loads(self.file.read_text()) if self.file.exists() else {"settings": settings, "runs": {}}
        if held["settings"] != settings:
            raise ConfigError(f"{self.file}: results of other settings ({held['settings']}); choose another --output")
        self.held: dict[str, Any] = held
        self.arms: dict[str, list[Arm]] = defaultdict(list)
        for arm in arms():
            if arm.group.startswith(groups):
                self.arms[arm.group].append(arm)
        self.longer = [group for group in LONGER if group in self.arms]
        if not self.arms:
            raise ConfigError(
                f"--groups {groups}: no group begins so; there are {', '.join({a.group for a in arms()})}"
            )

    def chosen(self, group: str) -> Arm:
        """The arm of a group with the lowest validation NLL, which every one of its arms has had measured."""
        return min(self.arms[group], key=lambda arm: self.run(arm)["validation"]["nll"])

    def run(self, arm: Arm, seed: int = 0, stretch: int = 1) -> dict[str, Any]:
        """Train and validate an arm, unless that has been done."""
        key = f"{arm.name}, seed {seed}, x{stretch}"
        if key not in self.held["runs"]:
            base = self.chosen("last layer") if arm.refit else arm
            if arm.refit:
                self.run(base, seed)
            posterior: Posterior | None
            module, started = self.problem.module(seed), time.process_time()
            if arm.refit:
                Posterior.load(self._posterior(base, seed)).load_into(module)
                posterior, values = refit(arm.refit, base.prior, module, self.problem, seed)
            else:
                try:
                    posterior, values = train(arm, module, self.problem, seed, stretch)
                except FloatingPointError as error:  # an arm that diverges is a result
                    posterior, values = None, DIVERGED | {"failure": str(error)}
            values["seconds"] = time.process_time() - started
            if posterior is not None:
                values["validation"] = self.problem.evaluate(module, posterior, "validation")
            if posterior is not None and stretch == 1:
                posterior.save(self._posterior(arm, seed))
            self._keep(key, values)
        return self.held["runs"][key]

    def counts(self, group: str, seed: int) -> bool:
        """Whether a group is tested with a seed: the first one, or any if it is not far behind."""
        fast = [self.chosen(other) for other, members in self.arms.items() if not members[0].solver]
        best = min(self.run(arm)["validation"]["nll"] for arm in fast)
        return seed == 0 or self.run(self.chosen(group))["validation"]["nll"] < 2 * best

    def test(self, arm: Arm, seed: int) -> dict[str, float]:
        """Test metrics of a run."""
        values = self.run(arm, seed)
        if "failure" in values:
            return dict.fromkeys(METRICS, math.inf)
        if "test" not in values:
            posterior = Posterior.load(self._posterior(arm, seed))
            values["test"] = self.problem.evaluate(self.problem.module(seed), posterior, "test")
            self._keep(f"{arm.name}, seed {seed}, x1", values)
        return values["test"]

    def _posterior(self, arm: Arm, seed: int) -> Path:
        return self.folder / "posteriors" / f"{arm.name.replace(' ', '_')}_{seed}"

    def _keep(self, key: str, values: dict[str, Any]) -> None:
        self.held["runs"][key] = values
        self.file.write_text(json.dumps(self.held, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="folder with Fashion-MNIST's IDX files")
    parser.add_argument("--output", type=Path, default=Path("convergence"), help="folder of results")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--groups", default="", help="run only the groups of arms whose names begin so")
    parser.add_argument("--quick", action="store_true", help="500 images, one epoch, one seed: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.epochs, options.seeds = 1, 1
    size = 500 if options.quick else TRAINING_IMAGES
    settings = {"epochs": options.epochs, "quick": options.quick, "images": size}
    try:
        data = load_images(IdxConfig(kind="idx", path=options.path, limit=size))
        runs = Runs(Problem(data, options.epochs, options.quick), options.output, settings, options.groups)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with study("convergence", settings | {"seeds": options.seeds}, options.output) as record:
        longer = (2,) if options.quick else (2, 4)
        measure(runs, options.seeds, longer)
        report(runs, options.seeds, longer, record)
    return 0


def measure(runs: Runs, seeds: int, longer: tuple[int, ...]) -> None:
    """Every run there is. Choices come first; the gradient solver's arms, which take three times as long, come last."""
    slow = [group for group, members in runs.arms.items() if members[0].solver]
    fast = [group for group in runs.arms if group not in slow]
    tasks = [*validations(runs, fast), *tests(runs, fast, [0]), *stretched(runs, longer[0])]
    tasks += [*tests(runs, fast, range(1, seeds)), *validations(runs, slow), *tests(runs, slow, range(seeds))]
    for factor in longer[1:]:
        tasks += stretched(runs, factor)
    with tqdm(tasks) as progress:
        for what, work in progress:
            progress.set_postfix_str(what)
            progress.write(f"{what}: NLL {work():.4f}")


Task = tuple[str, Callable[[], float]]


def validations(runs: Runs, groups: Iterable[str]) -> list[Task]:
    """Validation NLL of every arm, seed 0."""

    def task(arm: Arm) -> Task:
        return arm.name, lambda: runs.run(arm)["validation"]["nll"]

    return [task(arm) for group in groups for arm in runs.arms[group]]


def tests(runs: Runs, groups: Iterable[str], seeds: Iterable[int]) -> list[Task]:
    """Test NLL of every group's chosen arm; with one seed only where its validation NLL is twice the best one's."""

    def task(group: str, seed: int) -> Task:
        def work() -> float:
            return runs.test(runs.chosen(group), seed)["nll"] if runs.counts(group, seed) else float("nan")

        return f"{group}, test, seed {seed}", work

    return [task(group, seed) for seed in seeds for group in groups]


def stretched(runs: Runs, factor: int) -> list[Task]:
    """Validation NLL of some groups' chosen arms after training that is so many times as long."""

    def task(group: str) -> Task:
        return f"{group}, x{factor}", lambda: runs.run(runs.chosen(group), 0, factor)["validation"]["nll"]

    return [task(group) for group in runs.longer]


def report(runs: Runs, seeds: int, longer: tuple[int, ...], record: Study) -> None:
    """Tables and the figure."""
    rows = []
    for arm in (arm for group in runs.arms.values() for arm in group):
        values = runs.run(arm)
        mark = " *" if arm == runs.chosen(arm.group) and len(runs.arms[arm.group]) > 1 else ""
        cells = (number(values["k"], 2), drift(values), number(values["train_nll"]))
        rows.append([arm.group, arm.name + mark, *cells, number(values["validation"]["nll"])])
    record.table("arms", ["group", "arm (* chosen)", "k", "drift", "training NLL of draws", "validation NLL"], rows)
    rows = []
    for group in runs.arms:
        arm = runs.chosen(group)
        counted = [seed for seed in range(seeds) if runs.counts(group, seed)]
        tested = [runs.test(arm, seed) for seed in counted]
        name = re.sub(r"\W+", "_", group)
        if math.isfinite(sum(run["nll"] for run in tested)):
            record.metrics({f"test/{m}/{name}": statistics.mean(run[m] for run in tested) for m in METRICS})
        k = statistics.mean(runs.run(arm, seed)["k"] or 0 for seed in counted) or None
        rows.append([group, arm.name, number(k, 2), *(spread([run[metric] for run in tested]) for metric in METRICS)])
    record.table("test", ["group", "arm", "k", "accuracy", "NLL", "ECE"], rows)
    rows = []
    for group in runs.longer:
        for stretch in (1, *longer):
            values = runs.run(runs.chosen(group), 0, stretch)
            level = number(values["levels"][-1], 2)
            rows.append([group, str(stretch), number(values["k"], 2), level, number(values["validation"]["nll"])])
    record.table("longer", ["group", "times as long", "k", "mean log-precision", "validation NLL"], rows)
    record.figure("convergence", figure(runs))


def number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if math.isfinite(value) else "diverged"


def drift(values: dict[str, Any]) -> str:
    levels = values["levels"]
    return "" if levels[-1] is None else f"{levels[-1] - levels[-2]:+.2f}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def figure(runs: Runs) -> Figure:
    """Left: k against validation NLL, all arms. Right: the mean log-precision over training, chosen arms."""
    result = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = result.subplots(1, 2)
    for index, (group, members) in enumerate(runs.arms.items()):
        points = [(runs.run(arm)["k"], runs.run(arm)["validation"]["nll"]) for arm in members]
        measured = [point for point in points if point[0] is not None]
        if measured:
            left.plot(*zip(*measured, strict=True), "o", color=f"C{index % 10}", label=group)
        levels = runs.run(runs.chosen(group))["levels"]
        if levels[0] is not None:
            right.plot([i / (len(levels) - 1) for i in range(len(levels))], levels, color=f"C{index % 10}")
    left.axvline(1.0, color="grey", linewidth=0.8)
    left.set(xlabel="curvature statistic k in the last epoch (1: converged)", ylabel="validation NLL")
    right.set(xlabel="part of the training", ylabel="mean log-precision")
    left.legend(fontsize=7)
    return result


if __name__ == "__main__":
    sys.exit(main())
