"""Evaluation of a module and its posterior on a split, by all ranks together."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import nn

from proxscore.calibration.temperature import fit_temperature, tempered
from proxscore.config import Config, MethodSection
from proxscore.methods import Method, RunLength
from proxscore.posterior import Posterior
from proxscore.posterior.diagnostics import Losses
from proxscore.tasks import Predictive, Task
from proxscore.training.data.batches import TrainingData, evaluation_batches
from proxscore.training.data.micro_batches import Batch
from proxscore.training.data.streamed import RayTrainingData
from proxscore.training.loop.divergence import judged
from proxscore.training.worker import Worker

PACKAGES = ("proxscore", "torch", "torchvision", "timm", "ray", "mlflow", "torchmetrics", "numpy")


def evaluate(
    module: nn.Module,
    task: Task,
    config: Config,
    context: Worker,
    split: str,
    draws: int,
    *,
    method: Method | None = None,
    posterior: Posterior | None = None,
    data: TrainingData | RayTrainingData | None = None,
) -> tuple[dict[str, float], Callable[[], dict[str, Figure]]]:
    """Metrics and figures of the predictive distribution on a split, over all ranks' rows.

    Rows that are left out as unreadable count in no metric, but, if there are any, as ``skipped_rows``.

    Args:
        split: train, validation or test.
        draws: posterior draws; zero for the mean weights.
        method, posterior: where the draws come from: the optimizer of a module in training, or a loaded posterior.
        data: training batches, to set BatchNorm statistics for each draw from.
    """
    source = posterior or Posterior.of(module, method)
    predictive = predictive_of(source, module, task, config, context, split, draws, data)
    label = f"{draws} draws" if draws and (posterior or method) else "mean weights"
    return judge(predictive, task, config, context, split, label)


def validated(
    module: nn.Module,
    task: Task,
    config: Config,
    context: Worker,
    method: Method,
    data: TrainingData | RayTrainingData | None,
) -> tuple[dict[str, float], Losses | None]:
    """Metrics of the module in training on the validation split, by ``evaluation.validation_draws``.

    Of a method whose convergence is judged, the NLL of the mean weights and of one draw are among them (``nll_mean``,
    ``nll_draw``), and with that of the draws' average they are returned together.
    """
    posterior, draws = Posterior.of(module, method), config.evaluation.validation_draws
    predict = partial(predictive_of, posterior, module, task, config, context, "validation", data=data)
    predictive = predict(draws=draws)
    metrics, _ = judge(predictive, task, config, context, "validation", f"{draws} draws" if draws else "mean weights")
    if not (method.has_verdict and posterior.random and draws):
        return metrics, None
    alone = predictive if draws == 1 else predict(draws=1)
    mean, one, average = (_nll(each, context) for each in (predict(draws=0), alone, predictive))
    return metrics | {"nll_mean": mean, "nll_draw": one}, Losses(mean, one, average)


def _nll(predictive: Predictive, context: Worker) -> float:
    """Nats per row with a target, over all ranks' rows."""
    density = predictive.log_density.double()
    known = ~density.isnan()
    sums = torch.stack([-density[known].sum(), known.double().sum()]).float().to(context.device)
    if context.world > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).item() if sums[1] > 0 else math.nan


def judge(
    predictive: Predictive, task: Task, config: Config, context: Worker, split: str, label: str
) -> tuple[dict[str, float], Callable[[], dict[str, Figure]]]:
    """Metrics and figures of a predictive distribution on a split, over all ranks' rows."""
    title = f"{config.name}: {split} split, {label}"
    values, figures = judged(task, predictive, config.evaluation.bins, context.device, title)
    seen = torch.tensor(float(len(predictive.targets)), device=context.device)
    if context.world > 1:
        dist.all_reduce(seen)
    if skipped := len(getattr(task.data, split)) - round(seen.item()):
        values["skipped_rows"] = float(skipped)
    return values, figures


def tested(
    posterior: Posterior,
    module: nn.Module,
    task: Task,
    config: Config,
    context: Worker,
    data: TrainingData | RayTrainingData | None,
) -> dict[str, tuple[dict[str, float], Callable[[], dict[str, Figure]]]]:
    """Metrics and figures on the test split of every variant: posterior and mean (or one member), or point.

    With ``evaluation.temperature_scaling`` also, as ``<variant>_tempered``, those at the temperature that validation data
    prefer, which is among the metrics. What draws disagree on is not defined for them.
    """
    results = {}
    for name, draws in variants(posterior, config).items():
        predict_on = partial(predictive_of, posterior, module, task, config, context, draws=draws, data=data)
        predictive, label = predict_on(split="test"), f"{draws} draws" if draws else f"{name} weights"
        results[name] = judge(predictive, task, config, context, "test", label)
        if config.evaluation.temperature_scaling:
            temperature = fit_temperature(predict_on(split="validation"), context.device)
            label = f"{label}, temperature {temperature:.2f}"
            metrics, figures = judge(tempered(predictive, temperature), task, config, context, "test", label)
            metrics = {key: v for key, v in metrics.items() if key not in ("expected_entropy", "mutual_information")}
            results[f"{name}_tempered"] = metrics | {"temperature": temperature}, figures
    return results


def shifted(
    posterior: Posterior,
    module: nn.Module,
    task: Task,
    config: Config,
    context: Worker,
    data: TrainingData | RayTrainingData | None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics by shift of ``evaluation.shifts`` and variant; without those that need targets, where these do not hold."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    for shift in config.evaluation.shifts:
        rows, known = task.shifted(shift)
        results[shift] = {}
        for name, draws in variants(posterior, config).items():
            predictive = predictive_of(posterior, module, task, config, context, rows, draws, data)
            metrics, _ = judge(predictive, task, config, context, "test", shift)
            results[shift][name] = metrics if known else {key: metrics[key] for key in WITHOUT_TARGETS}
    return results


#: Metrics that mean something where no target is right.
WITHOUT_TARGETS = ("entropy", "expected_entropy", "mutual_information", "confidence", "sure")


def variants(posterior: Posterior, config: Config) -> dict[str, int]:
    """Draws by what is judged: posterior and mean (or one member), or point."""
    return {"posterior": config.evaluation.draws, posterior.single: 0} if posterior.random else {"point": 0}


def predictive_of(
    posterior: Posterior,
    module: nn.Module,
    task: Task,
    config: Config,
    context: Worker,
    split: Any,
    draws: int,
    data: TrainingData | RayTrainingData | None,
) -> Any:
    """The :class:`Predictive` for this rank's rows of a split, or of another data set; arguments as of :func:`evaluate`."""
    settings = config.evaluation
    rows = getattr(task.data, split) if isinstance(split, str) else split
    norm = None
    if data is not None and settings.norm_batches and _has_batch_norm(module):
        norm = list(_first_micro_batches(data, settings.norm_batches))
    return task.predict(
        module,
        lambda: evaluation_batches(rows, settings.batch_size, context.rank, context.world),
        posterior,
        draws=draws,
        seed=settings.seed,
        refresh=None if norm is None else lambda: norm,
        autocast=torch.bfloat16 if config.training.precision == "bf16" and context.mesh is None else None,
    )


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def _first_micro_batches(data: TrainingData | RayTrainingData, count: int) -> Iterator[Batch]:
    for micro_batches, _ in data.first(count):
        yield from micro_batches


def description(config: Config, method_config: MethodSection, task: Task, horizon: RunLength) -> dict[str, Any]:
    """What a saved posterior says of itself."""
    return {
        "task": task.config.model_dump(mode="json"),
        "data": task.describe(),
        "method": method_config.model_dump(mode="json"),
        "steps": horizon.total_steps,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}
