"""What the proximal penalty does on a Vision Transformer, beside the trust region, the schedules and the solver.

    python jobs/studies/penalty_ablation/run.py --output penalty_ablation

The network and the data of ``jobs/configs/quickstart.yaml`` (about 100,000 parameters; scikit-learn's digits), trained in
plain Python with 800 gradient evaluations of 64 images for every arm: 40 epochs of single draws, or 20 of pairs, which
take half the steps. Data size 100,000 (as jobs/train.py takes for small data), prior scale 0.1. Unless an arm says
otherwise: precision weight = number of proximal steps, mean weight 2, trust region 1 (log-precision) and 0.2 (mean, in
standard deviations), mean's step by cosine and precision's constant, both decaying schedules and constant ones with half
an epoch of warm-up of the mean.

    penalties   none, forward KL, reverse KL, quadratic; the mean's step constant or by cosine; each with the trust
                region as it is, without the mean's, or with the precision's tuned in the penalty's place; pairs
    schedules   of the mean's step and of the precision's, with forward KL
    solvers     the gradient solver (Adam; it has no trust region) at the same number of gradient evaluations: inner
                steps between two anchors, learning rate, and proximal weights, all tuned

Where an arm tunes settings, validation NLL decides (seed 0, the last epoch). Each arm is then run with every seed, and
test metrics are those of 16 draws. A run has diverged if its NLL is above log 10 (a uniform guess), or not finite, or if
steps were skipped because scores were not finite. An interrupted study goes on where it was: runs are kept in
``runs.json`` of the output folder. Needs neither Ray nor a cluster; tables and figures go to MLflow.
Source of the method: M. Kim, arXiv 2602.05873.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from proxscore.calibration import ClassificationMetrics
from proxscore.config import PENALTIES, ConfigError
from proxscore.inference import Categorical, Prior, ProximalScore, Schedule
from proxscore.inference.solver import GradientSolver
from proxscore.posterior import Posterior, predict
from proxscore.tracking import study
from proxscore.vision.data import ImageData, load_images
from proxscore.vision.models import build_model
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.task import ModelConfig

MODEL = ModelConfig(name="vit_tiny_patch16_224", kwargs={"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4})
BATCH_SIZE, EPOCHS, QUICK_EPOCHS = 64, 40, 2
DRAWS, CURVE_DRAWS, CURVE_POINTS = 16, 4, 10
INITIAL_PRECISION = 0.1  # per data point
SCHEDULES = {
    "constant": Schedule("constant"),
    "linear": Schedule("linear"),
    "cosine": Schedule("cosine"),
    "exponential": Schedule("exponential", end=0.01),
    "power": Schedule("power", power=0.5, unit="epochs"),
}
NAMES = {"none": "no penalty", "forward_kl": "forward KL", "reverse_kl": "reverse KL", "quadratic": "quadratic"}


@dataclass(frozen=True)
class Trial:
    """One training run. ``weight`` is a factor on both proximal weights; without ``inner_steps``, the closed form."""

    penalty: str = "forward_kl"
    mean_schedule: str = "cosine"
    precision_schedule: str = "constant"
    weight: float = 1.0
    paired: bool = False
    max_log_precision_step: float | None = 1.0
    max_mean_step: float | None = 0.2
    inner_steps: int | None = None
    lr: float | None = None  # of the gradient solver
    epochs: int = EPOCHS  # of single draws; pairs take half
    seed: int = 0

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Arm:
    """A row of the table: a trial, and the values of its settings that validation NLL decides between."""

    group: str
    name: str
    trial: Trial
    tuned: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def trials(self) -> list[Trial]:
        """Every combination of the tuned values, with seed 0."""
        settings: list[dict[str, Any]] = [dict(zip(self.tuned, v, strict=True)) for v in product(*self.tuned.values())]
        return [replace(self.trial, **setting) for setting in settings]

    def best(self, runs: Mapping[str, dict[str, Any]]) -> Trial:
        """The trial with the lowest finite validation NLL; the first, if there is none."""

        def nll(trial: Trial) -> float:
            value = runs[trial.key]["validation"]["nll"]
            return value if math.isfinite(value) else math.inf

        return min(self.trials(), key=nll)


def arms(epochs: int) -> list[Arm]:
    """All arms, in the order of the table."""
    base = Trial(epochs=epochs)
    rows = []
    for schedule, penalty in product(("constant", "cosine"), NAMES):
        trial = replace(base, penalty=penalty, mean_schedule=schedule)
        rows.append(Arm("penalties", f"{NAMES[penalty]}, mean {schedule}", trial))
    none = replace(base, penalty="none")
    region = {"max_log_precision_step": (0.1, 0.01, 0.001)}
    free = replace(base, max_log_precision_step=None, max_mean_step=math.inf)
    rows += [
        Arm("penalties", "no penalty, precision's trust region tuned", none, region),
        Arm("penalties", "no penalty, precision held", replace(none, max_log_precision_step=1e-6)),
        Arm("penalties", "no penalty, no trust region of the mean", replace(none, max_mean_step=math.inf), region),
        Arm("penalties", "forward KL, no trust region", free),
        Arm("penalties", "forward KL, weight × 0.3, no trust region", replace(free, weight=0.3)),
        Arm("penalties", "forward KL, weight × 0.1", replace(base, weight=0.1)),
        Arm("penalties", "no penalty, pairs, precision's trust region tuned", replace(none, paired=True), region),
        Arm("penalties", "forward KL, pairs", replace(base, paired=True)),
    ]
    rows += [Arm("schedules", f"mean {kind}", replace(base, mean_schedule=kind)) for kind in SCHEDULES]
    rows += [
        Arm("schedules", f"precision {kind}", replace(base, precision_schedule=kind))
        for kind in ("cosine", "exponential")
    ]
    # The gradient solver reads no trust region. Its weights count anchors: there are steps / inner steps of them.
    rates: dict[str, tuple[float, ...]] = {"lr": (0.03, 0.1, 0.3)}
    solver = replace(base, inner_steps=5, lr=0.1)
    rows += [
        Arm("solvers", "closed form, forward KL", base),
        Arm("solvers", "gradient, forward KL", solver, {"inner_steps": (2, 5, 10, 20), **rates}),
        Arm("solvers", "gradient, no penalty", replace(solver, penalty="none"), {"inner_steps": (2, 10), **rates}),
        Arm("solvers", "gradient, forward KL, 5 inner steps, weight tuned", solver, {"weight": (0.03, 0.3, 1.0, 3.0)}),
    ]
    return rows


# ------------------------------------------------------------ one run


@cache
def images() -> ImageData:
    return load_images(DigitsConfig())


def tensors(split: str) -> tuple[Tensor, Tensor]:
    rows = getattr(images(), split)
    return rows.__getitems__(list(range(len(rows))))


def batches(seed: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = tensors("train")
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH_SIZE):
            yield inputs[rows], labels[rows]


def evaluate(module: nn.Module, posterior: Posterior, split: str, draws: int) -> dict[str, float]:
    """Accuracy, NLL (nats) and ECE; NaN where the predictions are not finite."""
    predictive = predict(module, lambda: [tensors(split)], posterior, draws=draws)
    metrics = ClassificationMetrics(len(images().classes))
    try:
        metrics.update(predictive.log_probabilities, predictive.expected_entropy, predictive.targets)
    except ConfigError:  # probabilities that are no numbers
        return dict.fromkeys(("accuracy", "nll", "ece"), math.nan)
    return {name: metrics.compute()[name] for name in ("accuracy", "nll", "ece")}


def build(trial: Trial, module: nn.Module, steps: int, steps_per_epoch: int) -> ProximalScore:
    schedules = {
        "precision_schedule": SCHEDULES[trial.precision_schedule],
        "mean_schedule": replace(SCHEDULES[trial.mean_schedule], warmup=_warmup(trial, steps_per_epoch)),
    }
    penalty = PENALTIES.component(trial.penalty).builds(
        precision=trial.weight * steps / (trial.inner_steps or 1), mean=2.0 * trial.weight, **schedules
    )
    solver = None
    if trial.inner_steps is not None:
        assert trial.lr is not None
        solver = GradientSolver(trial.inner_steps, torch.optim.Adam, trial.lr)
    return ProximalScore(
        module.named_parameters(),
        100_000.0,
        prior=Prior(scale=0.1),
        penalty=penalty.resolve(steps, steps_per_epoch),
        solver=solver,
        initial_precision=INITIAL_PRECISION,
        paired=trial.paired,
        max_log_precision_step=trial.max_log_precision_step,
        max_mean_step=trial.max_mean_step,
        seed=trial.seed,
        metric="posterior",
    )


def _warmup(trial: Trial, steps_per_epoch: int) -> float:
    """Half an epoch, in the schedule's unit."""
    return 0.5 * (1 if SCHEDULES[trial.mean_schedule].unit == "epochs" else steps_per_epoch)


def run(trial: Trial) -> dict[str, Any]:
    """Train and evaluate: metrics of both splits, the validation curve, and diagnostics."""
    torch.set_num_threads(1)
    torch.manual_seed(trial.seed)
    module = build_model(MODEL, classes=len(images().classes), shape=images().shape)
    epochs = trial.epochs // 2 if trial.paired else trial.epochs
    steps_per_epoch = -(-len(images().train) // BATCH_SIZE)
    steps = epochs * steps_per_epoch
    optimizer = build(trial, module, steps, steps_per_epoch)
    before, curve, bound, failure = log_precision(Posterior.of(module, optimizer)), [], Bound(trial), ""
    started = time.process_time()
    try:
        for step, (inputs, labels) in enumerate(batches(trial.seed, epochs)):
            for _ in optimizer.draws():
                Categorical().nll(module(inputs), labels).mean().backward()
            bound.before(step, optimizer)
            optimizer.step()
            bound.after(step, optimizer)
            if (step + 1) % max(steps // CURVE_POINTS, 1) == 0:
                nll = evaluate(module, Posterior.of(module, optimizer), "validation", CURVE_DRAWS)["nll"]
                curve.append(((step + 1) * optimizer.evaluations_per_step, nll))
    except FloatingPointError as error:
        failure = str(error)
    posterior = Posterior.of(module, optimizer)
    result: dict[str, Any] = {s: evaluate(module, posterior, s, DRAWS) for s in ("validation", "test")}
    skipped = optimizer.param_groups[0]["skipped"]
    return result | {
        "diverged": bool(failure or skipped or not result["test"]["nll"] <= math.log(10)),
        "skipped": skipped,
        "failure": failure,
        "log_precision_change": (log_precision(posterior) - before).mean().item(),
        "bound": bound.shares(),
        "curve": curve,
        "seconds": time.process_time() - started,
    }


def log_precision(posterior: Posterior) -> Tensor:
    """Of every sampled number, (D,)."""
    tensors = [*posterior.precision.values(), *(joint.state["precision"] for joint in posterior.joint)]
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).log()


class Bound:
    """The share of numbers whose step lies on the trust region's bound, in every 20th closed-form step."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.seen: list[tuple[float, float]] = []

    def before(self, step: int, optimizer: ProximalScore) -> None:
        if step % 20 == 19:
            self.mean, self.precision = self._state(optimizer)

    def after(self, step: int, optimizer: ProximalScore) -> None:
        if step % 20 != 19 or self.trial.inner_steps is not None:
            return
        mean, precision = self._state(optimizer)
        factor = optimizer.penalty.mean_schedule.factor(step)
        move = (mean - self.mean).abs() * self.precision.sqrt()
        shares = [
            (value >= 0.98 * limit).float().mean().item() if limit else math.nan
            for value, limit in (
                (move, (self.trial.max_mean_step or 0.0) * factor),
                ((precision / self.precision).log().abs(), self.trial.max_log_precision_step),
            )
        ]
        self.seen.append((shares[0], shares[1]))

    def shares(self) -> dict[str, float | None]:
        """By what is bounded; none where nothing is."""
        means = [statistics.mean(s) if s else math.nan for s in zip(*self.seen, strict=True)] or [math.nan, math.nan]
        return {k: v if math.isfinite(v) else None for k, v in zip(("mean", "precision"), means, strict=True)}

    def _state(self, optimizer: ProximalScore) -> tuple[Tensor, Tensor]:
        states = [state for _, _, state in optimizer.sampled()]
        if not states:
            return torch.empty(0), torch.empty(0)
        return (
            torch.cat([s["mean"].flatten() for s in states]),
            torch.cat([s["precision"].flatten() for s in states]),
        )


# ------------------------------------------------------------ all of them


def execute(trials: Iterable[Trial], runs: dict[str, dict[str, Any]], jobs: int, store: Path, what: str) -> None:
    """Run the trials that ``runs`` does not hold yet, and keep each in ``store`` as it ends."""
    pending = [trial for key, trial in {t.key: t for t in trials}.items() if key not in runs]
    with tqdm(total=len(pending), desc=what) as progress:
        for trial, result in _results(pending, jobs):
            runs[trial.key] = result
            partial = store.with_suffix(".partial")
            partial.write_text(json.dumps(runs))
            partial.replace(store)
            progress.set_postfix_str(f"{trial.penalty}: validation NLL {result['validation']['nll']:.3f}")
            progress.update()


def _results(trials: list[Trial], jobs: int) -> Iterator[tuple[Trial, dict[str, Any]]]:
    if jobs == 1:
        yield from ((trial, run(trial)) for trial in trials)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, trial): trial for trial in trials}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


HEADER = (
    "study",
    "arm",
    "tuned",
    "test accuracy",
    "test NLL",
    "test ECE",
    "mean change of log-precision",
    "on the bound: mean, precision",
    "diverged",
)


def row(arm: Arm, chosen: Trial, tested: list[dict[str, Any]]) -> list[str]:
    """A line of the table: mean and standard deviation over the seeds."""
    cells = [_spread([r["test"][metric] for r in tested], 3) for metric in ("accuracy", "nll", "ece")]
    change = _spread([r["log_precision_change"] for r in tested], 2)
    bounds = [[r["bound"][name] for r in tested if r["bound"][name] is not None] for name in ("mean", "precision")]
    bound = ", ".join(f"{statistics.mean(values):.0%}" if values else "-" for values in bounds)
    return [
        arm.group,
        arm.name,
        setting(arm, chosen),
        *cells,
        change,
        bound,
        f"{sum(r['diverged'] for r in tested)} of {len(tested)}",
    ]


LABELS = {"max_log_precision_step": "trust region", "weight": "weight ×", "lr": "lr", "inner_steps": "inner steps"}


def setting(arm: Arm, trial: Trial) -> str:
    """The values of what the arm tunes."""
    return ", ".join(f"{LABELS[name]} {getattr(trial, name):g}" for name in arm.tuned)


def tuning(rows: list[Arm], runs: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """A line for every value that validation NLL decided on."""
    return [
        [a.group, a.name, setting(a, t), _spread([runs[t.key]["validation"]["nll"]], 3), str(runs[t.key]["skipped"])]
        for a in rows
        for t in a.trials()
        if a.tuned
    ]


def _spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation; a dash if a value is no number."""
    if not all(math.isfinite(value) for value in values):
        return "-"
    if statistics.mean(values) > 100:  # runs that diverged
        return f"{statistics.mean(values):.0e}"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


# ------------------------------------------------------------ figures

COLOURS = {"penalties": "tab:blue", "schedules": "tab:green", "solvers": "tab:orange"}


WORST = 10.0  # NLL: the figures end here


def bars(results: list[tuple[Arm, list[dict[str, Any]]]]) -> Figure:
    """Test NLL of every arm, each seed a dot; at the right edge, seeds whose NLL is beyond it or no number."""
    figure = Figure(figsize=(9, 0.27 * len(results) + 1.2), layout="constrained")
    axes = figure.subplots()
    labelled: set[str] = set()
    for position, (arm, tested) in enumerate(results):
        nll = [r["test"]["nll"] for r in tested]
        kept = [value for value in nll if value < WORST]
        if kept:
            label = None if arm.group in labelled else arm.group
            axes.barh(position, statistics.mean(kept), color=COLOURS[arm.group], alpha=0.5, label=label)
            axes.plot(kept, [position] * len(kept), "k.", markersize=4)
            labelled.add(arm.group)
        if len(kept) < len(nll):
            text = f"{len(nll) - len(kept)} of {len(nll)} beyond"
            axes.text(0.96 * WORST, position, text, ha="right", va="center", fontsize=6, color="tab:red")
    axes.axvline(math.log(10), color="grey", linestyle=":", label="uniform guess")
    axes.set_yticks(range(len(results)), [arm.name for arm, _ in results], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.05, WORST)
    axes.set_xlabel(f"test NLL (nats), {DRAWS} draws; bar: mean over the seeds, dots: seeds")
    axes.legend(fontsize=7)
    return figure


def curves(results: list[tuple[Arm, list[dict[str, Any]]]]) -> Figure:
    """Validation NLL against gradient evaluations, mean over the seeds; the upper edge is anything beyond, or no number.

    Arms whose every seed failed before the first evaluation are left out, and penalties under a constant mean's step.
    """
    figure = Figure(figsize=(15, 7), layout="constrained")
    for axes, group in zip(figure.subplots(1, 3, sharey=True), COLOURS, strict=True):
        members = [(a, t) for a, t in results if a.group == group and any(r["curve"] for r in t)]
        if group == "penalties":
            members = [(a, t) for a, t in members if a.trial.mean_schedule != "constant"]
        for index, (arm, tested) in enumerate(members):
            points: dict[int, list[float]] = {}
            for evaluations, nll in (point for r in tested for point in r["curve"]):
                points.setdefault(evaluations, []).append(nll if nll < WORST else WORST)
            style = {"color": f"C{index % 10}", "linestyle": ("-", "--")[index // 10 % 2]}
            axes.plot(list(points), [statistics.mean(v) for v in points.values()], label=arm.name, **style)
        axes.axhline(math.log(10), color="grey", linestyle=":", label="uniform guess")
        axes.set_yscale("log")
        axes.set_ylim(0.02, 1.05 * WORST)
        axes.set_title(group)
        axes.set_xlabel(f"gradient evaluations ({BATCH_SIZE} images each)")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.axes[0].set_ylabel(f"validation NLL (nats), {CURVE_DRAWS} draws, mean over the seeds")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("penalty_ablation"), help="folder of runs and figures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help=f"every arm, but {QUICK_EPOCHS} epochs and one seed")
    options = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            print(f"error: --{name} is {getattr(options, name)}; it must be at least 1", file=sys.stderr)
            return 2
    epochs, seeds = (QUICK_EPOCHS, 1) if options.quick else (EPOCHS, options.seeds)
    settings = {"epochs": epochs, "seeds": seeds, "batch_size": BATCH_SIZE, "draws": DRAWS, "jobs": options.jobs}
    try:
        with study("penalty ablation", settings, options.output) as recorded:
            store = options.output / "runs.json"
            runs = json.loads(store.read_text()) if store.exists() else {}
            rows = arms(epochs)
            chosen: list[list[Trial]] = []
            for group in COLOURS:
                members = [arm for arm in rows if arm.group == group]
                execute((t for arm in members for t in arm.trials()), runs, options.jobs, store, f"{group}: tuning")
                best = [[replace(arm.best(runs), seed=seed) for seed in range(seeds)] for arm in members]
                execute((t for trials in best for t in trials), runs, options.jobs, store, f"{group}: seeds")
                chosen += best
            results = [(arm, [runs[t.key] for t in trials]) for arm, trials in zip(rows, chosen, strict=True)]
            table = [row(arm, trials[0], tested) for (arm, tested), trials in zip(results, chosen, strict=True)]
            header = ("study", "arm", "setting", "validation NLL, seed 0", "skipped steps")
            recorded.table("penalty_ablation_tuning", header, tuning(rows, runs))
            recorded.table("penalty_ablation", HEADER, table)
            recorded.figure("penalty_ablation_nll", bars(results))
            recorded.figure("penalty_ablation_curves", curves(results))
            recorded.metrics({"seconds": sum(r["seconds"] for r in runs.values()), "runs": len(runs)})
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
