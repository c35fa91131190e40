"""Train a network as a posterior (and its baseline), on this machine or on the cluster that the job runs on.

python jobs/train.py --config jobs/configs/quickstart.yaml training.epochs=20 training.workers=4
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from proxscore import config as configuration
from proxscore import job
from proxscore.config import Config, expanded
from proxscore.config.files import check_file_destination

MLFLOW = "mlflow:"
ACRONYMS = ("nll", "ece", "crps", "mase")
POINTS = {"adamw": "AdamW", "sgd": "SGD"}
VARIANTS = {
    "point": "{}",
    "mean": "posterior mean",
    "member": "one member",
    "posterior": "posterior",
}  # from worst to best


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file, or mlflow:RUN_ID (of a run or a sweep); without it, defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. training.epochs=3")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="one step in this process, costs and estimates, and stop"
    )
    parser.add_argument("--profile", action="store_true", help="leave a trace of a few steps in MLflow")
    parser.add_argument("--result", type=expanded, metavar="FILE.json", help="write the results there, too")
    options = parser.parse_intermixed_args(arguments)
    killed = "the run is marked KILLED; the same name resumes it from its last checkpoint"
    return job.run(lambda: _work(options), "train", interrupted=killed)


def _work(options: argparse.Namespace) -> int:
    if options.result is not None:
        check_file_destination("--result", options.result)
    profile = ["training.profile=true"] if options.profile else []
    config = configuration.load(_file(options.config, options.overrides), [*options.overrides, *profile])
    if options.print_config:
        print(configuration.dump(config), end="")
        return 0
    if options.dry_run:
        from proxscore.training.preflight.dry_run import dry_run

        print(dry_run(config))
        return 0
    return train(config, options.result)


def _file(source: str | None, overrides: list[str]) -> Path | None:
    """The file of ``--config``; that of an MLflow run is downloaded."""
    if source is None or not source.startswith(MLFLOW):
        return None if source is None else Path(source)
    from proxscore.tracking.artifacts import download

    return download(source.removeprefix(MLFLOW), "config.yaml", overrides)


def train(config: Config, result: Path | None) -> int:
    from proxscore.posterior.convergence import KEY as VERDICT
    from proxscore.posterior.convergence import Verdict
    from proxscore.storage import write
    from proxscore.tracking import browse
    from proxscore.training import launch  # here: importing Ray and MLflow takes seconds that --print-config spares

    config = launch.with_absolute_paths(config)
    outcomes = launch.run(config, lambda line: print(line, flush=True))
    if not outcomes:  # torchrun: the first process has them
        return 0
    rows = [(outcome, variant, metrics) for outcome in outcomes for variant, metrics in outcome.results["test"].items()]
    rows.sort(key=lambda row: (list(VARIANTS).index(row[1].removesuffix("_tempered")), row[1]))
    columns, verdicts = outcomes[0].headline, {o.label: Verdict.of_json(o.results.get(VERDICT)) for o in outcomes}
    table = Table(title=f"{config.name}: test split", title_justify="left")
    for column in (
        "",
        *(name.upper() if name in ACRONYMS else name for name in columns),
        "seconds",
        "evaluations",
        "verdict",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for outcome, variant, metrics in rows:
        name = _name(outcome, variant)
        values = [f"{metrics[column]:.4f}" if column in metrics else "–" for column in columns]  # it may be undefined
        verdict = verdicts[outcome.label]
        costs = f"{outcome.results['seconds']:.1f}", str(outcome.results["evaluations"])
        table.add_row(name, *values, *costs, "–" if verdict is None else verdict.answer)
    Console(width=100).print(table)
    if config.evaluation.shifts:
        Console(width=100).print(_shifted(config, rows))
    for outcome in outcomes:
        if "mixture_weights" in outcome.results:
            print(f"weights    {' '.join(f'{w:.3f}' for w in outcome.results['mixture_weights'])} (stacked mixture)")
        if line := _lowest(outcome.results.get("validation")):
            print(f"validation {line}")
        if (found := verdicts[outcome.label]) is not None:
            for line in found.lines():
                print(f"verdict    {line}")
        for figure in sorted((outcome.folder / "figures").glob("*.png")):
            print(f"figure     {figure}")
        print(
            f"posterior  {outcome.folder / 'posterior'}"
            if "point" not in outcome.results["test"]
            else f"weights    {outcome.folder / 'posterior'}"
        )
    print(f"browse     {browse(config.tracking)}")
    if result is not None:
        write(result, json.dumps(_summary(config, outcomes), indent=2) + "\n")
    return 0


def _lowest(validation: dict[str, float] | None) -> str | None:
    """What is to say of a run whose validation NLL was lower before its end."""
    if validation is None or validation["end"] <= validation["nll"] + max(0.01, 0.02 * abs(validation["nll"])):
        return None
    found = f"NLL {validation['nll']:.4f} at epoch {validation['epoch']:g}, {validation['end']:.4f} at the end"
    if validation["stopped"]:
        return f"{found}: judged and kept is the state at epoch {validation['epoch']:g}"
    return f"{found}, which is judged: training.early_stopping=true keeps the better state"


def _name(outcome: Any, variant: str) -> str:
    name = VARIANTS[variant.removesuffix("_tempered")].format(POINTS.get(outcome.kind, outcome.kind))
    return name + (", tempered" if variant.endswith("_tempered") else "")


def _shifted(config: Config, rows: list[tuple[Any, str, dict[str, float]]]) -> Table:
    """The test images as they are and under shifts: how often a prediction is sure of itself, and wrong."""
    table = Table(
        title=f"{config.name}: test images as they are and shifted; sure: confidence of 0.9 or more",
        title_justify="left",
    )
    for column in ("images", "", "accuracy", "NLL", "ECE", "confidence", "sure", "sure and wrong"):
        table.add_column(column, justify="left" if column in ("images", "") else "right")
    for shift in ("as they are", *config.evaluation.shifts):
        for outcome, variant, metrics in rows:
            if shift != "as they are":
                metrics = outcome.results.get("shifted", {}).get(shift, {}).get(variant, {})
            if not metrics:
                continue  # tempered
            wrong = metrics.get("sure_errors", metrics.get("sure"))  # where no label is right, all are wrong
            shown = [metrics.get(key) for key in ("accuracy", "nll", "ece", "confidence", "sure")] + [wrong]
            table.add_row(shift, _name(outcome, variant), *("–" if v is None else f"{v:.4f}" for v in shown))
        table.add_section()
    return table


def _summary(config: Config, outcomes: list[Any]) -> dict[str, Any]:
    runs = [
        {"label": o.label, "method": o.kind, "mlflow_run_id": o.run_id, "folder": str(o.folder), **o.results}
        for o in outcomes
    ]
    return {"config": config.model_dump(mode="json"), "runs": runs}
