"""Forecast what comes after the data, or from every test origin, with a saved posterior of a forecasting network.

python jobs/forecast.py runs/demand/posterior --output forecasts.parquet
python jobs/forecast.py runs:/<MLflow run id> task.data.path=/data/new.parquet --draws 64 --quantiles 0.1 0.5 0.9
python jobs/forecast.py runs/demand/posterior --origins --page forecasts.html

A row per series and step: mean, aleatoric and epistemic standard deviation, the model's own quantiles, calibrated intervals. A
Parquet table whose rows are ordered by series is read and forecast some series at a time; series that cannot be forecast are
listed in a file beside the output. Exit status: 0; 1 some series could not be forecast; 2 refused, one line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.config import MAX_DRAWS, ConfigError, expanded
from proxscore.config.files import check_file_destination
from proxscore.terminal import command
from proxscore.terminal.lines import Lines
from proxscore.terminal.tables import shown, table

if TYPE_CHECKING:
    from proxscore.forecasting.page import FanPage
    from proxscore.forecasting.prediction import SeriesPrediction
    from proxscore.forecasting.predictor import SeriesPredictor
    from proxscore.forecasting.rolling import Rolling

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
LEVEL = 0.9  # of the intervals, where it was calibrated
PAUSE = 10.0  # seconds between two lines of progress
SERIES = 200  # that the page shows
FAILED = 5  # series that are printed with their reason


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("forecast", __doc__)
    parser.add_argument("posterior", help="folder of a posterior or a run, runs:/ID, models:/NAME@ALIAS")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the task it was trained on")
    parser.add_argument("--draws", type=int, help="posterior draws; 0: the mean weights (default: as it was judged by)")
    parser.add_argument("--quantiles", type=float, nargs="+", default=QUANTILES, metavar="Q", help="between 0 and 1")
    parser.add_argument(
        "--levels",
        type=float,
        nargs="+",
        metavar="L",
        help=f"of calibrated intervals, between 0 and 1 (default: {LEVEL:g}, if it was calibrated)",
    )
    parser.add_argument(
        "--origins", action="store_true", help="forecast from every test origin of the data, and print the metrics"
    )
    parser.add_argument("--page", type=expanded, metavar="FILE.html", help="also write a page of fan charts")
    parser.add_argument("--page-series", type=int, default=SERIES, metavar="N", help="series that the page shows")
    parser.add_argument(
        "--output", type=expanded, default=Path("forecasts.parquet"), help="file to write: .parquet or .csv"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return job.run(lambda: _work(options), "forecast")


def _work(options: argparse.Namespace) -> int:
    if options.draws is not None and not 0 <= options.draws <= MAX_DRAWS:
        raise ConfigError(
            f"--draws is {options.draws}; it must be zero (mean weights) or positive, at most {MAX_DRAWS}"
        )
    for name in ("quantiles", "levels"):
        for value in getattr(options, name) or ():
            if not 0 < value < 1:
                raise ConfigError(f"--{name}: {value:g} is not between 0 and 1")
    if not 1 <= options.page_series <= 10_000:
        raise ConfigError(f"--page-series is {options.page_series}; it must be positive, at most 10,000")
    if options.output.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"--output {options.output}: give a name that ends in .parquet or .csv")
    check_file_destination("--output", options.output)
    if options.page is not None:
        if options.page.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"--page {options.page}: give a name that ends in .html")
        check_file_destination("--page", options.page)
    return forecast(options)


def forecast(options: argparse.Namespace) -> int:
    Lines()(f"forecast   reading {options.posterior}")
    from proxscore.predictor.opening import opened
    from proxscore.tracking.located import located

    predictor: Any = opened(located(options.posterior, options.overrides), overrides=options.overrides)
    if predictor.takes != "series":
        kind = predictor.config.task.kind
        raise ConfigError(f"{options.posterior}: a posterior of task.kind={kind}; {command('evaluate')} judges it")
    levels = _levels(predictor, options.levels)
    for line in predictor.posterior.told():
        print(line)
    from proxscore.forecasting.page import FanPage
    from proxscore.forecasting.remarks import gathered
    from proxscore.forecasting.rolling import rolling

    page = None if options.page is None else FanPage(options.page_series)
    rolled, count = None, 0
    failed: list[tuple[str, str]] = []
    if options.origins:
        rolled = rolling(predictor, options.draws)
        parts: Iterator[SeriesPrediction] = iter([rolled.prediction])
    else:
        parts = _ahead(predictor, options.draws, failed)
    last, remarks = None, None
    with _writer(options.output) as write, gathered() as warnings:
        for last in parts:
            write(last.table(options.quantiles, levels))
            remarks = last.remarks if remarks is None else remarks + last.remarks
            count += len(last)
            if page is not None:
                page.add(last)
    assert last is not None
    assert remarks is not None
    notes = [*_notes(predictor, options.levels), *predictor.told(remarks, last.draws), *warnings.lines()]
    for note in notes:
        print(f"note       {note}")
    if rolled is not None:
        cells = [[name, f"{value:.4f}"] for name, value in rolled.metrics.items()]
        shown(f"{count:,} windows from test origins, {last.draws} draws", table(["metric", "value"], cells, left=(0,)))
    if page is not None:
        _write_page(options, page, predictor, notes, rolled, last.draws)
        print(f"page       {options.page}: {len(page.fans):,} of {page.total:,} series")
    what = "origins" if rolled else "series"
    print(f"forecasts  {options.output}: {count:,} {what} x {predictor.section.horizon} steps")
    return _tell_failed(options.output, failed, count)


def _tell_failed(output: Path, failed: Sequence[tuple[str, str]], count: int) -> int:
    """Print the first series that could not be forecast, and write all of them beside the output; the exit status.

    A list of an earlier forecast of the same name is gone if this one has none."""
    import pandas as pd

    from proxscore.storage import write

    beside = output.with_name(f"{output.stem}_failed.csv")
    if not failed:
        beside.unlink(missing_ok=True)
        return 0
    write(beside, pd.DataFrame(failed, columns=["series", "error"]).to_csv(index=False))
    for name, reason in failed[:FAILED]:
        print(f"failed     {name}: {reason}")
    print(f"failed     {len(failed):,} of {len(failed) + count:,} series could not be forecast: {beside} says why")
    return 1


def _levels(predictor: SeriesPredictor, asked: Sequence[float] | None) -> list[float]:
    """Levels of calibrated intervals; those that were asked for must be known."""
    held = predictor.calibration
    if asked is None:
        return [] if held is None or LEVEL not in held.current.levels else [LEVEL]
    if held is None:
        raise ConfigError(
            "--levels: no intervals were calibrated when the posterior was saved (task.conformal.kind=none, or an older version)"
        )
    for level in asked:
        held.current.check(level)
    return list(asked)


def _notes(predictor: SeriesPredictor, asked: Sequence[float] | None) -> list[str]:
    """Say why there are no intervals, or how they were calibrated."""
    held = predictor.calibration
    if held is None:
        return ["no intervals were calibrated when the posterior was saved: quantiles are the model's own"]
    lacking = held.refusal([LEVEL] if asked is None else [])
    return [lacking] if lacking is not None else [f"intervals are calibrated: {held.told}"]


def _ahead(predictor: SeriesPredictor, draws: int | None, failed: list[tuple[str, str]]) -> Iterator[SeriesPrediction]:
    """What comes after all series of the task's data, some series at a time where the table can be read so.

    Args:
        failed: name and reason of each that cannot be forecast are put here; of a table that is read as a whole the first is
            refused.
    """
    from proxscore.forecasting.sources.table import SeriesTableConfig
    from proxscore.forecasting.streaming import SeriesStream

    data, frequency = predictor.section.data, predictor.trained["frequency"]
    size = predictor.config.evaluation.batch_size
    stream = SeriesStream.of(data) if isinstance(data, SeriesTableConfig) else None
    if stream is None or stream.apart is not None:
        if stream is not None:
            print(f"note       {stream.apart}: the table is read as a whole; ordered by series it takes bounded memory")
        yield predictor.predict(data.load(frequency), draws, batch_size=size)
        return
    done, started, told = 0, time.monotonic(), time.monotonic()
    for found in stream.each(frequency, lambda series: predictor.predict(series, draws, batch_size=size), failed):
        yield found
        done += len(found)
        if (now := time.monotonic()) - told > PAUSE:
            rate, told = done / (now - started), now
            left = f"{rate:,.0f} per second · {(stream.series - done - len(failed)) / rate:,.0f} s left"
            print(f"forecast   {done:,}/{stream.series:,} series · {left}", flush=True)


@contextmanager
def _writer(output: Path) -> Iterator[Any]:
    """What writes one table after another, of the columns of the first, to a file that appears whole."""
    from pyarrow import csv, parquet

    from proxscore.storage import replacing

    make: Any = csv.CSVWriter if output.suffix.lower() == ".csv" else parquet.ParquetWriter
    with replacing(output) as partial:
        held: list[tuple[Any, Any]] = []

        def write(rows: Any) -> None:
            if not held:
                held.append((make(partial, rows.schema), rows.schema))
            ((writer, schema),) = held
            writer.write_table(rows.cast(schema))

        try:
            yield write
        finally:
            for writer, _ in held:
                writer.close()


def _write_page(
    options: argparse.Namespace,
    page: FanPage,
    predictor: SeriesPredictor,
    notes: Sequence[str],
    rolled: Rolling | None,
    draws: int,
) -> None:
    from proxscore.storage import write

    told = [line.split(maxsplit=1) for line in predictor.posterior.told()]
    lines = [("bad" if kind == "warning" else "plain", text) for kind, text in told]
    lines += [("plain", note) for note in notes]
    verdict = "" if predictor.verdict is None else f" · {predictor.verdict}"
    network, horizon = predictor.config.task.network, predictor.section.horizon
    about = f"{network}, {draws} draws, {horizon} steps of {predictor.trained['frequency']} ahead{verdict}"
    metrics, by_horizon = (None, None) if rolled is None else (rolled.metrics, rolled.by_horizon)
    write(options.page, page.html(options.posterior, about, lines, metrics, by_horizon))
