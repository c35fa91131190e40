"""Random walks whose errors have a size that changes: exponentially weighted, and GARCH(1,1).

With differences d_t = y_t - y_(t-1), s^2 their mean square in training, and v_t the variance of d_t given what came before:

    EWMA    v_(t+1) = lambda v_t + (1 - lambda) d_t^2                         (RiskMetrics, 1996)
    GARCH   v_(t+1) = s^2 (1 - a - b) + a d_t^2 + b v_t,  a + b < 1           (Bollerslev, 1986, with variance targeting)

Means are the last value. The variance h steps ahead is the sum of those of h differences: h v under EWMA; under GARCH the
k-th of them is s^2 + (a + b)^(k-1) (v - s^2). lambda, or a and b, are those of a grid with the greatest Gaussian
likelihood of the differences in training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from proxscore.forecasting.baselines.baseline import Baseline
from proxscore.forecasting.baselines.history import Forecast, Origins, Values

LAMBDAS = (0.8, 0.9, 0.94, 0.97, 0.99, 0.995)
ALPHAS = np.array([0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
BETAS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97)
PERSISTENCE = 0.995  # the largest a + b
FEWEST = 10  # differences of training; fewer do not tell how their size changes
_FLOOR = 1e-6  # of a variance, in units of s^2: differences may be zero for long


def ewma(squares: Values, decay: float, start: float) -> Values:
    """(T,) squared differences to (T,) variances of the differences that come after each."""
    return np.asarray(lfilter([1 - decay], [1, -decay], squares, zi=[decay * start])[0], np.float64)


def garch(squares: Values, alpha: float, beta: float, level: float) -> Values:
    """(T,) squared differences to (T,) variances of the differences that come after each; the first one's is the level."""
    return level + alpha * np.asarray(lfilter([1.0], [1.0, -beta], squares - level), np.float64)


class EWMA(Baseline):
    """See the module."""

    title = "random walk, EWMA"

    def fit(self) -> None:
        self.parameters: list[tuple[float, ...]] = []
        for number in range(len(self.history)):
            squares = np.diff(self.history.training(number, self.season)) ** 2
            level = float(squares.mean()) if len(squares) >= FEWEST else 0.0
            if not level > 0:
                self.parameters.append(())
                continue
            losses = [_loss(ewma(squares, decay, level)[None], squares, level)[0] for decay in LAMBDAS]
            self.parameters.append((LAMBDAS[int(np.argmin(losses))], level))

    def forecast(self, number: int, origins: Origins) -> Forecast:
        values = self.history.filled(number, self.season)
        mean = np.repeat(values[origins - 1][:, None], self.history.horizon, 1)
        if not self.parameters[number]:
            return mean, np.full_like(mean, np.nan)
        decay, level = self.parameters[number]
        variance = np.concatenate([[level], ewma(np.diff(values) ** 2, decay, level)])[origins - 1]
        return mean, np.sqrt(np.maximum(variance, _FLOOR * level)[:, None] * np.arange(1, self.history.horizon + 1))


class GARCH(Baseline):
    """See the module."""

    title = "random walk, GARCH"

    def fit(self) -> None:
        self.parameters: list[tuple[float, ...]] = []
        for number in range(len(self.history)):
            squares = np.diff(self.history.training(number, self.season)) ** 2
            level = float(squares.mean()) if len(squares) >= FEWEST else 0.0
            if not level > 0:
                self.parameters.append(())
                continue
            best = (np.inf, 0.0, 0.0)
            for beta in BETAS:
                alphas = ALPHAS[ALPHAS + beta <= PERSISTENCE]
                variances = level + alphas[:, None] * (garch(squares, 1.0, beta, level) - level)
                losses = _loss(variances, squares, level)
                least = int(np.argmin(losses))
                best = min(best, (float(losses[least]), float(alphas[least]), beta))
            self.parameters.append((*best[1:], level))

    def forecast(self, number: int, origins: Origins) -> Forecast:
        values = self.history.filled(number, self.season)
        mean = np.repeat(values[origins - 1][:, None], self.history.horizon, 1)
        if not self.parameters[number]:
            return mean, np.full_like(mean, np.nan)
        alpha, beta, level = self.parameters[number]
        following = np.concatenate([[level], garch(np.diff(values) ** 2, alpha, beta, level)])[origins - 1]
        decay = (alpha + beta) ** np.arange(self.history.horizon)
        variances = level + decay * (following[:, None] - level)
        return mean, np.sqrt(np.maximum(variances, _FLOOR * level).cumsum(1))


def _loss(variances: Values, squares: Values, level: float) -> NDArray[np.float64]:
    """(K, T) variances of the differences after each to (K,) mean losses -2 log density, without constants."""
    before = np.maximum(variances[:, :-1], _FLOOR * level)
    return np.asarray((np.log(before) + squares[1:] / before).mean(1))
