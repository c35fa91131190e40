"""The benchmarks of the literature on long horizons, from their official CSV files, with its splits.

Each file has a column ``date`` and a column per series; the files are those that Zhou et al. (2021, "Informer") and Wu
et al. (2021, "Autoformer") hand out and later papers use. As there:

* rows are consecutive steps. The dates give the start and the frequency only; where they jump (Weather does), the
  record counts it (``irregular_steps``), and nothing is filled in.
* ETT: training ends after 12 months of 30 days, validation after 4 more, test after 4 more; later rows are not used.
  The others: int(0.7 N) rows of training, int(0.2 N) of test at the end, the rest between them is validation.
* A window belongs to the part that holds its targets; its past may reach into the part before.
* ``standardise``: each series minus its mean, divided by its standard deviation (that of N, not N - 1), both of the
  training part. Published errors are in these units.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from proxscore.config import ConfigError
from proxscore.forecasting.clocks import Times
from proxscore.forecasting.columns import Columns
from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.places import Marks
from proxscore.forecasting.series import Borders, Series, SeriesData
from proxscore.forecasting.sources.base import MAX_CONTEXT, SeriesSource
from proxscore.forecasting.splits import Split, split_series

_LONG, _WEEKS, _KOOPA = (96, 192, 336, 720), (24, 36, 48, 60), (48, 96, 144, 192)
_DATE = "date"


class RecipeConfig(SeriesSource):
    """A long-horizon benchmark with the splits of its literature."""

    kind: Literal["recipe"] = "recipe"
    name: Literal["ETTh1", "ETTh2", "ETTm1", "ETTm2", "ECL", "Exchange", "Traffic", "Weather", "ILI"]  # of the data set
    path: Path  # the folder with the official CSV file, or one above that has its usual subfolder
    standardise: bool = True  # each series by mean and standard deviation of its training part, as published errors are
    # Steps between the windows of validation and test; 1 in the literature.
    stride: int = Field(1, ge=1, le=MAX_CONTEXT)

    def load(self, frequency: str | None = None) -> SeriesData:
        return load(self)

    def split(self, data: SeriesData, horizon: int, *, context: int = 1) -> list[Split]:
        return split_series(data, horizon, context=context, stride=self.stride)


@dataclass(frozen=True)
class Recipe:
    """What the literature says of a benchmark.

    Attributes:
        file: its official name, in the subfolder that the collection has it in.
        frequency: pandas alias; ``W`` is a week from the first date on.
        season: steps.
        months: training, validation and test in months of 30 days, for ETT; None: 7:1:2.
        horizons: forecast lengths of most papers, and of Koopa (Liu et al., 2023).
    """

    file: str
    frequency: str
    season: int
    months: tuple[int, int, int] | None = None
    horizons: tuple[int, ...] = _LONG
    koopa_horizons: tuple[int, ...] = _KOOPA

    def borders(self, rows: int) -> Borders:
        """The ends of the parts of a file with that many rows."""
        if self.months is not None:
            day = int(pd.Timedelta("1D") / pd.Timedelta(Grid.of(self.frequency).step))
            return Borders(*(int(end) * 30 * day for end in np.cumsum(self.months)))
        return Borders(int(0.7 * rows), rows - int(0.2 * rows), rows)


RECIPES = {
    "ETTh1": Recipe("ETT-small/ETTh1.csv", "h", 24, (12, 4, 4)),
    "ETTh2": Recipe("ETT-small/ETTh2.csv", "h", 24, (12, 4, 4)),
    "ETTm1": Recipe("ETT-small/ETTm1.csv", "15min", 96, (12, 4, 4)),
    "ETTm2": Recipe("ETT-small/ETTm2.csv", "15min", 96, (12, 4, 4)),
    "ECL": Recipe("electricity/electricity.csv", "h", 24),
    "Exchange": Recipe("exchange_rate/exchange_rate.csv", "D", 1),
    "Traffic": Recipe("traffic/traffic.csv", "h", 24),
    "Weather": Recipe("weather/weather.csv", "10min", 144),
    "ILI": Recipe("illness/national_illness.csv", "W", 52, horizons=_WEEKS, koopa_horizons=_WEEKS),
}


def load(config: RecipeConfig) -> SeriesData:
    """A series per column of the official file, in its order, with the literature's borders.

    Raises:
        ConfigError: the file is not there, has too few rows or dates of another frequency, or a value is missing or no
            number. File and row are named.
    """
    recipe = RECIPES[config.name]
    file = _find(config.path, recipe.file, config.name)
    columns = Columns([file], texts=[_DATE])
    if _DATE not in columns.names:
        raise ConfigError(f"{file}: no column {_DATE!r}; it has {', '.join(columns.names[:10])}")
    if len(columns) < 2:
        raise ConfigError(f"{file}: {len(columns)} rows; {config.name} has thousands")
    times = columns.times(_DATE).shown
    grid, irregular = _grid(times, recipe.frequency, file)
    borders = recipe.borders(len(columns))
    if borders.test > len(columns):
        raise ConfigError(f"{file}: {len(columns)} rows; the splits of {config.name} need {borders.test}")
    # From the last date on: forecasts come after it, whatever jumps there are before.
    assert grid.step is not None
    marks = Marks(grid, times[-1] - np.timedelta64((len(times) - 1) * grid.step, "ns"))
    series = []
    for name in columns.names:
        if name != _DATE:
            values = columns.numbers(name)
            missing = np.flatnonzero(np.isnan(values))
            if missing.size:
                raise ConfigError(
                    f"{columns.where(int(missing[0]))}: {name} is missing; the official file has every value"
                )
            scaled = _standardised(values, borders.train) if config.standardise else values
            series.append(Series.plain(name, grid.start(times[0]), scaled, marks))
    return SeriesData(
        tuple(series),
        grid.frequency,
        recipe.season,
        borders=borders,
        details={
            "source": f"recipe {config.name}",
            "files": [str(file)],
            "standardised": config.standardise,
            "irregular_steps": irregular,
        },
    )


def _find(folder: Path, name: str, recipe: str) -> Path:
    root = folder.expanduser().absolute()
    for place in (root / name, root / Path(name).name):
        if place.is_file():
            return place
    raise ConfigError(
        f"task.data.path {root}: neither {name} nor {Path(name).name} is there, the official file of {recipe}"
    )


def _grid(times: Times, frequency: str, file: Path) -> tuple[Grid, int]:
    """The grid from the first date on, and how many steps are of another length."""
    grid = Grid.of(f"W-{pd.Timestamp(times[0]).strftime('%a').upper()}" if frequency == "W" else frequency)
    differences = np.diff(times).astype(np.int64)
    if np.median(differences) != grid.step:
        raise ConfigError(
            f"{file}: its dates are mostly {pd.Timedelta(int(np.median(differences)))} apart, and should be "
            f"{pd.Timedelta(grid.step)} apart"
        )
    return grid, int((differences != grid.step).sum())


def _standardised(values: NDArray[np.float64], train: int) -> NDArray[np.float64]:
    """(N,) values in units of their first ``train`` ones; a column that is constant there is centred only."""
    scale = values[:train].std()
    return (values - values[:train].mean()) / (scale if scale > 0 else 1.0)
