"""One table of this study's comparisons: data sets and networks below each other, with what was published beside.

    python jobs/studies/finetune/table.py runs/finetune-pets-resnet101 runs/finetune-pets-vit ... [--output finetune]

A row is a method: error (%), NLL, both calibration errors and Brier score on the test split, and cost; mean ± standard deviation
over seeds. Each argument is the folder of a comparison that has ended (its ``report`` is read). Beneath the table stands
what keeps a row from being compared with a published one: another number of images, one split for all seeds, failed cells, and
posteriors that were judged as point estimates, as early stopping chose a state from before their draws.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxscore.config import METHODS, ConfigError
from proxscore.experiments.study import spread
from proxscore.tracking.study import study
from proxscore.vision.sources.torchvision_sets import official_rows

#: By data set: error in %, as the papers have it.
PUBLISHED: dict[str, dict[str, str]] = {
    "Kim, arXiv 2602.05873": {"pets": "7.75", "flowers102": "11.97", "aircraft": "44.20", "dtd": "32.50"}
}
#: Heading, key of comparison.csv, and digits.
COLUMNS = (
    ("NLL", "nll", 3),
    ("ECE", "ece", 3),
    ("ECE, all classes", "ece_all_classes", 5),
    ("Brier", "brier", 3),
    ("evaluations", "gradient_evaluations", 0),
    ("forward passes", "forward_passes", 0),
    ("seconds", "seconds", 0),
)
HEADER = ("data set", "network", "method", "seeds", "error, %", *(heading for heading, _, _ in COLUMNS))


@dataclass(frozen=True)
class Compared:
    """A comparison that has ended.

    Attributes:
        data, network: their names.
        rows: of comparison.csv, by method.
        splits: what the cells told of their rows, by seed.
        points: cells (method, seed) of a method that makes draws, which was judged without any.
    """

    folder: Path
    data: str
    network: str
    rows: dict[str, list[dict[str, str]]]
    splits: dict[int, dict[str, Any]]
    points: list[tuple[str, int]]


def read(folder: Path) -> Compared:
    """Read what a comparison left.

    Raises:
        ConfigError: it has not ended, or is of other data.
    """
    file = folder / "report" / "comparison.csv"
    if not file.is_file():
        raise ConfigError(f"{folder}: holds no report/comparison.csv: give the folder of a comparison that has ended")
    rows: dict[str, list[dict[str, str]]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            rows.setdefault(row["method"], []).append(row)
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/*/cell.json"))]
    cells = [cell for cell in cells if cell["status"] == "finished"]
    names = {(cell["settings"].get("task.data.name"), cell["settings"].get("task.model.name")) for cell in cells}
    data, network = names.pop() if len(names) == 1 else (None, None)
    if data is None or network is None:
        raise ConfigError(f"{folder}: is no comparison on a data set of task.data.kind=torchvision with finished cells")
    points = [(cell["method"], cell["seed"]) for cell in cells if draws(cell) and cell["forward_passes"] == 1]
    return Compared(folder, data, network, rows, {cell["seed"]: cell["splits"] for cell in cells}, points)


def draws(cell: dict[str, Any]) -> bool:
    """Whether a cell's method is one that makes several draws."""
    settings = cell["settings"]
    point = getattr(METHODS.section(settings["method.kind"]), "fixed_weights", False)
    return settings["evaluation.draws"] > 1 and not point


def lines(compared: Compared) -> list[list[str]]:
    """The rows of one data set and network."""
    found = []
    for method, rows in compared.rows.items():
        finished = [row for row in rows if row["status"] == "finished"]
        errors = [100 * (1 - float(row["accuracy"])) for row in finished]
        values = [spread([float(row[key]) for row in finished if row.get(key)], digits) for _, key, digits in COLUMNS]
        seeds = f"{len(finished)}" if len(finished) == len(rows) else f"{len(finished)} of {len(rows)}"
        found.append([compared.data, compared.network, method, seeds, spread(errors, 2), *values])
    return found


def published(data: str) -> list[list[str]]:
    """What papers have of a data set."""
    blank = [""] * len(COLUMNS)
    return [
        [data, "not stated", source, "", errors[data], *blank] for source, errors in PUBLISHED.items() if data in errors
    ]


def warnings(compared: Compared) -> list[str]:
    """Why the rows of a comparison are not to be compared with published ones, a line each."""
    where = f"{compared.data}, {compared.network}"
    splits = [*compared.splits.values()]
    counts = splits[0]["counts"]
    found, official = (counts["train"] + counts["validation"], counts["test"]), official_rows(compared.data)
    notes = []
    if found != official:
        notes.append(
            f"{where}: {found[0]:,} images of training and validation and {found[1]:,} of the test; the official data set has "
            f"{official[0]:,} and {official[1]:,}"
        )
    if len(splits) > 1 and len({split["sha256"]["train"] for split in splits}) == 1:
        notes.append(f"{where}: all seeds had the same training images: split_by_seed was false")
    notes += [f"{where}, {method}, seed {seed}: judged as a point estimate" for method, seed in compared.points]
    for method, rows in compared.rows.items():
        notes += [f"{where}, {method}, seed {r['seed']}: {r['status']}" for r in rows if r["status"] != "finished"]
    return notes


def gather(folders: Sequence[Path]) -> tuple[list[list[str]], list[str]]:
    """Rows and notes of all comparisons, by data set.

    Raises:
        ConfigError: a folder cannot be read, or two have the same method on the same data and network.
    """
    compared = [read(folder) for folder in folders]
    seen: dict[tuple[str, str, str], Path] = {}
    for one in compared:
        for method in one.rows:
            if (other := seen.setdefault((one.data, one.network, method), one.folder)) != one.folder:
                raise ConfigError(f"{one.folder} and {other} both have {method!r} on {one.data} with {one.network}")
    table, notes = [], []
    for data in dict.fromkeys(one.data for one in compared):
        own = [one for one in compared if one.data == data]
        table += [line for one in own for line in lines(one)] + published(data)
        notes += [note for one in own for note in warnings(one)]
    return table, notes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, help="folders of comparisons: training.storage/name")
    parser.add_argument("--output", type=Path, default=Path("finetune"), help="folder of the table")
    options = parser.parse_args(arguments)
    try:
        table, notes = gather(options.comparisons)
        with study("finetune", {"comparisons": [str(path) for path in options.comparisons]}, options.output) as record:
            record.table("finetune", HEADER, table)
            if notes:
                record.table("not_comparable", ["not comparable with published results"], [[note] for note in notes])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
