"""Train a network as a posterior (and its baseline), on this machine or on the cluster that the job runs on.

python jobs/train.py --config jobs/configs/quickstart.yaml training.epochs=20 training.workers=4
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from proxscore import config as configuration
from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.config import Config, expanded
from proxscore.config.files import check_file_destination
from proxscore.storage import write
from proxscore.terminal import command, near
from proxscore.terminal.lines import Lines
from proxscore.terminal.tables import ACRONYMS, shown, table

if TYPE_CHECKING:  # Ray and MLflow take seconds
    from proxscore.posterior.convergence import Verdict
    from proxscore.tasks.baselines import BestBaseline
    from proxscore.training.results import Outcome

    Row = tuple[Outcome, str, dict[str, float]]

MLFLOW = "mlflow:"
POINTS = {"adamw": "AdamW", "sgd": "SGD"}
VARIANTS = {
    "point": "{}",
    "mean": "posterior mean",
    "member": "one member",
    "posterior": "posterior",
}  # from worst to best


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("train", __doc__)
    parser.add_argument("--config", help="YAML file, or mlflow:RUN_ID (of a run or a sweep); without it, defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. training.epochs=3")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="one step in this process, costs and estimates, and stop"
    )
    parser.add_argument("--profile", action="store_true", help="leave a trace of a few steps in MLflow")
    parser.add_argument("--result", type=expanded, metavar="FILE.json", help="write the results there, too")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    killed = "the run is marked KILLED; the same name resumes it from its last checkpoint"
    return job.run(lambda: _work(options), "train", interrupted=killed)


def _work(options: argparse.Namespace) -> int:
    if options.result is not None:
        check_file_destination("--result", options.result)
    if not options.print_config:
        Lines()(f"train      reading {options.config or 'the defaults'}")
    profile = ["training.profile=true"] if options.profile else []
    config = configuration.load(_file(options.config, options.overrides), [*options.overrides, *profile])
    if options.print_config:
        from proxscore.config.commented import dump_commented

        print(dump_commented(config), end="")
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
    with Lines() as show:
        show("train      loading torch, Ray and MLflow")
        from proxscore.training import launch

        config = launch.with_absolute_paths(config)
        outcomes = launch.run(config, show)
    if outcomes:  # torchrun: the first process has them
        _print(config, outcomes)
        if result is not None:
            write(result, json.dumps(_summary(config, outcomes), indent=2) + "\n")
    return 0


def _print(config: Config, outcomes: list[Outcome]) -> None:
    """The tables, what to know of each run, its files, and what to do next."""
    from proxscore.posterior.convergence import KEY as VERDICT
    from proxscore.posterior.convergence import Verdict
    from proxscore.tasks.baselines import BestBaseline
    from proxscore.training import baselines

    rows = [(outcome, variant, metrics) for outcome in outcomes for variant, metrics in outcome.results["test"].items()]
    rows.sort(key=lambda row: (list(VARIANTS).index(row[1].removesuffix("_tempered")), row[1]))
    verdicts = {o.label: Verdict.of_json(o.results.get(VERDICT)) for o in outcomes}
    simple = BestBaseline.of_json(outcomes[-1].results.get(baselines.KEY))
    shown(f"{config.name}: test split", _scores(rows, outcomes[0].headline, verdicts, simple))
    if config.evaluation.shifts:
        meaning = "conf.: mean confidence; sure: confidence of 0.9 or more"
        shown(f"{config.name}: test images as they are and shifted\n{meaning}", _shifted(config, rows))
    print()
    for outcome in outcomes:
        costs = f"{outcome.results['seconds']:.1f} seconds, {outcome.results['evaluations']} gradient evaluations"
        print(f"cost       {POINTS.get(outcome.kind, outcome.kind)}: {costs}")
        if "mixture_weights" in outcome.results:
            print(f"weights    {' '.join(f'{w:.3f}' for w in outcome.results['mixture_weights'])} (stacked mixture)")
        for covered in _covered(outcome.results["test"]):
            print(f"intervals  {covered}")
        if line := _lowest(outcome.results.get("validation")):
            print(f"validation {line}")
        if (found := verdicts[outcome.label]) is not None:
            for line in found.lines():
                print(f"verdict    {line}")
        if line := baselines.line(outcome.results):
            print(f"baseline   {POINTS.get(outcome.kind, outcome.kind)}: {line}")
        for figure in sorted((outcome.folder / "figures").glob("*.png")):
            print(f"figure     {near(figure)}")
        what = "posterior" if "point" not in outcome.results["test"] else "weights"
        print(f"{what:<10} {near(outcome.folder / 'posterior')}")
    for note in () if simple is None else simple.notes:
        print(f"baselines  {note}")
    print("\nWhat to do next:")
    for line in next_steps(config, outcomes[-1].folder / "posterior", outcomes[-1].run_id):
        print(line)


def next_steps(config: Config, posterior: Path, run_id: str) -> list[str]:
    """Commands that make use of a posterior, ready to be pasted; the last one shows its run in MLflow."""
    from proxscore.tracking import browse

    where = shlex.quote(near(posterior))
    commands = {"evaluate": f"{command('evaluate')} {where} --draws 64"}
    if config.task.kind == "vision":
        path = getattr(config.task.data, "path", None)
        images = "IMAGES" if path is None else shlex.quote(near(path))
        hint = "  # IMAGES: a folder, a table (.parquet) or a list of paths (.csv)" if path is None else ""
        commands["report"] = f"{command('report')} {where} --ood noise"
        commands["predict"] = f"{command('predict')} {where} {images} --output predictions.parquet{hint}"
        commands["serve"] = f"{command('serve')} {where}"
    elif config.task.kind == "forecasting":
        commands["forecast"] = f"{command('forecast')} {where} --output forecasts.parquet"
    commands["browse"] = browse(config.tracking, run_id)
    return [f"{name:<10} {text}" for name, text in commands.items()]


def _scores(
    rows: list[Row], columns: tuple[str, ...], verdicts: dict[str, Verdict | None], simple: BestBaseline | None
) -> Table:
    """Metrics of the test split, with what the posterior's verdict is, and below them those of the best baseline."""
    lines = []
    for outcome, variant, metrics in rows:
        values = [f"{metrics[column]:.4f}" if column in metrics else "–" for column in columns]  # it may be undefined
        verdict = verdicts[outcome.label]
        lines.append([_name(outcome, variant), *values, "–" if verdict is None else verdict.answer])
    if simple is not None and simple.test:
        values = [f"{simple.test[column]:.4f}" if column in simple.test else "–" for column in columns]
        lines.append([f"{simple.name} (no training)", *values, "–"])
    header = ["", *(name.upper() if name in ACRONYMS else name for name in columns), "verdict"]
    return table(header, lines, left=(0, len(header) - 1))


def _lowest(validation: dict[str, float] | None) -> str | None:
    """What is to say of a run whose validation NLL was lower before its end."""
    if validation is None or validation["end"] <= validation["nll"] + max(0.01, 0.02 * abs(validation["nll"])):
        return None
    found = f"NLL {validation['nll']:.4f} at epoch {validation['epoch']:g}, {validation['end']:.4f} at the end"
    if validation["stopped"]:
        return f"{found}: judged and kept is the state at epoch {validation['epoch']:g}"
    return f"{found}, which is judged: training.early_stopping=true keeps the better state"


def _covered(tested: dict[str, dict[str, float]]) -> list[str]:
    """How often calibrated intervals of forecasts, at the highest level up to 90%, cover the targets; none: there are none."""
    metrics = tested.get("posterior") or tested.get("point") or {}
    level = next((level for level in (90, 80, 50) if f"calibrated/coverage_{level}" in metrics), None)
    if level is None:
        return []
    own, calibrated = (metrics[f"{prefix}coverage_{level}"] for prefix in ("", "calibrated/"))
    return [f"{level}%: {own:.3f} of the targets are in the model's own, {calibrated:.3f} in calibrated ones"]


def _name(outcome: Outcome, variant: str) -> str:
    name = VARIANTS[variant.removesuffix("_tempered")].format(POINTS.get(outcome.kind, outcome.kind))
    return name + (", tempered" if variant.endswith("_tempered") else "")


def _shifted(config: Config, rows: list[Row]) -> Table:
    """The test images as they are and under shifts: how often a prediction is sure of itself, and wrong."""
    lines = []
    for shift in ("as they are", *config.evaluation.shifts):
        named = False
        for outcome, variant, metrics in rows:
            if shift != "as they are":
                metrics = outcome.results.get("shifted", {}).get(shift, {}).get(variant, {})
            if not metrics:
                continue  # tempered
            wrong = metrics.get("sure_errors", metrics.get("sure"))  # where no label is right, all are wrong
            shown = [metrics.get(key) for key in ("accuracy", "nll", "ece", "confidence", "sure")] + [wrong]
            values = ("–" if v is None else f"{v:.4f}" for v in shown)
            lines.append(["" if named else shift, _name(outcome, variant), *values])
            named = True
    header = ["images", "", "accuracy", "NLL", "ECE", "conf.", "sure", "sure and\nwrong"]
    return table(header, lines, left=(0, 1))


def _summary(config: Config, outcomes: list[Outcome]) -> dict[str, Any]:
    runs = [
        {"label": o.label, "method": o.kind, "mlflow_run_id": o.run_id, "folder": str(o.folder), **o.results}
        for o in outcomes
    ]
    return {"config": config.model_dump(mode="json"), "runs": runs}
