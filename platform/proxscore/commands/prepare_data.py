"""Make one table of Parquet shards of labelled images: what jobs/train.py reads by task.data.kind=parquet, and ``datasets`` too.

python jobs/prepare_data.py photos table --validation-fraction 0.1 --test-fraction 0.2
python jobs/prepare_data.py labels.csv table --size 256 --workers 8
python jobs/prepare_data.py /data/mnist table

SOURCE is a folder per class, or train, val and test with a folder per class in each; a folder of IDX files; a CSV file with
columns path, label and, if you like, split; a NumPy archive (.npz); or a Parquet table. OUTPUT is a new or an empty folder, which
appears whole: shards, dataset.json and contact_sheet.png. Exit status: 0; 2 refused, one line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.config import MAX_SEED, ConfigError, expanded
from proxscore.terminal import command
from proxscore.terminal.lines import Lines

MOST_WORKERS = 8  # by default


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("prepare-data", __doc__)
    parser.add_argument("source", type=expanded, help="folder, .csv, .npz or .parquet")
    parser.add_argument("output", type=expanded, help="a new or an empty folder")
    for split in ("validation", "test"):
        parser.add_argument(
            f"--{split}-fraction", type=float, metavar="F", help=f"draw a {split} split, stratified by class"
        )
    parser.add_argument("--seed", type=int, default=0, help="of the splits and of the order of rows")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="make larger images smaller: their shorter side; JPEG, quality 95"
    )
    parser.add_argument("--rows-per-shard", type=int, default=5000, metavar="N", help="of a file, at most")
    parser.add_argument("--workers", type=int, help="processes; by default one per core, at most eight")
    parser.add_argument("--image-column", default="image", help="of a Parquet table")
    parser.add_argument("--label-column", default="label", help="of a Parquet table")
    parser.add_argument("--numbers", action="store_true", help="labels are numbers to tell of an image, and no classes")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return job.run(lambda: _work(options), "prepare_data")


def _work(options: argparse.Namespace) -> int:
    Lines()(f"prepare    reading {options.source}")
    from proxscore.vision.preparation.preparing import Plan, prepare

    named = {"validation": options.validation_fraction, "test": options.test_fraction}
    fractions = {split: fraction for split, fraction in named.items() if fraction is not None}
    for split, fraction in fractions.items():
        if not 0 < fraction < 1:
            raise ConfigError(f"--{split}-fraction is {fraction:g}; it must be between 0 and 1")
    if sum(fractions.values()) >= 1:
        raise ConfigError("--validation-fraction and --test-fraction leave no images to train on; use smaller ones")
    workers = min(os.cpu_count() or 1, MOST_WORKERS) if options.workers is None else options.workers
    for option, value, most in (
        ("--size", options.size, 16_384),
        ("--rows-per-shard", options.rows_per_shard, 10_000_000),
        ("--workers", workers, 1000),
    ):
        if value is not None and not 1 <= value <= most:
            raise ConfigError(f"{option} is {value}; it must be from 1 to {most}")
    if not 0 <= options.seed <= MAX_SEED:
        raise ConfigError(f"--seed is {options.seed}; it must be from 0 to {MAX_SEED}")
    plan = Plan(
        fractions,
        options.seed,
        options.size,
        options.rows_per_shard,
        workers,
        options.image_column,
        options.label_column,
        options.numbers,
    )
    for line in told(prepare(options.source, options.output, plan), options.output):
        print(line)
    return 0


def told(summary: dict[str, Any], output: Path) -> list[str]:
    """What a user has to know of a data set that was prepared."""
    classes, rows, same = summary["classes"], summary["rows"], summary["duplicates"]
    shown = ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
    lines = [f"images     {', '.join(f'{split} {count}' for split, count in rows.items())}"]
    if summary["numbers"]:
        spread = summary["counts"]["train"]
        ranges = ", ".join(f"{name} {spread[name]['least']:g} to {spread[name]['largest']:g}" for name in classes[:10])
        lines.append(f"numbers    {ranges}")
    else:
        lines.append(f"classes    {len(classes)}: {shown}{', several per image' if summary['multi_label'] else ''}")
    for split, counts in summary["counts"].items():
        if none := [name for name, count in counts.items() if not count]:
            lines.append(f"warning    no {split} image of {', '.join(none[:10])}{', ...' if len(none) > 10 else ''}")
    if bad := summary["unreadable"]["count"]:
        first = summary["unreadable"]["images"][0]
        lines.append(
            f"warning    images that cannot be read, left out: {bad}; the first: {first['image']}: {first['reason']}"
        )
    if twice := sum(same["within_splits"].values()):
        lines.append(f"duplicates images that show what another one of their split shows: {twice}")
    if across := same["pictures_in_several_splits"]:
        lines.append(f"warning    pictures in more than one split: {across}; scores on them are too good")
    if conflicting := same["pictures_with_different_labels"]:
        lines.append(f"warning    pictures that are there with different labels: {conflicting}")
    lines.append(f"summary    {output / 'dataset.json'}")
    lines.append(f"look at    {output / 'contact_sheet.png'}")
    where = shlex.quote(f"task.data.path={output}")
    likelihood = " task.likelihood=gaussian" if summary["numbers"] else ""
    likelihood = " task.likelihood=multi_label" if summary["multi_label"] else likelihood
    lines.append(f"train      {command('train')} task.data.kind=parquet {where}{likelihood}")
    return lines
