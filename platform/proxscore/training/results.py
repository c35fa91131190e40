"""What one method's run leaves: its results, which MLflow gets too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.convergence import Verdict
from proxscore.storage import write
from proxscore.tracking import TrackedRun


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


def record_results(tracked: TrackedRun, results: dict[str, Any], final: Path) -> None:
    """Record the results of a run, as the loop returned them, and what its last checkpoint holds for people."""
    for variant, metrics in results["test"].items():
        prefix = "test" if variant in ("posterior", "point") else f"test_{variant}"
        tracked.metrics({f"{prefix}/{name}": value for name, value in metrics.items()})
    for shift, found in results["shifted"].items():
        for variant, metrics in found.items():
            prefix = shift if variant in ("posterior", "point") else f"{shift}_{variant}"
            tracked.metrics({f"{prefix}/{name}": value for name, value in metrics.items()})
    if "mixture_weights" in results:
        tracked.describe({}, {"mixture.weights": json.dumps(results["mixture_weights"])})
    validated = results.get("validated", {})
    if "nll" in validated:
        tracked.metrics({"validation/posterior_nll": validated["nll"]})
    if (lowest := results.get("validation")) is not None:
        tracked.metrics({"validation/lowest_nll": lowest["nll"], "validation/lowest_epoch": lowest["epoch"]})
    if (verdict := Verdict.of_json(results.get(VERDICT))) is not None:
        record_verdict(tracked, verdict)
    tracked.metrics({"parameters": results["parameters"], "gradient_evaluations": results["evaluations"]})
    tracked.artifacts(final / "figures", "figures")
    tracked.artifacts(final / "posterior", "posterior")
    write(final / "results.json", json.dumps(results, indent=2) + "\n")


def record_verdict(tracked: TrackedRun, verdict: Verdict) -> None:
    """Record what training found of its convergence: tag ``verdict`` (its answer), why, and the numbers behind it."""
    tracked.describe({}, {"verdict": verdict.answer, "verdict.lines": " | ".join(verdict.lines())[:5000]})
    tracked.metrics({f"verdict/{name}": value for name, value in verdict.metrics.items()})
