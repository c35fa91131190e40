"""Forecast what comes after the data, with a saved posterior of a forecasting network.

python jobs/forecast.py runs/demand/posterior --output forecasts.parquet
python jobs/forecast.py runs:/<MLflow run id> task.data.path=/data/new.parquet --draws 64 --quantiles 0.1 0.5 0.9

A row per series and step: mean, aleatoric and epistemic standard deviation, quantiles. Exit status: 0; 2 refused, one line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.config import MAX_DRAWS, ConfigError, expanded
from proxscore.config.extras import need
from proxscore.config.files import check_file_destination
from proxscore.terminal import command
from proxscore.terminal.lines import Lines

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("forecast", __doc__)
    parser.add_argument("posterior", help="folder with posterior.safetensors, or an MLflow run (runs:/<id>)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the task it was trained on")
    parser.add_argument("--draws", type=int, default=16, help="posterior draws; 0: the mean weights")
    parser.add_argument("--quantiles", type=float, nargs="+", default=QUANTILES, metavar="Q", help="between 0 and 1")
    parser.add_argument(
        "--output", type=expanded, default=Path("forecasts.parquet"), help="file to write: .parquet or .csv"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return job.run(lambda: _work(options), "forecast")


def _work(options: argparse.Namespace) -> int:
    if not 0 <= options.draws <= MAX_DRAWS:
        raise ConfigError(
            f"--draws is {options.draws}; it must be zero (mean weights) or positive, at most {MAX_DRAWS}"
        )
    for quantile in options.quantiles:
        if not 0 < quantile < 1:
            raise ConfigError(f"--quantiles: {quantile:g} is not between 0 and 1")
    if options.output.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"--output {options.output}: give a name that ends in .parquet or .csv")
    check_file_destination("--output", options.output)
    return forecast(options.posterior, options.overrides, options.draws, options.quantiles, options.output)


def forecast(source: str, overrides: list[str], draws: int, quantiles: list[float], output: Path) -> int:
    Lines()(f"forecast   reading {source}")
    from pyarrow import csv, parquet

    from proxscore.forecasting.task import ForecastingConfig
    from proxscore.storage import replacing
    from proxscore.training.data.batches import evaluation_batches
    from proxscore.training.saved import load
    from proxscore.training.worker import pick_device

    saved = load(source, overrides)
    config = saved.config
    if not isinstance(config.task, ForecastingConfig):
        raise ConfigError(f"{source}: a posterior of task.kind={config.task.kind}; {command('evaluate')} judges it")
    need("forecast", "task.kind=forecasting")
    from proxscore.forecasting.forecasts import Forecaster, ahead, floored, table
    from proxscore.forecasting.predictive import predict

    for line in saved.posterior.told():
        print(line)
    task = Forecaster(config.task, saved.posterior.description["data"])
    windows = ahead(task)
    network = task.build_model()
    module = saved.posterior.load_into(network).to(pick_device(config.training.device))
    if flat := floored(network, windows):
        print(f"scale      {len(flat)} of {len(windows)} contexts do not vary (the first: {flat[0]}): their forecasts")
        print(f"           have the least scale, {task.scale_floor:.4g}")
    predictive = predict(
        module,
        lambda: evaluation_batches(windows, config.evaluation.batch_size, 0, 1),
        saved.posterior,
        draws=draws,
        seed=config.evaluation.seed,
    )
    rows = table(predictive, task.series, quantiles)
    with replacing(output) as partial:
        if output.suffix.lower() == ".csv":
            csv.write_csv(rows, partial)
        else:
            parquet.write_table(rows, partial)
    print(f"forecasts  {output}: {len(task.series.series)} series x {config.task.horizon} steps")
    return 0
