"""Score a saved posterior on a data set and split, with any number of draws.

python jobs/evaluate.py runs/digits/posterior --draws 64
python jobs/evaluate.py runs:/<MLflow run id> --split validation task.data.split_seed=1
python jobs/evaluate.py runs/f/posterior --output scores task.data.kind=idx task.data.path=/data/mnist
python jobs/evaluate.py runs/digits/posterior --diagnose 100
torchrun --nproc-per-node 2 jobs/evaluate.py runs/digits/posterior --draws 64
python jobs/evaluate.py runs/digits/posterior --report --ood noise --ood near:/data/letters
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from proxscore import config as configuration
from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.config import MAX_DRAWS, Config, ConfigError, expanded
from proxscore.config.files import check_folder_destination
from proxscore.terminal import command
from proxscore.terminal.lines import Lines
from proxscore.terminal.tables import shown, table

if TYPE_CHECKING:
    import torch
    from torch import nn

    from proxscore.posterior import Posterior
    from proxscore.posterior.diagnostics import Gaps
    from proxscore.posterior.settled import DrawCount
    from proxscore.tasks import Task
    from proxscore.training.saved import Described


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("evaluate", __doc__)
    parser.add_argument("posterior", help="folder of a saved posterior, or an MLflow run (runs:/<id>)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the task it was trained on")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="whose rows")
    parser.add_argument(
        "--draws",
        type=parsers.draws,
        default=16,
        metavar="DRAWS",
        help="posterior draws; 0: the mean weights; auto: until predictions have settled",
    )
    parser.add_argument(
        "--tolerance", type=float, help="of --draws auto: largest Monte Carlo standard error of a probability (0.01)"
    )
    parser.add_argument(
        "--single-pass",
        action="store_true",
        help="also predict in one pass, by a linearised last layer, and tell how far that is from the draws",
    )
    parser.add_argument(
        "--diagnose",
        type=int,
        default=0,
        metavar="DRAWS",
        help="also tell how far the posterior is from its target, from so many draws: a forward and backward pass over "
        "the training data for each (Pareto k-hat needs 100)",
    )
    parser.add_argument("--output", type=expanded, default=Path("evaluation"), help="folder for metrics and figure")
    report = parser.add_argument_group("the uncertainty report (image classification)")
    report.add_argument(
        "--report", action="store_true", help="write report.html and report.json instead of metrics alone"
    )
    report.add_argument(
        "--ood",
        action="append",
        default=[],
        metavar="[near:|far:]NAME|PATH",
        help="images of none of the classes: digits, noise, photographs, a folder of images, IDX or Parquet files; repeatable",
    )
    report.add_argument("--coverage", type=float, default=0.9, help="of prediction sets")
    report.add_argument(
        "--calibrate",
        choices=("validation", "test"),
        default="validation",
        metavar="SPLIT",
        help="whose rows set temperature and prediction sets: validation or test",
    )
    report.add_argument(
        "--shift-rows", type=int, metavar="ROWS", help="corrupt so many images of the split; default: all"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    return job.run(lambda: _work(options), "evaluate")


def _work(options: argparse.Namespace) -> int:
    draws: DrawCount = options.draws
    if draws == "auto":
        from proxscore.posterior.settled import UntilSettled

        draws = UntilSettled() if options.tolerance is None else UntilSettled(options.tolerance)
        if options.report:
            raise ConfigError("--report takes a number of draws: --draws 64")
    elif options.tolerance is not None:
        raise ConfigError("--tolerance is of --draws auto: add it, or leave --tolerance out")
    elif not 0 <= options.draws <= MAX_DRAWS:
        raise ConfigError(
            f"--draws is {options.draws}; it must be zero (mean weights) or positive, at most {MAX_DRAWS}"
        )
    if options.diagnose and not 2 <= options.diagnose <= MAX_DRAWS:
        right = "at least 2" if options.diagnose < 2 else f"at most {MAX_DRAWS}"
        raise ConfigError(f"--diagnose is {options.diagnose}; it must be {right} draws")
    check_folder_destination("--output", options.output)
    if options.report:
        return report(options)
    if options.ood:
        raise ConfigError("--ood is part of the uncertainty report: add --report")
    return evaluate(
        options.posterior,
        options.overrides,
        options.split,
        draws,
        options.output,
        options.diagnose,
        single_pass=options.single_pass,
    )


def report(asked: argparse.Namespace) -> int:
    """Write the uncertainty report of a posterior."""
    if asked.diagnose:
        raise ConfigError("--diagnose is no part of the report: ask for it without --report")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("--report takes training.workers=N in place of torchrun, for N workers of Ray's")
    Lines()(f"report     reading {asked.posterior}")
    from proxscore.report.job import JSON, PAGE, make
    from proxscore.report.options import Options
    from proxscore.tracking.located import run_id_of
    from proxscore.training.saved import load

    options = Options(
        split=asked.split,
        calibration=asked.calibrate,
        draws=asked.draws,
        coverage=asked.coverage,
        outside=tuple(asked.ood),
        shift_rows=asked.shift_rows,
    )
    options.check()
    saved = load(asked.posterior, asked.overrides)
    # The configuration's default is that of training; a report takes more than this process only if it is told to.
    told = any(override.startswith("training.workers=") for override in asked.overrides)
    workers = saved.config.training.workers if told else 0
    typed = [*shlex.split(command("evaluate")), *asked.arguments]
    with Lines() as show:
        record = make(saved, asked.posterior, options, asked.output, workers=workers, command=typed, show=show)
    for sentence in record["headline"]:
        print(f"{_TONES[sentence['tone']]:<11}{sentence['text']}")
    print(f"record     {asked.output / JSON}")
    print(f"page       {asked.output / PAGE}")
    if (run_id := run_id_of(asked.posterior)) is not None:
        print(f"both are artifacts of MLflow run {run_id}, under report/")
    return 0


_TONES = {"good": "trust", "caution": "care", "bad": "doubt", "plain": "note"}


def evaluate(
    source: str,
    overrides: list[str],
    split: str,
    draws: DrawCount,
    output: Path,
    diagnose: int = 0,
    *,
    single_pass: bool = False,
) -> int:
    Lines()(f"evaluate   reading {source}")
    from proxscore.training.local import torchrun
    from proxscore.training.opened import with_processes
    from proxscore.training.saved import describe

    described = with_processes(describe(source, overrides))
    if torchrun.launched() and diagnose:
        raise ConfigError("--diagnose takes a whole network in one process: leave torchrun out")
    if torchrun.launched() and single_pass:
        raise ConfigError("--single-pass takes a whole network in one process: leave torchrun out")
    with torchrun.process_group(described.config) if torchrun.launched() else nullcontext():
        return _evaluate(described, source, split, draws, output, diagnose, single_pass)


def _evaluate(
    described: Described,
    source: str,
    split: str,
    count: DrawCount,
    output: Path,
    diagnose: int,
    single_pass: bool,
) -> int:
    from proxscore.storage import replacing, write
    from proxscore.training.evaluation import evaluate as score
    from proxscore.training.local import torchrun
    from proxscore.training.opened import build_task, opened
    from proxscore.training.saved import other_draws, seen_in_training

    config, task = described.config, build_task(described)
    draws = count if isinstance(count, int) else "auto"
    run, posterior = opened(described, task, output)
    distances = None
    if diagnose:
        distances = diagnosis(task.build_model(), task, posterior, config, run.worker.device, diagnose)
    metrics, figures = score(run, split, count, posterior, single_pass=single_pass)
    if torchrun.rank() > 0:
        return 0
    output.mkdir(parents=True, exist_ok=True)
    stem = f"{config.task.data.kind}_{split}_{draws}_draws"
    drawn = figures()
    for name, figure in drawn.items():
        with replacing(output / f"{stem}_{name}.png") as partial:
            figure.savefig(partial, dpi=150)
    record = {"posterior": source, "split": split, "draws": draws, "data": task.describe(), "metrics": metrics}
    if distances is not None:
        record["diagnosis"] = {"draws": diagnose, **distances.metrics()}
    if posterior.verdict is not None:
        record["verdict"] = posterior.verdict.as_json()
    write(output / f"{stem}.json", json.dumps(record, indent=2) + "\n")
    for line in [*posterior.told(), *seen_in_training(posterior.description, config, task.describe(), split)]:
        print(line)
    title = f"{config.task.data.kind}, {split} split, {draws} draws"
    shown(title, table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in metrics.items()], left=(0,)))
    for line in [*other_draws(posterior.description, metrics, draws), *_unsettled(metrics, count)]:
        print(line)
    for line in distances.lines() if distances is not None else ():
        print(f"diagnosis  {line}")
    print(f"metrics  {output / stem}.json")
    for name in drawn:
        print(f"figure   {output / stem}_{name}.png")
    if config.task.kind == "vision" and getattr(config.task, "likelihood", None) == "categorical":
        print(f"report   {command('report')} {shlex.quote(source)} --ood noise")
    return 0


def _unsettled(metrics: Mapping[str, float], count: DrawCount) -> list[str]:
    """Say of draws that were taken until predictions had settled that they have not."""
    error = metrics.get("draws/monte_carlo_error")
    if error is None or isinstance(count, (int, str)):
        return []
    bound = count.sd_tolerance if "rmse" in metrics else count.tolerance
    if error <= bound:
        return []
    return [
        f"note       {metrics['draws/most']:g} draws did not settle every row: the largest Monte Carlo error is {error:.3g}, "
        f"the tolerance {bound:g}"
    ]


def diagnosis(
    module: nn.Module, task: Task, posterior: Posterior, config: Config, device: torch.device, draws: int
) -> Gaps:
    """Distances of the posterior from the target that it was trained for.

    Args:
        module: as it was before training; gets the posterior's buffers and mean.
    """
    from proxscore.methods.priors import prior_of
    from proxscore.methods.proximal_score import ProximalScoreConfig
    from proxscore.posterior.diagnostics import gaps
    from proxscore.training.data.batches import evaluation_batches

    section = posterior.description.get("method")
    if not isinstance(section, dict) or section.get("kind") != "proximal_score":
        raise ConfigError("--diagnose: the posterior was not trained by proximal_score: its target is not known")
    method = configuration.validated(ProximalScoreConfig, section, "--diagnose: the posterior's description, method")
    if method.prior.mean == "initial" and getattr(config.task.model, "weights", None) is None:
        raise ConfigError(
            "--diagnose: the prior's mean (method.prior.mean=initial) is the weights that training began with, which are not "
            "saved: name their file by task.model.weights=FILE"
        )
    prior, rows = prior_of(method.prior, module), task.data.train
    return gaps(
        posterior.load_into(module).to(device),
        task.likelihood,
        lambda: evaluation_batches(rows, config.evaluation.batch_size, 0, 1),
        posterior,
        data_size=method.points(len(rows)),
        prior=prior,
        temperature=method.temperature,
        draws=draws,
    )
