"""Linear autoregression: one ridge regression for all steps ahead and all series, in closed form.

Each series is divided by the standard deviation of its training part. The H steps from an origin on, minus the last value
before it, are regressed, each by weights of its own, on a constant, the last steps, and the steps a season before those that are
forecast, of every season, all of them minus that value: what the level of a series is, which may be another one than in training,
has no effect.

    W = (X'X + p I)^(-1) X'Y,   p by generalised cross-validation (Golub, Heath and Wahba, 1979), one for all steps.

The standard deviation h steps ahead is that of the residuals of training, corrected for the degrees of freedom, times a factor
of each series: the root mean square of its own residuals in units of those, drawn to 1 where it has few.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxscore.forecasting.baselines.baseline import Baseline
from proxscore.forecasting.baselines.history import Forecast, Origins, Values

RECENT = (8, 96)  # the fewest and the most of the last steps; twice the horizon between
ROWS = 20_000  # windows of training at most, drawn at random
PENALTIES = tuple(float(p) for p in 10.0 ** np.arange(-7, 2))  # of p, in units of the number of rows
PRIOR_WINDOWS = 10  # with which a series' own factor is drawn to 1


class Ridge(NamedTuple):
    """Weights (P, H), standard deviations of residuals (H,), and the penalty."""

    weights: Values
    spread: Values
    penalty: float


def ridge(inputs: Values, outputs: Values, penalties: tuple[float, ...] = PENALTIES) -> Ridge:
    """Regress (N, H) on (N, P) by the penalty, in units of N, that generalised cross-validation prefers."""
    count = len(inputs)
    values, vectors = np.linalg.eigh(inputs.T @ inputs / count)
    values = np.maximum(values, 0.0)
    turned = vectors.T @ (inputs.T @ outputs) / count
    total = (outputs**2).sum(0)
    found = []
    for penalty in penalties:
        shrunk = np.where(values > 1e-12 * values[-1], 1 / (values + penalty + 1e-300), 0.0)[:, None]
        weights = shrunk * turned
        losses = np.maximum(
            total - count * ((2 * weights * turned).sum(0) - (values[:, None] * weights**2).sum(0)), 0.0
        )
        free = count - float((values * shrunk[:, 0]).sum())
        if free >= 1:
            found.append((float(losses.sum()) / free**2, penalty, weights, np.sqrt(losses / free)))
    if not found:
        raise ValueError(f"windows of training are too few for {inputs.shape[1]} weights: {count}")
    _, penalty, weights, spread = min(found, key=lambda each: each[0])
    return Ridge(vectors @ weights, spread, penalty)


class LinearAR(Baseline):
    """See the module."""

    title = "linear AR"

    def fit(self) -> None:
        history, numbers = self.history, range(len(self.history))
        self.lags = self._lags()
        trained = [history.training(number, max(history.lengths)) for number in numbers]
        self.scales = [float(part.std()) if len(part) and part.std() > 0 else np.nan for part in trained]
        counts = [len(part) - history.horizon - int(self.lags[0]) + 1 for part in trained]
        usable = [n for n in numbers if counts[n] > 0 and np.isfinite(self.scales[n])]
        share = min(1.0, ROWS / max(sum(counts[n] for n in usable), 1))
        rows = [self._rows(n, trained[n], round(share * counts[n]) or 1) for n in usable]
        if not rows:
            raise ValueError("no series is long enough, and moves, to train on")
        self.found = ridge(np.concatenate([x for x, _ in rows]), np.concatenate([y for _, y in rows]))
        spread = np.maximum(self.found.spread, 1e-12)
        self.factors = np.ones(len(history))
        for number, (inputs, outputs) in zip(usable, rows, strict=True):
            ratios = ((outputs - inputs @ self.found.weights) / spread) ** 2
            self.factors[number] = np.sqrt((ratios.mean(1).sum() + PRIOR_WINDOWS) / (len(ratios) + PRIOR_WINDOWS))

    def forecast(self, number: int, origins: Origins) -> Forecast:
        shape = len(origins), self.history.horizon
        mean, spread = np.full(shape, np.nan), np.full(shape, np.nan)
        fits = origins >= self.lags[0]
        values = self.history.filled(number, self.season) / self.scales[number]
        scaled = _inputs(values, origins[fits], self.lags) @ self.found.weights
        mean[fits] = self.scales[number] * (values[origins[fits] - 1][:, None] + scaled)
        spread[fits] = self.scales[number] * self.factors[number] * self.found.spread
        return mean, spread

    def _lags(self) -> NDArray[np.int64]:
        """Steps back from an origin, the largest first, that half of the series have windows of training for."""
        horizon = self.history.horizon
        most = max(int(np.median(self.history.ends)) - horizon, 1) // 2
        recent = min(int(np.clip(2 * horizon, *RECENT)), most)
        lags = {*range(1, max(recent, 1) + 1)}
        for season in self.history.lengths:
            if season <= most:
                lags |= {*range(max(1, season - horizon + 1), season + 1)}
        return np.array(sorted(lags, reverse=True), dtype=np.int64)

    def _rows(self, number: int, part: Values, count: int) -> tuple[Values, Values]:
        values = part / self.scales[number]
        origins = np.arange(int(self.lags[0]), len(part) - self.history.horizon + 1)
        origins = np.random.default_rng(number).permutation(origins)[:count]  # evenly spaced ones could be all Mondays
        ahead = values[origins[:, None] + np.arange(self.history.horizon)]
        return _inputs(values, origins, self.lags), ahead - values[origins - 1][:, None]


def _inputs(values: Values, origins: Origins, lags: NDArray[np.int64]) -> Values:
    """(N, 1 + L): a constant, and the steps before each origin minus the last of them."""
    steps = values[origins[:, None] - lags] - values[origins - 1][:, None]
    return np.concatenate([np.ones((len(origins), 1)), steps], 1)
