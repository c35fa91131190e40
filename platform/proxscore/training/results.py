"""What one method's run leaves: its results, which MLflow gets too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.convergence import Verdict
from proxscore.predictor import logged
from proxscore.storage import write
from proxscore.tasks.baselines import BestBaseline
from proxscore.tracking import TrackedRun
from proxscore.tracking.located import model_of
from proxscore.training import baselines

CHOSEN = "chosen"  # settings that were left to the data


@dataclass(frozen=True)
class Outcome:
    """One method's run after its end: its results, and where they are.

    Attributes:
        label: the run's name.
        kind: of the method.
        run_id: in MLflow.
        results: as the loop returned them.
        folder: holds ``posterior`` and ``figures``.
        headline: metrics of the task that are shown first.
    """

    label: str
    kind: str
    run_id: str
    results: dict[str, Any]
    folder: Path
    headline: tuple[str, ...]


def record_results(tracked: TrackedRun, results: dict[str, Any], final: Path, log_model: bool = True) -> str | None:
    """Record the results of a run, as the loop returned them, and what its last checkpoint holds for people.

    Args:
        log_model: the posterior becomes a model of MLflow's; else its files are artifacts of the run.

    Returns:
        The model's id, if there is one.
    """
    verdict = Verdict.of_json(results.get(VERDICT))
    model_id = None
    if log_model:
        tags = {} if verdict is None else {"verdict": verdict.answer}
        model_id = logged_model(tracked) or logged.log_model(tracked, final / "posterior", tags)
    if model_id is None:
        tracked.artifacts(final / "posterior", "posterior")
    for variant, metrics in results["test"].items():
        prefix = "test" if variant in ("posterior", "point") else f"test_{variant}"
        tracked.metrics({f"{prefix}/{name}": value for name, value in metrics.items()}, model_id)
    for shift, found in results["shifted"].items():
        for variant, metrics in found.items():
            prefix = f"shifted/{shift}" if variant in ("posterior", "point") else f"shifted/{shift}_{variant}"
            tracked.metrics({f"{prefix}/{name}": value for name, value in metrics.items()}, model_id)
    if "fused" in results:  # whether the step was compiled: a run is repeated bit for bit on the same path
        tracked.describe({}, {"step": "compiled" if results["fused"] else "not compiled"})
    if "mixture_weights" in results:
        tracked.describe({}, {"mixture.weights": json.dumps(results["mixture_weights"])})
    validated = results.get("validated", {})
    if "nll" in validated:
        tracked.metrics({"validation/posterior_nll": validated["nll"]}, model_id)
    if (lowest := results.get("validation")) is not None:
        tracked.metrics({"validation/lowest_nll": lowest["nll"], "validation/lowest_epoch": lowest["epoch"]})
    if verdict is not None:
        record_verdict(tracked, verdict)
    if (found := BestBaseline.of_json(results.get(baselines.KEY))) is not None:
        record_baseline(tracked, found, baselines.line(results))
    tracked.metrics({"parameters": results["parameters"], "gradient_evaluations": results["evaluations"]})
    tracked.artifacts(final / "figures", "figures")
    write(final / "results.json", json.dumps(results, indent=2) + "\n")
    return model_id


def logged_model(tracked: TrackedRun) -> str | None:
    """The model that an earlier attempt at this run has logged whole; none: there is none."""
    uri = model_of(tracked.client.get_run(tracked.run_id))
    return None if uri is None else uri.removeprefix("models:/")


def record_baseline(tracked: TrackedRun, found: BestBaseline, line: str | None) -> None:
    """Record the best baseline: tag ``baseline`` (whether the network is behind it, by name), and its metrics."""
    texts = {"baseline": line or found.name, "baseline.notes": " | ".join(found.notes)[:5000]}
    tracked.describe({}, {key: text for key, text in texts.items() if text})
    tracked.metrics({f"baseline/{name}": value for name, value in found.test.items()})


def record_verdict(tracked: TrackedRun, verdict: Verdict) -> None:
    """Record what training found of its convergence: tag ``verdict`` (its answer), why, and the numbers behind it."""
    tracked.describe({}, {"verdict": verdict.answer, "verdict.lines": " | ".join(verdict.lines())[:5000]})
    tracked.metrics({f"verdict/{name}": value for name, value in verdict.metrics.items()})
