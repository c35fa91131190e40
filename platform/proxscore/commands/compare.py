"""Methods x seeds on one task at an equal budget of gradient evaluations; table, curves and MLflow runs.

python jobs/compare.py --config jobs/configs/compare_fashion_mnist.yaml task.data.path=/data/fashion-mnist

Every method runs as it is given and, where learning rates are listed, at the one that validation data prefer (as many
trials for each). Cells run side by side, one CPU (training.cpus_per_worker) or GPU each; the same name goes on where a
comparison ended, and repeats only cells that failed. Exit status: 0 all cells finished; 1 some failed; 2 refused, one
line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.terminal import near
from proxscore.terminal.lines import Lines
from proxscore.terminal.tables import shown, table

if TYPE_CHECKING:
    from proxscore.experiments.comparison.driver import Records
    from proxscore.experiments.comparison.plan import Plan
    from proxscore.experiments.comparison.table import Told

METRICS = 3  # that the printed table has; the file has all


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("compare", __doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file: base, methods, seeds, budget")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted overrides of the file, or of its base: budget=2"
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration, and stop")
    parser.add_argument("--dry-run", action="store_true", help="estimate time, hours and price of all cells, and stop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return job.run(
        lambda: compare(options.config, options.overrides, show_only=options.print_config, dry=options.dry_run),
        "compare",
        interrupted="the comparison is marked KILLED; the same name goes on with its cells",
    )


def compare(path: Path, overrides: list[str], *, show_only: bool = False, dry: bool = False) -> int:
    from proxscore.experiments.comparison.settings import load, written

    if show_only:
        print(written(*load(path, overrides)), end="")
        return 0
    if dry:
        from proxscore.experiments.comparison.plan import plan
        from proxscore.experiments.dry_run import of_comparison

        Lines()(f"compare    reading {path}, the data and the networks")
        print(of_comparison(plan(*load(path, overrides))))
        return 0
    with Lines() as show:
        return _compare(path, overrides, show)


def _compare(path: Path, overrides: list[str], show: Lines) -> int:
    show(f"compare    reading {path}, the data and the networks")
    from proxscore.experiments.comparison import driver, figure, study  # importing Ray and MLflow takes seconds
    from proxscore.experiments.comparison import table as tables
    from proxscore.experiments.comparison.plan import plan
    from proxscore.experiments.comparison.settings import load
    from proxscore.storage import replacing
    from proxscore.tracking.runs import NOTE
    from proxscore.training.exclusive import exclusive

    comparison, source = load(path, overrides)
    planned = plan(comparison, source)
    report, before = planned.folder / "report", driver.kept(planned)
    if before is not None and study.finished(planned):
        print(f"{planned.name} is finished: these are its results; another name begins a new comparison")
        return results(planned, before, tables.write(planned, before, report, show))
    for line in planned.task.told:
        show(line)
    one_job = exclusive(planned.config.training.storage, [planned.name])
    with one_job, driver.connected(planned, show), study.recorded(planned, comparison) as tracked:
        found = driver.run(planned, tracked.run_id, show)
        told = tables.write(planned, found, report, show)
        if (drawn := figure.draw(planned, told.rows)) is not None:
            with replacing(report / "comparison.png") as partial:
                drawn.savefig(partial, dpi=150)
        tracked.artifacts(report, "comparison")
        tracked.describe({}, {NOTE: description(told)[:5000]})
        tracked.metrics({"cells": len(found), "cells_failed": failures(found)})
        if told.best is not None and told.best.name:
            tracked.describe({}, {"baseline": told.best.name})
            tracked.metrics({f"baseline/{name}": value for name, value in told.best.test.items()})
    return results(planned, found, told)


def failures(found: Records) -> int:
    return sum(record["status"] != "finished" for record in found.values())


def first_columns(told: Told) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what fits a screen: methods, the first metrics, whether posteriors are converged."""
    places = [0, *range(2, min(2 + METRICS, len(told.header)))]
    places += [told.header.index("converged")] if "converged" in told.header else []
    return [told.header[place] for place in places], [[row[place] for place in places] for row in told.body]


def description(told: Told) -> str:
    """The text on the page of the comparison's run, in Markdown; cells of a table have no margin there."""
    from proxscore.experiments.tables import markdown

    header, rows = first_columns(told)
    header = [header[0], *(f"&emsp;{name}&emsp;" for name in header[1:])]
    all_columns = "All columns: `comparison/comparison.md` among the artifacts."
    return "\n".join([told.about, "", markdown(header, rows, texts=1), "", all_columns, "", *told.notes])


def results(planned: Plan, found: Records, told: Told) -> int:
    """Print the first columns of the table, what is to say of it, the files, and what shows the runs."""
    from proxscore.experiments.comparison import study
    from proxscore.tracking import browse

    header, rows = first_columns(told)
    shown(f"{planned.name}\n{told.about}", table(header, rows, left=(0,)))
    print("\n".join(["", *told.notes, ""]))
    for file in sorted((planned.folder / "report").iterdir()):
        print(f"{file.suffix[1:]:<10} {near(file)}{' (all columns)' if file.name == 'comparison.md' else ''}")
    print(f"browse     {browse(planned.config.tracking, study.run_of(planned))}")
    if failed := failures(found):
        print(f"error: {failed} of {len(found)} cells failed; name={planned.name} tries them again", file=sys.stderr)
    return 1 if failed else 0
