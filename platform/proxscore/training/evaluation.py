"""Evaluation of a network and its posterior on a split, by all ranks together."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proxscore.calibration.prediction_sets import rows_needed, threshold
from proxscore.calibration.temperature import fit_temperature, tempered
from proxscore.config import Config, MethodSection
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian
from proxscore.methods import Method, RunLength
from proxscore.posterior import CategoricalPredictive, Posterior
from proxscore.posterior.diagnostics import Losses
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.drawn import drawn
from proxscore.posterior.settled import DrawCount, UntilSettled
from proxscore.posterior.single_pass import difference, predict_in_one_pass
from proxscore.tasks import Predictive, Task
from proxscore.tasks.evaluator import Corrected, Figures
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.micro_batches import Batch
from proxscore.training.data.streamed import RayTrainingData
from proxscore.training.loop import divergence
from proxscore.training.run import Run

PACKAGES = ("proxscore", "torch", "torchvision", "timm", "ray", "mlflow", "torchmetrics", "numpy")

#: Coverages of prediction sets that a posterior is saved with.
SET_COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99)

#: Metrics that mean something where no target is right.
WITHOUT_TARGETS = ("entropy", "expected_entropy", "mutual_information", "confidence", "sure")

Evaluated = tuple[dict[str, float], Figures]  # metrics, and what draws figures by name


def evaluate(
    run: Run, split: str, draws: DrawCount, posterior: Posterior | None = None, *, single_pass: bool = False
) -> Evaluated:
    """Predict a split by posterior draws, and evaluate the predictive distribution over all ranks' rows.

    Rows that are left out as unreadable count in no metric, but, if there are any, as ``skipped_rows``. What validation data
    corrected when the posterior was saved is judged beside.

    Args:
        split: train, validation or test.
        draws: posterior draws; zero for the mean weights; ``auto``: how many it took is among the metrics.
        posterior: where the draws come from; none: the module's weights are all that there is.
        single_pass: compare the prediction in one pass (:mod:`proxscore.posterior.single_pass`) with the draws; one process.
    """
    one = _in_one_pass(run, split, posterior) if single_pass and posterior is not None else None
    predictive = predict(run, posterior or Posterior.of(run.module), split, draws)
    label = f"{draws} draws" if draws and posterior else "mean weights"
    if isinstance(draws, UntilSettled):
        label = "draws until settled"
    found = evaluate_predictive(run, predictive, split, label)
    found[0].update(_settled(run, predictive))
    if one is not None:
        found[0].update(_compared(one, predictive))
    saved = {} if posterior is None else posterior.description.get("validation")
    if split == "validation" or not isinstance(saved, dict) or not run.task.evaluator.corrects:
        return found  # the split that corrected them judges nothing
    return _beside(found, _corrected(run, predictive, saved, split, label))


def _settled(run: Run, predictive: Any) -> dict[str, float]:
    """Over all ranks' rows, how many draws were taken, and the largest Monte Carlo error; nothing where the number was given."""
    error, counts = getattr(predictive, "error", None), getattr(predictive, "draws", None)
    if error is None or counts is None:
        return {}
    counts, error = counts.double(), error.double()
    if run.worker.world > 1:
        counts, error = (_of_all_ranks(each.to(run.worker.device)) for each in (counts, error))
    found = {"draws/least": counts.min(), "draws/mean": counts.mean(), "draws/most": counts.max()}
    return {name: value.item() for name, value in (found | {"draws/monte_carlo_error": error.max()}).items()}


def _of_all_ranks(values: Tensor) -> Tensor:
    """The values of every rank, (n,), one behind the other."""
    from torchmetrics.utilities.distributed import gather_all_tensors  # here: the library takes seconds

    return torch.cat(gather_all_tensors(values.float())).double()


def _in_one_pass(run: Run, split: str, posterior: Posterior) -> Predictive:
    """The prediction in one pass: in closed form, or, of likelihoods that have none, by draws of the last layer."""
    norm, settings = batch_norm_batches(run), run.config.evaluation
    closed = isinstance(run.task.likelihood, (Categorical, Bernoulli, Gaussian))
    found: Predictive = predict_in_one_pass(
        run.module,
        run.evaluation_batches(split),
        posterior,
        likelihood=run.task.likelihood,
        head_draws=0 if closed else "auto",
        seed=settings.seed,
        refresh=None if norm is None else lambda: norm,
        autocast=run.autocast,
    )
    return found


def _compared(one: Predictive, predictive: Predictive) -> dict[str, float]:
    """The NLL of the prediction in one pass, and how far it is from that by draws."""
    found = difference(one, predictive)
    key = found.kind.replace(" ", "_")
    values = {"nll": found.nll, key: found.mean, f"{key}_at_most": found.largest}
    return {f"single_pass/{name}": value for name, value in values.items()}


def evaluate_predictive(run: Run, predictive: Predictive, split: str, label: str) -> Evaluated:
    """Evaluate a predictive distribution of a split, over all ranks' rows; ``label`` stands in the titles of figures."""
    device, title = run.worker.device, f"{run.config.name}: {split} split, {label}"
    values, figures = divergence.evaluated(run.task, predictive, run.config.evaluation.bins, device, title)
    seen = torch.tensor(float(len(predictive.targets)), device=device)
    if run.worker.world > 1:
        dist.all_reduce(seen)
    if skipped := len(getattr(run.task.data, split)) - round(seen.item()):
        values["skipped_rows"] = float(skipped)
    return values, figures


def _corrected(run: Run, predictive: Predictive, correction: Mapping[str, Any], split: str, label: str) -> Corrected:
    title = f"{run.config.name}: {split} split, {label}"
    return run.task.evaluator.corrected(predictive, correction, run.worker.device, title)


def _beside(found: Evaluated, corrected: Corrected) -> Evaluated:
    """Metrics and figures of predictions as they are, and of corrected ones."""
    metrics, figures = found
    return metrics | corrected.metrics, lambda: figures() | corrected.figures()


def validate(run: Run, method: Method) -> tuple[dict[str, float], Losses | None]:
    """Evaluate the module in training on the validation split, by ``evaluation.validation_draws`` draws.

    Of a method whose convergence is judged, the NLL of the mean weights and of one draw are among them (``nll_mean``,
    ``nll_draw``), and with that of the draws' average they are returned together.
    """
    posterior, draws = Posterior.of(run.module, method), run.config.evaluation.validation_draws
    predictive = predict(run, posterior, "validation", draws)
    metrics, _ = evaluate_predictive(run, predictive, "validation", f"{draws} draws" if draws else "mean weights")
    if not (method.has_verdict and posterior.random and draws):
        return metrics, None
    one_draw = predictive if draws == 1 else predict(run, posterior, "validation", 1)
    mean, one, average = (_nll(run, each) for each in (predict(run, posterior, "validation", 0), one_draw, predictive))
    return metrics | {"nll_mean": mean, "nll_draw": one}, Losses(mean, one, average)


def _nll(run: Run, predictive: Predictive) -> float:
    """Nats per row with a target, over all ranks' rows."""
    density = predictive.log_density.double()
    known = ~density.isnan()
    sums = torch.stack([-density[known].sum(), known.double().sum()]).float().to(run.worker.device)
    if run.worker.world > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).item() if sums[1] > 0 else math.nan


def evaluate_variants(run: Run, posterior: Posterior) -> tuple[dict[str, Evaluated], dict[str, Corrected]]:
    """Evaluate every variant on the test split: the posterior and its mean (or one member), or the point estimate.

    Where validation data correct a task's predictions, corrected ones are judged beside, and returned too.

    With ``evaluation.temperature_scaling`` also, as ``<variant>_tempered``, those at the temperature that validation data
    prefer, which is among the metrics. What draws disagree on is not defined for them.
    """
    results, corrections, evaluator = {}, {}, run.task.evaluator
    for name, draws in variants(posterior, run.config).items():
        predictive, label = predict(run, posterior, "test", draws), f"{draws} draws" if draws else f"{name} weights"
        results[name] = evaluate_predictive(run, predictive, "test", label)
        if evaluator.corrects:
            correction = evaluator.correction(predict(run, posterior, "validation", draws), run.worker.device)
            corrections[name] = _corrected(run, predictive, correction, "test", label)
            results[name] = _beside(results[name], corrections[name])
        if run.config.evaluation.temperature_scaling:
            temperature = fit_temperature(predict(run, posterior, "validation", draws), run.worker.device)
            label = f"{label}, temperature {temperature:.2f}"
            metrics, figures = evaluate_predictive(run, tempered(predictive, temperature), "test", label)
            metrics = {key: v for key, v in metrics.items() if key not in ("expected_entropy", "mutual_information")}
            results[f"{name}_tempered"] = metrics | {"temperature": temperature}, figures
    return results, corrections


def evaluate_shifts(run: Run, posterior: Posterior) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate every variant under each of ``evaluation.shifts``.

    Metrics that need targets are left out where these do not hold.
    """
    results: dict[str, dict[str, dict[str, float]]] = {}
    for shift in run.config.evaluation.shifts:
        rows, known = run.task.shifted(shift)
        results[shift] = {}
        for name, draws in variants(posterior, run.config).items():
            metrics, _ = evaluate_predictive(run, predict(run, posterior, rows, draws), "test", shift)
            results[shift][name] = metrics if known else {key: metrics[key] for key in WITHOUT_TARGETS}
    return results


def variants(posterior: Posterior, config: Config) -> dict[str, int]:
    """Name what is evaluated, and say by how many draws: posterior and mean (or one member), or the point estimate."""
    return {"posterior": config.evaluation.draws, posterior.single: 0} if posterior.random else {"point": 0}


def predict(run: Run, posterior: Posterior, split: Any, draws: DrawCount) -> Any:
    """Predict this rank's rows of a split, or of another data set: a :class:`Predictive`.

    Where the run has training batches, BatchNorm's statistics are set from them anew for each draw.

    Args:
        split: its name, or a data set.
        draws: posterior draws; zero for the mean weights.
    """
    settings, norm = run.config.evaluation, batch_norm_batches(run)
    return run.task.predict(
        run.module,
        run.evaluation_batches(split),
        posterior,
        draws=draws,
        seed=settings.seed,
        refresh=None if norm is None else lambda: norm,
        autocast=run.autocast,
    )


def validated(run: Run, posterior: Posterior) -> dict[str, Any]:
    """What the validation split says of the posterior as it is saved, by ``evaluation.draws`` draws; all ranks call it.

    Returns:
        ``nll`` in nats per row, ``rows``, ``draws``, ``seed``, ``fingerprint`` of the split; of one class of many also
        ``sets``: by coverage the least probability of a class in a prediction set (LAC,
        :mod:`proxscore.calibration.prediction_sets`), for as many as there are rows enough.
    """
    draws = run.config.evaluation.draws if posterior.random else 0
    predictive = predict(run, posterior, "validation", draws)
    density = predictive.log_density.double()
    density = density[~density.isnan()].to(run.worker.device)
    if run.worker.world > 1:
        density = _of_all_ranks(density)
    density = density.cpu()
    found: dict[str, Any] = {"nll": -density.mean().item() if len(density) else math.nan}
    found |= {"rows": len(density), "draws": draws, "seed": run.config.evaluation.seed}
    found["fingerprint"] = run.task.validation_fingerprint()
    if isinstance(predictive, CategoricalPredictive):
        scores = 1 - density.exp()
        levels = [level for level in SET_COVERAGES if rows_needed(level) <= len(scores)]
        found["sets"] = {f"{level:g}": 1 - threshold(scores, level) for level in levels}
    return found


def draw_statistics(run: Run, posterior: Posterior) -> DrawStatistics | None:
    """Estimate the running statistics of BatchNorm layers under each draw, and the mean; none where they stay as trained."""
    norm, settings = batch_norm_batches(run), run.config.evaluation
    if norm is None:
        return None
    found = []
    for draws in (0, settings.draws) if posterior.random else (0,):
        with drawn(run.module, posterior, draws, settings.seed, lambda: norm, run.autocast) as ready:
            found.append(ready.statistics())
    return DrawStatistics.of(settings.seed, *found)


def batch_norm_batches(run: Run) -> list[Batch] | None:
    """Read the training batches that set BatchNorm's statistics of each draw; none: they stay what training left."""
    if run.data is None or not run.config.evaluation.norm_batches or not _has_batch_norm(run.module):
        return None
    return list(_first_micro_batches(run.data, run.config.evaluation.norm_batches))


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def _first_micro_batches(data: TrainingData | RayTrainingData, count: int) -> Iterator[Batch]:
    for micro_batches, _ in data.first(count):
        yield from micro_batches


def description(settings: MethodSection, task: Task, length: RunLength) -> dict[str, Any]:
    """Describe the posterior that a method left, as it is saved: task, data, method, what it stands for, length and versions."""
    rows = len(task.data.train)
    points = getattr(settings, "points", None)  # of a method that can stand for more data than there are, or fewer
    return {
        "task": task.config.model_dump(mode="json"),
        "data": task.describe(),
        "method": settings.model_dump(mode="json"),
        "temperature": getattr(settings, "temperature", 1.0),
        "effective_data_size": float(rows) if points is None else points(rows),
        "steps": length.total_steps,
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Look up the versions of the packages that a result depends on."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}
