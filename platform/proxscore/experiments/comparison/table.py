"""What a comparison found: a CSV with every cell, and a Markdown table with mean ± standard error over the seeds."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from proxscore.experiments.comparison.driver import Records, best
from proxscore.experiments.comparison.plan import AS_GIVEN, Contender, Plan
from proxscore.experiments.tables import NONE, average
from proxscore.experiments.tables import markdown as tabular
from proxscore.posterior.convergence import COLD, KEY, Verdict
from proxscore.storage import replacing
from proxscore.storage import write as write_file
from proxscore.tasks.baselines import BestBaseline
from proxscore.training.baselines import Beside

#: Heading, key of a cell's numbers, and digits, of what is averaged beside the task's metrics.
COSTS = [
    ("forward passes", "forward_passes", 0),
    ("gradient evaluations", "gradient_evaluations", 0),
    ("seconds", "seconds", 1),
    ("x AdamW", "relative_seconds", 2),
    ("peak MB", "peak_mb", 0),
]

BY_SEED = ", each with a split of the data of its own"
POINT = "the state that was judged has nothing to draw from yet, and was judged as a point estimate"


@dataclass(frozen=True)
class Row:
    """A method at one setting.

    Attributes:
        label: with ``(tuned)`` where validation data chose the learning rate.
        setting: as of its cells; none where no trial succeeded.
        records: by seed, of the cells that were finished.
        missing: why others are missing, by seed.
    """

    contender: Contender
    label: str
    setting: str | None
    records: dict[int, dict[str, Any]]
    missing: dict[int, str]

    @property
    def verdicts(self) -> dict[int, Verdict]:
        """By seed, what training found of its convergence, of those methods that tell."""
        found = {seed: Verdict.of_json(record.get(KEY)) for seed, record in self.records.items()}
        return {seed: verdict for seed, verdict in found.items() if verdict is not None}

    def numbers(self, key: str) -> list[float]:
        """A number of every finished cell that has it."""
        return [record[key] for record in self.records.values() if key in record]


def rows(plan: Plan, found: Records) -> list[Row]:
    """Two for each method that is tuned: as it is given, and tuned.

    The numbers of a cell are those of its record, flat, and ``relative_seconds``: over the mean of AdamW's as it is given.
    """
    made = []
    for contender in plan.contenders:
        settings = {contender.name: AS_GIVEN} | (
            {f"{contender.name} (tuned)": best(plan, contender, found)} if contender.trials else {}
        )
        for label, setting in settings.items():
            ended = {seed: found.get((contender.name, setting or "", seed), {}) for seed in plan.seeds}
            made.append(
                Row(
                    contender,
                    label,
                    setting,
                    {seed: record | record["metrics"] for seed, record in ended.items() if "metrics" in record},
                    {seed: r.get("reason", "no trial succeeded") for seed, r in ended.items() if "metrics" not in r},
                )
            )
    adamw = [row for row in made if row.contender.configs[AS_GIVEN].method.kind == "adamw"]
    if adamw and (seconds := adamw[0].numbers("seconds")):
        for record in (record for row in made for record in row.records.values()):
            record["relative_seconds"] = record["seconds"] / statistics.mean(seconds)
    return made


def baselines(plan: Plan) -> dict[str, dict[str, float]]:
    """Metrics on the test split of what the task says any method must beat."""
    evaluated = {}
    try:
        predictives = plan.task.evaluator.baselines()
    except Exception:  # the line of :func:`beside` says why; the methods' results stand without them
        return {}
    for name, predictive in predictives.items():
        metrics, _ = plan.task.evaluator.evaluate(predictive, plan.config.evaluation.bins, torch.device("cpu"), name)
        evaluated[name] = metrics | plan.task.evaluator.compared(predictive)[0]
    return evaluated


class Told(NamedTuple):
    """A comparison in words and numbers.

    Attributes:
        rows: of its methods.
        about: what was compared.
        header: of the whole table, whose cells are ``body``: method, setting, the task's metrics, costs, convergence.
        notes: what is missing, who is behind a method that needs no training, whose posteriors are not converged, and how
            methods were tuned.
        best: of the methods that need no training; none: the task has none.
    """

    rows: list[Row]
    about: str
    header: list[str]
    body: list[list[str]]
    notes: list[str]
    best: BestBaseline | None = None


def markdown(plan: Plan, told: Told) -> str:
    """The table, and below it what is missing and what was tuned."""
    table = tabular(told.header, told.body, texts=2)
    return "\n".join([f"# {plan.name}", "", told.about, "", table, "", *told.notes]) + "\n"


def about(plan: Plan) -> str:
    """What was compared, in a sentence."""
    return (
        f"Test split, mean ± standard error over {len(plan.seeds)} seed(s){BY_SEED if plan.split_by_seed else ''}; "
        f"{plan.evaluations} gradient evaluations of {plan.config.training.batch_size} rows for every method."
    )


def cells_of(
    plan: Plan, table: Sequence[Row], below: Mapping[str, dict[str, float]]
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table.

    Args:
        below: metrics of what any method must beat, by name.
    """
    columns = [
        column for column in (*plan.task.evaluator.columns, *COSTS) if any(row.numbers(column[1]) for row in table)
    ]
    judged = any(row.verdicts for row in table)
    header = ["method", "setting", *(heading for heading, _, _ in columns), *(["converged"] if judged else [])]
    body = []
    for row in table:
        label = row.label if not row.missing else f"{row.label}, {len(row.records)} of {len(plan.seeds)} seeds"
        cells = [average(row.numbers(key), digits) for _, key, digits in columns]
        body.append([label, setting(row), *cells, *([converged(row)] if judged else [])])
    for name, metrics in below.items():
        cells = [average([metrics[key]] if key in metrics else [], digits) for _, key, digits in columns]
        body.append([name, NONE, *cells, *([NONE] if judged else [])])
    return header, body


def beside(plan: Plan, show: Callable[[str], None]) -> BestBaseline | None:
    """The best of what needs no training; what fails there costs no comparison."""
    return Beside(plan.task, show).best


def notes_of(plan: Plan, table: Sequence[Row], best: BestBaseline | None = None) -> list[str]:
    """What is missing, who is behind a method that needs no training, whose posteriors are not converged, and how methods
    were tuned."""
    notes = [f"* {row.label}, seed {seed}: missing: {why}" for row in table for seed, why in row.missing.items()]
    if best is not None:
        for row in table:
            crps = row.numbers("crps")
            if crps and (line := best.beside({"crps": statistics.mean(crps)})):
                notes.append(f"* {row.label}: {line}.")
        notes += [f"* Baselines: {note}." for note in best.notes]
    for row in table:
        notes += [
            f"* {row.label}, seed {seed}: {found.warning}." for seed, found in row.verdicts.items() if not found.sound
        ]
        notes += [f"* {row.label}, seed {seed}: {POINT}." for seed in without_draws(row, plan.config.evaluation.draws)]
        scales = {found.scale + (f": {COLD}" if found.cold else "") for found in row.verdicts.values()}
        notes += [f"* {row.label}: {scale}." for scale in sorted(scales)]
    if any(row.contender.trials for row in table):
        (count,) = {len(row.contender.trials) for row in table}
        notes.append(f"* Tuned: the best of {count} learning rates by validation NLL, seed {plan.seeds[0]}.")
    notes.append(
        "* Forward passes: for one prediction. Seconds: of training, on one machine's share each; peak MB: of the whole "
        "process at the end of training (on a GPU, of its memory)."
    )
    return notes


def converged(row: Row) -> str:
    """Tell how many of a row's runs are sound, of those that have a verdict."""
    return f"{sum(found.sound for found in row.verdicts.values())} of {len(row.verdicts)}" if row.verdicts else NONE


def without_draws(row: Row, draws: int) -> list[int]:
    """The seeds of a row whose method makes draws, and whose judged state has none: one from before they were collected."""
    if draws == 1 or row.contender.configs[AS_GIVEN].method.fixed_weights:
        return []
    return [seed for seed, record in row.records.items() if record.get("forward_passes") == 1]


def setting(row: Row) -> str:
    """A row's learning rate, as far as the table tells it."""
    if row.setting is None:
        return NONE
    if row.setting != AS_GIVEN or not row.contender.trials:
        return row.setting
    given = [value for value, name in row.contender.trials.items() if name == AS_GIVEN]
    return f"{AS_GIVEN}, {row.contender.key}={given[0]:g}" if given else AS_GIVEN


def write(plan: Plan, found: Records, folder: Path, show: Callable[[str], None] = lambda line: None) -> Told:
    """Write ``comparison.md``, ``comparison.csv`` (a row per method, setting and seed) and ``trials.csv``.

    Args:
        show: takes a line before methods that need no training are judged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = beside(plan, show)
    table, below = rows(plan, found), baselines(plan)
    told = Told(table, about(plan), *cells_of(plan, table, below), notes_of(plan, table, best), best)
    write_file(folder / "comparison.md", markdown(plan, told))
    keys = list(dict.fromkeys(name for row in table for record in row.records.values() for name in numbers(record)))
    with replacing(folder / "comparison.csv") as partial, partial.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["method", "setting", "seed", "status", *keys, "verdict", "mlflow_run_id"])
        for row in table:
            for seed in plan.seeds:
                record = row.records.get(seed, {})
                status = "finished" if record else f"missing: {row.missing[seed]}"
                values = [record.get(name, "") for name in keys]
                answer = row.verdicts[seed].answer if seed in row.verdicts else ""
                out.writerow([row.label, row.setting or "", seed, status, *values, answer, record.get("run_id", "")])
        for name, metrics in below.items():
            out.writerow([name, "", "", "no training", *(metrics.get(key, "") for key in keys), "", ""])
    with replacing(folder / "trials.csv") as partial, partial.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["method", "key", "value", "seed", "validation_nll"])
        for contender in plan.contenders:
            for value, name in contender.trials.items():
                record = found.get((contender.name, name, plan.seeds[0]), {})
                out.writerow([contender.name, contender.key, value, plan.seeds[0], record.get("validation_nll", "")])
    return told


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Select the entries of a record that are numbers."""
    return {k: v for k, v in record.items() if isinstance(v, int | float) and k not in ("seed",)}
