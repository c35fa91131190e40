"""Predict images or series with a saved posterior: a row for each, with its mean, uncertainties, and sets or quantiles.

python jobs/predict.py runs/digits-proximal_score photographs/ --output predictions.parquet
python jobs/predict.py models:/digits@champion images.parquet --output predictions --workers 4
python jobs/predict.py runs:/ID series.csv --output forecasts.parquet --quantiles 0.1 0.5 0.9

INPUT is a folder of images, a CSV file with a column path, Parquet files with a column image (or path), or a long table of
series. OUTPUT is a Parquet file, or a folder of them, also at a URI. The same command goes on where an earlier one was stopped.
A row that cannot be predicted has its reason in the column error. Exit status: 0; 1 no row could be predicted; 2 refused.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Literal

from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.config import MAX_DRAWS, ConfigError, expanded
from proxscore.config.files import check_file_destination, check_folder_destination
from proxscore.terminal import duration

QUANTILES = (0.05, 0.5, 0.95)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("predict", __doc__)
    parser.add_argument("posterior", help="folder of a posterior or a run, runs:/ID, models:/NAME@ALIAS")
    parser.add_argument("input", type=expanded, help="images or series; see above")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. tracking.uri=http://...")
    parser.add_argument("--output", default="predictions.parquet", help="FILE.parquet, folder or URI")
    parser.add_argument(
        "--draws",
        type=parsers.draws,
        metavar="DRAWS",
        help="posterior draws; 0: the mean weights; auto: until predictions have settled (default: as it was judged by)",
    )
    parser.add_argument(
        "--last-layer",
        action="store_true",
        help="draws of the last layer alone: one pass, and surer than the posterior is",
    )
    parser.add_argument("--seed", type=int, help="of the draws (default: as it was judged by)")
    parser.add_argument("--all", action="store_true", help="also the probability of every class")
    parser.add_argument("--quantiles", type=float, nargs="+", default=QUANTILES, metavar="Q", help="of numbers")
    parser.add_argument("--column", metavar="NAME", help="with the images of a table (default: image, or path)")
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="NAME", help="columns of a Parquet table to take along"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes of a Ray cluster; 0: this process (default: all of the cluster that the job runs on, else 0)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what there is to predict and how long it takes, and stop"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="of the network")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return job.run(lambda: _work(options), "predict", interrupted="the same command goes on with what is left")


def _work(options: argparse.Namespace) -> int:
    if isinstance(options.draws, int) and not 0 <= options.draws <= MAX_DRAWS:
        raise ConfigError(
            f"--draws is {options.draws}; it must be zero (mean weights) or positive, at most {MAX_DRAWS}"
        )
    if options.workers is not None and not 0 <= options.workers <= 10_000:
        raise ConfigError(f"--workers is {options.workers}; it must be zero (this process) or positive, at most 10,000")
    single = options.output.lower().endswith(".parquet")
    if single and "://" in options.output:
        raise ConfigError(f"--output {options.output}: at a URI the output is a folder: leave out .parquet")
    if not options.input.exists():
        raise ConfigError(
            f"{options.input}: nothing there: give a folder of images, a CSV or Parquet file, or a table of series"
        )
    if single:
        target = expanded(options.output)
        if target.exists():
            raise ConfigError(f"--output {target}: is there already: remove it, or name another")
        check_file_destination("--output", target)
    elif "://" not in options.output:
        check_folder_destination("--output", expanded(options.output))
    print(f"predict    reading {options.posterior}", flush=True)
    return predict(options, single)


def predict(options: argparse.Namespace, single: bool) -> int:
    """Predict all pieces that have not been."""
    from proxscore.predictor.opening import opened
    from proxscore.serving import batch, pieces
    from proxscore.tracking.located import for_workers, located
    from proxscore.tracking.runs import tracking_uri
    from proxscore.training.ray import connection

    folder = located(options.posterior, options.overrides).absolute()
    predictor = opened(folder, options.device, options.overrides)
    draws, seed = predictor.chosen(None if options.draws == "auto" else options.draws, options.seed)
    if predictor.takes == "series" and (options.draws == "auto" or options.last_layer):
        raise ConfigError("--draws auto and --last-layer are of images: give a number of draws")
    count: int | Literal["auto"] = "auto" if options.draws == "auto" else draws
    for line in predictor.posterior.told():
        print(line)
    source = options.input.absolute()
    if predictor.takes == "series":
        if options.column or options.keep:
            raise ConfigError("--column and --keep are of tables of images: leave them out")
        found = pieces.series_pieces(batch.series_names(predictor, str(source)))
    else:
        found = pieces.image_pieces(source, options.column)
    wanted = batch.Wanted(
        count,
        seed,
        options.all,
        tuple(options.quantiles),
        options.column,
        tuple(options.keep),
        str(source),
        options.last_layer,
    )
    output = f"{expanded(options.output)}.parts" if single else options.output
    output = output if "://" in output else str(Path(output).absolute())
    place, overrides = for_workers(
        options.posterior, folder, options.overrides, tracking_uri(predictor.config.tracking)
    )
    work = batch.Job(place, len(found), wanted, output, options.device, overrides)
    what, total = predictor.takes, sum(piece.count for piece in found)
    if options.dry_run:
        each = batch.seconds_per_row(batch.Worker(work, predictor), found[0])
        print(f"input      {total:,} {what} of {source}, in {len(found):,} pieces; {count} draws, seed {seed}")
        print(
            f"time       {each:.3g} s for one of them in this process, from its first few; all: about {duration(each * total)}"
        )
        if options.workers:
            quicker = duration(each * total / options.workers)
            print(f"           about {quicker} by {options.workers} workers as quick as this process, and their start")
        return 0
    told = {"posterior": options.posterior, "input": list(pieces.fingerprints(source, found))}
    left = batch.begin(work, found, told)
    before = total - sum(piece.count for piece in left)
    held = f", {before:,} of them predicted before" if before else ""
    print(f"input      {total:,} {what} of {source}{held}; {count} draws, seed {seed}", flush=True)
    predictor.close()
    with connection.for_workers(options.workers) as workers:
        done = list(batch.run(work, left, workers, lambda line: print(line, flush=True)))
    failed = sum(each.failed for each in done)
    for reason in [reason for each in done for reason in each.reasons][:5]:
        print(f"failed     {reason}")
    if failed:
        print(f"failed     {failed:,} of {total - before:,} {what} could not be predicted: column error says why")
    if single:
        _joined(Path(output), expanded(options.output), [work.part(piece) for piece in found])
    print(f"written    {options.output}")
    return 1 if failed and failed == total - before else 0


def _joined(parts: Path, target: Path, names: list[str]) -> None:
    """One file of the files of all pieces, which are gone afterwards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from proxscore.storage import replacing

    schema = pa.unify_schemas([pq.read_schema(parts / name) for name in names], promote_options="permissive")
    with replacing(target) as partial, pq.ParquetWriter(partial, schema.remove_metadata()) as writer:
        for name in names:
            table = pq.read_table(parts / name)
            for field in schema:
                if field.name not in table.column_names:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            writer.write_table(table.select(schema.names).cast(schema.remove_metadata()))
    shutil.rmtree(parts)
