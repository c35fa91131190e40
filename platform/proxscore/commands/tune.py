"""Search settings of a training job on this machine or a cluster: every trial is a Ray Train run of its own.

python jobs/tune.py --config jobs/configs/quickstart.yaml tune.trials=12 tune.time_limit=15m

The file is that of a training job; its section ``tune`` (space, search, budgets) may be left out: each task has a default
space. The same name goes on where a sweep ended, also with more trials. The best settings are repeated from other seeds, the
winner is tested once, and its configuration is left ready for jobs/train.py. Exit status: 0 there is a winner; 1 no trial
finished; 2 refused, one line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.terminal import command
from proxscore.terminal.lines import Lines
from proxscore.terminal.tables import shown, table


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("tune", __doc__)
    parser.add_argument("--config", type=Path, help="YAML file of a training job, with a section tune or without")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. tune.trials=32")
    parser.add_argument("--print-config", action="store_true", help="print configuration and search space, and stop")
    parser.add_argument("--dry-run", action="store_true", help="estimate time, hours and price of all trials, and stop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return job.run(
        lambda: tune(options.config, options.overrides, show_only=options.print_config, dry=options.dry_run),
        "tune",
        interrupted="the sweep is marked KILLED; the same name goes on with its trials",
    )


def tune(path: Path | None, overrides: list[str], *, show_only: bool, dry: bool = False) -> int:
    if not show_only:
        Lines()(f"tune       reading {path or 'the defaults'}, the data and the network")
    from proxscore.experiments.sweep import job as sweep  # here: importing Ray and MLflow takes seconds
    from proxscore.experiments.sweep import report, settings
    from proxscore.experiments.sweep.plan import plan
    from proxscore.tracking import browse

    planned = plan(*settings.load(path, overrides))
    if show_only:
        print(settings.written(planned.config, planned.tune, planned.space), end="")
        return 0
    if dry:
        from proxscore.experiments.dry_run import of_sweep

        print(of_sweep(planned))
        return 0
    try:
        with Lines() as show:
            for chosen in planned.task.told:
                show(chosen)
            found = sweep.run(planned, show)
    except sweep.NothingFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    header, rows = report.leaderboard(planned, found.candidates)
    shown(f"{planned.config.name}: leaderboard, validation split", table(header, rows, left=(0, len(header) - 1)))
    for name in planned.task.evaluator.headline:
        if name in found.test:
            print(f"test       {name} {report.spread(found.test[name])} ({found.candidates[0].label})")
    if found.baseline is not None:
        if line := found.baseline.beside(sweep.means(found.test)):
            print(f"baseline   {line} ({found.candidates[0].label})")
        for note in found.baseline.notes:
            print(f"baselines  {note}")
    print(f"winner     {found.config}")
    print(f"reproduce  {command('train')} --config mlflow:{found.run_id}")
    print(f"browse     {browse(planned.config.tracking, found.run_id)}")
    return 0
