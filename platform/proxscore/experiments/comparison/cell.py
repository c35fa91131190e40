"""One cell of a comparison: train, predict, evaluate, record; in one process, or on workers that share its network.

All methods are evaluated alike: ``evaluation.draws`` fixed draws (or the members that there are, or the one point estimate),
the metrics of the task, and with ``evaluation.temperature_scaling`` those at the temperature that validation data prefer.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import warnings
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from proxscore import config as configuration
from proxscore import garbage
from proxscore.calibration.temperature import fit_temperature, tempered
from proxscore.config import Config, TrainingConfig
from proxscore.experiments import runner
from proxscore.experiments.comparison import records
from proxscore.experiments.comparison.plan import Cell
from proxscore.posterior import Posterior
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.stacking import stack, wants_stacking
from proxscore.predictor import logged
from proxscore.storage import replacing
from proxscore.tasks import Task
from proxscore.tracking import Recorder, TrackedRun
from proxscore.tracking.runs import PARENT, source_tags
from proxscore.training import evaluation
from proxscore.training.loop.checkpoint import save_posterior
from proxscore.training.loop.observer import forget_peak, peak_memory
from proxscore.training.loop.train import fit_all
from proxscore.training.results import logged_model, record_verdict
from proxscore.training.run_memory import RunMemory
from proxscore.training.worker import Worker

TEMPERED = ("nll", "ece", "brier")  # what is reported at the fitted temperature, too


def run(cell: Cell, parent: str) -> dict[str, Any]:
    """Run a cell from its last checkpoint on, if there is one, unless it is finished.

    Args:
        parent: MLflow's id of the comparison's run.

    Returns:
        Its record, as it is in ``cell.json``; of a cell that failed or diverged, ``status`` and ``reason`` say so.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a checkpoint of one process: it is
    with records.locked(cell.folder):
        record = records.finished(cell)
        if record is None:
            try:
                record = _run(cell, parent)
            except FloatingPointError as error:
                record = failed(cell, str(error), "diverged")
            except Exception as error:  # whatever it is: the other cells go on
                record = failed(cell, " ".join(f"{type(error).__name__}: {error}".split()))
            records.write(cell.folder, record)
            if record["status"] == "finished":
                for left in cell.folder.glob("checkpoint*"):  # of the loop, or of Ray Train, which lists them in a file
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        return record


def failed(cell: Cell, reason: str, status: str = "failed") -> dict[str, Any]:
    """The record of a cell that failed, or diverged."""
    return {
        "status": status,
        "method": cell.method,
        "setting": cell.setting,
        "seed": cell.seed,
        "reason": reason[:500],
    }


def _run(cell: Cell, parent: str) -> dict[str, Any]:
    config = cell.config
    memory = RunMemory(str(cell.folder.parent), cell.folder.name)
    uri = config.tracking.uri
    assert uri is not None
    earlier = memory.read(config, config.method, cell.budget.epochs)
    label = f"{cell.method}, {cell.setting}, seed {cell.seed}"
    tracked = TrackedRun(uri, config.tracking.experiment, label, earlier)
    memory.write(config, config.method, cell.budget.epochs, tracked.run_id)
    with tracked.running():
        tags = {PARENT: parent, "comparison.method": cell.method, "comparison.setting": cell.setting}
        tracked.describe(configuration.flatten(config), tags | source_tags() | {"name": str(config.name)})
        recorder = Recorder(uri, tracked.run_id, label, None, kept=memory.beside("undelivered.json"))
        own = config.model_copy(update={"training": _beside(cell)})
        try:
            results = runner.run(measured, own, cell.folder.name, recorder, {"cell": cell})
        finally:
            recorder.close()
        metrics = results.pop("metrics")
        tracked.metrics({f"test/{name}": value for name, value in metrics.items()})
        tracked.metrics({name: value for name, value in results.items() if isinstance(value, int | float)})
        if (verdict := Verdict.of_json(results[VERDICT])) is not None:
            record_verdict(tracked, verdict)
        if config.tracking.log_model and logged_model(tracked) is None:
            logged.log_model(tracked, cell.folder / "posterior", {})
    return {
        "status": "finished",
        "method": cell.method,
        "setting": cell.setting,
        "seed": cell.seed,
        "run_id": tracked.run_id,
        "metrics": metrics,
        **results,
        "settings": cell.settings(),
    }


def _beside(cell: Cell) -> TrainingConfig:
    """The settings of training, with the storage in which the cell's folder lies and the epochs of its budget."""
    return cell.config.training.model_copy(update={"storage": str(cell.folder.parent), "epochs": cell.budget.epochs})


def measured(config: Config, task: Task, worker: Worker, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate a cell's method, on each of its workers.

    Args:
        settings: ``cell``.

    Returns:
        ``metrics`` on the test split; ``validation_nll`` (nats); ``forward_passes`` per prediction;
        ``gradient_evaluations``; ``seconds`` of training, with what comes at its end; ``seconds_predicting`` the test split;
        ``peak_mb`` (10^6 bytes) of the process at the end of training, or of the GPU: of the worker that holds the most;
        ``host`` and ``process``: where; ``splits``: what the task tells of its rows, with their hashes.

    Raises:
        RuntimeError: it took another number of gradient evaluations than was planned.
    """
    cell: Cell = settings["cell"]
    method, device = config.method, worker.device
    memory = PeakMemory(device)
    trained = fit_all(config, method, cell.budget.epochs, task, worker)
    fitted, posterior, evaluations = trained.fitted, trained.posterior, trained.evaluations
    fit_run = fitted.run
    if evaluations + cell.budget.beside != cell.budget.evaluations:
        raise RuntimeError(
            f"took {evaluations + cell.budget.beside} gradient evaluations, not {cell.budget.evaluations}"
        )
    peak = max(_of_all(memory.bytes(), worker))
    draws = config.evaluation.draws if posterior.random else 0

    def predict(split: str, source: Posterior) -> Any:
        return evaluation.predict(fit_run, source, split, draws)

    if wants_stacking(posterior):
        posterior, _ = stack(posterior, lambda candidate: predict("validation", candidate))
    started = time.perf_counter()
    predictive = predict("test", posterior)
    predicting = time.perf_counter() - started
    validation = predict("validation", posterior)
    metrics, figures = evaluation.evaluate_predictive(fit_run, predictive, "test", f"{cell.method}, seed {cell.seed}")
    more, kept = task.evaluator.compared(_joined(predictive, worker))
    metrics |= more
    if config.evaluation.temperature_scaling:
        temperature = fit_temperature(validation, device)
        scaled, _ = evaluation.evaluate_predictive(fit_run, tempered(predictive, temperature), "test", "tempered")
        metrics |= {f"{name}_tempered": scaled[name] for name in TEMPERED} | {"temperature": temperature}
    posterior.description = evaluation.description(method, task, fitted.length) | posterior.description
    statistics = evaluation.draw_statistics(fit_run, posterior)
    save_posterior(cell.folder / "posterior", posterior, worker.rank, statistics)
    if worker.rank == 0:
        for name, figure in figures().items():
            with replacing(cell.folder / f"{name}.png") as partial:
                figure.savefig(partial, dpi=150)
        records.keep_predictions(cell.folder, kept)
    return {
        "metrics": metrics,
        "validation_nll": evaluation.evaluate_predictive(fit_run, validation, "validation", "")[0]["nll"],
        "forward_passes": len(posterior.indices(draws)) if draws else 1,
        "gradient_evaluations": cell.budget.evaluations,
        "steps": cell.budget.steps,
        "seconds": trained.seconds,
        "seconds_predicting": predicting,
        "peak_mb": peak / 1e6,
        "parameters": sum(parameter.numel() for parameter in fit_run.module.parameters()),
        VERDICT: posterior.description.get(VERDICT),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "host": socket.gethostname(),
        "process": os.getpid(),
        "workers": worker.world,
        "splits": task.describe().get("splits", {}),
    }


def _of_all(value: Any, worker: Worker) -> list[Any]:
    """Return the value of every worker, in the order of their ranks."""
    if worker.world == 1:
        return [value]
    found: list[Any] = [None] * worker.world
    dist.all_gather_object(found, value)
    return found


def _joined(predictive: Any, worker: Worker) -> Any:
    """Join the predictives of all workers, each of its own rows, into one for all rows."""
    return predictive if worker.world == 1 else type(predictive).joined(_of_all(predictive, worker))


class PeakMemory:
    """The most memory that a process holds for one cell, on the GPU if it has one, from now on.

    A process of several cells is counted as if each were its first: what it held before that one, plus the peak less what it
    holds when this one begins.
    """

    _at_first: ClassVar[float | None] = None

    def __init__(self, device: torch.device) -> None:
        garbage.give_back()
        forget_peak(device)
        self._device, self._before = device, peak_memory(device)
        if PeakMemory._at_first is None:
            PeakMemory._at_first = self._before

    def bytes(self) -> float:
        """The peak so far."""
        assert self._at_first is not None
        return self._at_first + peak_memory(self._device) - self._before
