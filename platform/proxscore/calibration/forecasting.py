"""Proper scores, intervals and calibration of forecasts by samples, streamed over batches of windows and over ranks.

    metrics = ForecastMetrics(horizon=48, series=51)
    for samples, targets, observed, season_error, series in predictions:
        metrics.update(samples, targets, observed, season_error=season_error, series=series)
    results = metrics.compute()                       # on every rank
    curves = metrics.by_horizon()                     # the same metrics per step ahead

Only sums are kept, per step ahead and per series; the samples are not. Missing steps count nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from proxscore.calibration.crps import crps_of_sorted
from proxscore.calibration.forecast_sums import DENOMINATORS, ForecastSums, denominator, ratios
from proxscore.calibration.pit import chi_square, pit_counts, pit_values
from proxscore.calibration.quantiles import (
    central,
    check_probabilities,
    check_sample_count,
    interval_score,
    pinball_loss,
    quantiles_of_sorted,
)
from proxscore.calibration.smape import symmetric_percentage_error
from proxscore.config import ConfigError

_SCALED_LEVEL = 0.95  # of the interval in MSIS (Makridakis et al., M4, 2020)


class ForecastMetrics:
    """Metrics of forecasts over ``horizon`` steps of ``series`` series, as floats under the keys of :meth:`compute`.

    ``compute`` adds up over all ranks of the default process group, whose ranks may hold unequal numbers of windows, or
    none.

    Args:
        horizon: number of steps H of a window.
        series: number of series N; windows name theirs by 0 to N - 1.
        levels: of the central intervals, between 0 and 1.
        quantiles: probabilities of the quantiles in the mean weighted quantile loss.
        bins: number of bins of the PIT histogram.
        seed: of the randomisation within PIT cells; it matters little unless samples equal the target (ties).
    """

    def __init__(
        self,
        horizon: int,
        series: int,
        *,
        levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
        quantiles: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        bins: int = 10,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("horizon", horizon, 1), ("series", series, 1), ("bins", bins, 2)):
            if value < least:
                raise ConfigError(f"{name} is {value}; forecast metrics need at least {least}")
        check_probabilities("levels", levels)
        check_probabilities("quantiles", quantiles)
        self.horizon, self.series, self.bins = horizon, series, bins
        self.levels, self.quantiles = tuple(levels), tuple(quantiles)
        self._seed = seed
        self._names = [*_metrics(self.levels), *DENOMINATORS]
        self._device = torch.device("cpu")
        self._sums: ForecastSums
        self._total: ForecastSums | None
        self._generator: torch.Generator | None
        self.reset()

    def to(self, device: torch.device | str) -> Self:
        """Move the sums to ``device``: one that the process group can reduce on (a CUDA device under NCCL)."""
        self._device = torch.device(device)
        self._sums = self._sums.to(self._device)
        self._total = None
        return self

    def reset(self) -> None:
        """Forget all windows."""
        self._sums = ForecastSums.zeros(len(self._names), self.horizon, self.series, self.bins, self._device)
        self._total = None
        self._seen = 0
        self._generator = None

    @torch.no_grad()
    def update(
        self,
        samples: Tensor,
        targets: Tensor,
        observed: Tensor,
        *,
        season_error: Tensor,
        series: Tensor,
        quantiles: Callable[[Sequence[float]], Tensor] | None = None,
        cdf: Tensor | None = None,
        log_density: Tensor | None = None,
        mean: Tensor | None = None,
        aleatoric: Tensor | None = None,
        epistemic: Tensor | None = None,
    ) -> None:
        """Add the windows of one batch. Values at steps that were not observed may be anything, NaN too.

        Args:
            samples: (S, B, H) from the predictive, in the unit of the targets; S large enough for the outer quantiles
                (39 for an interval of level 0.95). The work is done on their device.
            targets: (B, H), what happened.
            observed: (B, H), true or 1 where it was observed.
            season_error: (B,), :func:`proxscore.calibration.seasonal_error` of the past of each series. Windows where
                it is zero (a constant series), infinite or NaN do not count in ``mase`` and ``msis``.
            series: (B,) integers, the series of each window.
            quantiles: gives the predictive's (Q, B, H) of probabilities, where they are known better than by the samples'.
            cdf: (B, H), the predictive's distribution function at the targets, for PIT, likewise.
            log_density: (B, H) of the targets under the predictive (nats per unit); -inf is allowed.
            mean: (B, H) of the predictive, where it is known better than as the mean of the samples.
            aleatoric, epistemic: (B, H), mean over draws of the variance, and variance over draws of the mean.

        Raises:
            ConfigError: shapes that do not fit, too few samples, an unknown series, or values at an observed step that
                are no numbers. It names the window, counted on this rank since the last reset, and the step.
        """
        device = samples.device
        optional = {
            "cdf": cdf,
            "log_density": log_density,
            "mean": mean,
            "aleatoric": aleatoric,
            "epistemic": epistemic,
        }
        known = {name: values.to(device) for name, values in optional.items() if values is not None}
        self._check_shapes(samples, targets, {"observed": observed, **known}, season_error, series)
        targets, observed, series = targets.to(device), observed.to(device) > 0, series.to(device, torch.long)
        self._check_values(samples, targets, observed, known, series)
        samples, targets = (torch.where(observed, _at_least_float32(v), 0.0) for v in (samples, targets))
        scale = _at_least_float32(season_error).to(device).unsqueeze(1)
        terms = self._terms(samples, targets, scale, quantiles) | _known_terms(known, like=targets)
        terms["mse"] = (targets - known.get("mean", samples.mean(dim=0))).square()
        scaled = observed & (scale > 0) & scale.isfinite()
        counted = [scaled if "scaled_steps" in (name, denominator(name)) else observed for name in self._names]
        values = torch.stack([terms[name].expand_as(targets) for name in self._names]).double()
        self._sums.add(torch.where(torch.stack(counted), values, 0.0), series)
        pit = known["cdf"] if cdf is not None else pit_values(samples, targets, generator=self._random())
        pit = pit[observed]
        self._sums.pit += pit_counts(pit, bins=self.bins).to(self._sums.pit)
        self._seen += len(targets)
        self._total = None

    def compute(self) -> dict[str, float]:
        """Metrics of all windows of all ranks since the last reset. A collective: every rank calls it, or none.

        Returns: means over observed steps; those marked * are in the unit of the targets,
            crps*: fair estimate from the samples (:func:`proxscore.calibration.crps_samples`).
            mean_weighted_quantile_loss: mean over ``quantiles`` of sum 2 pinball / sum |target|, as GluonTS has it.
            mse, mae*: squared error of the mean (its unit squared), absolute error of the median.
            mase: |target - median| / season_error (Hyndman and Koehler, 2006).
            smape: 200 |target - median| / (|target| + |median|), in percent (M3, 2000).
            msis: Winkler score of level 0.95 / season_error (M4, 2020); only with 0.95 among ``levels``.
            winkler_L*, width_L*, coverage_L: of the central interval of L percent: its score, its width, and how often
                the target lies in it, ends included.
            nll: -log density of the target, nats per step.
            aleatoric_sd*, epistemic_sd*: roots of the mean variances.
            pit_pvalue: chi-square test of the PIT histogram (:mod:`proxscore.calibration.pit`); it assumes independent
                steps, which neighbouring steps and windows that overlap are not.
            observed_steps, scaled_steps: how many steps count, in all and in ``mase`` and ``msis``.
        A metric of which there is no step is left out: ``nll`` if no update had a ``log_density``, ``mase`` if all series
        are constant, all but the two numbers of steps if none was observed.
        """
        self._total = total = self._sums.reduced()
        sums = total.by_horizon.sum(dim=1, keepdim=True)
        totals = dict(zip(self._names, sums.flatten().tolist(), strict=True))
        values = {
            name: float(value) for name, value in ratios(self._names, sums).items() if totals[denominator(name)] > 0
        }
        if totals["steps"]:
            values["pit_pvalue"] = chi_square(total.pit)[1]
        return values | {"observed_steps": totals["steps"], "scaled_steps": totals["scaled_steps"]}

    def by_horizon(self) -> dict[str, Tensor]:
        """(H,) float64 per metric: the means of :meth:`compute` for each step ahead; NaN where no step counts.

        Among several ranks :meth:`compute` comes first: it adds up, so that one rank alone may draw figures.
        """
        return ratios(self._names, self._totals().by_horizon)

    def by_series(self) -> dict[str, Tensor]:
        """(N,) float64 per metric: the means for each series; NaN where no step counts. See :meth:`by_horizon`."""
        return ratios(self._names, self._totals().by_series)

    @property
    def pit_counts(self) -> Tensor:
        """(bins,) float64, observed steps per bin of the PIT histogram. See :meth:`by_horizon`."""
        return self._totals().pit

    def _totals(self) -> ForecastSums:
        if self._total is None:
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                raise ConfigError("the windows lie on several ranks; call compute() on every rank before reading them")
            self._total = self._sums.reduced()
        return self._total

    def _terms(
        self,
        samples: Tensor,
        targets: Tensor,
        scale: Tensor,
        exact: Callable[[Sequence[float]], Tensor] | None,
    ) -> dict[str, Tensor]:
        """(B, H) or a number: what each observed step adds to the sums of this name."""
        ordered = samples.sort(dim=0).values
        probabilities = sorted({0.5, *self.quantiles, *(p for level in self.levels for p in central(level))})
        found = quantiles_of_sorted(ordered, probabilities) if exact is None else exact(probabilities).to(targets)
        of = dict(zip(probabilities, found, strict=True))
        losses = [2 * pinball_loss(of[probability], targets, probability) for probability in self.quantiles]
        absolute_error = (targets - of[0.5]).abs()
        one = torch.ones((), device=targets.device)
        terms = {
            "crps": crps_of_sorted(ordered, targets),
            "mean_weighted_quantile_loss": torch.stack(losses).mean(dim=0),
            "mae": absolute_error,
            "mase": absolute_error / scale,
            "smape": symmetric_percentage_error(of[0.5], targets),
            "absolute_target": targets.abs(),
            "steps": one,
            "scaled_steps": one,
        }
        for level in self.levels:
            lower, upper = (of[probability] for probability in central(level))
            score = interval_score(lower, upper, targets, level)
            terms[_key("winkler", level)] = score
            terms[_key("width", level)] = upper - lower
            terms[_key("coverage", level)] = (lower <= targets) & (targets <= upper)
            if level == _SCALED_LEVEL:
                terms["msis"] = score / scale
        return terms

    def _random(self) -> torch.Generator:
        """Made at the first update: only then is it certain that the rank is known. Ranks must not repeat each other."""
        if self._generator is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            self._generator = torch.Generator().manual_seed(self._seed + 1_000_003 * rank)
        return self._generator

    def _check_shapes(
        self, samples: Tensor, targets: Tensor, others: dict[str, Tensor], season_error: Tensor, series: Tensor
    ) -> None:
        if targets.ndim != 2 or targets.shape[1] != self.horizon:
            raise ConfigError(f"targets have shape {tuple(targets.shape)}; wanted (windows, horizon={self.horizon})")
        if samples.ndim != 3 or samples.shape[1:] != targets.shape:
            wanted = ("samples", *targets.shape)
            raise ConfigError(f"samples have shape {tuple(samples.shape)}; wanted {wanted}".replace("'", ""))
        for name, values in others.items():
            if values.shape != targets.shape:
                raise ConfigError(f"{name} has shape {tuple(values.shape)}; wanted {tuple(targets.shape)}")
        for name, values in (("season_error", season_error), ("series", series)):
            if values.shape != targets.shape[:1]:
                raise ConfigError(
                    f"{name} has shape {tuple(values.shape)}; wanted one value per window, {len(targets)}"
                )
        check_sample_count(len(samples), [p for level in self.levels for p in central(level)] + [*self.quantiles])

    def _check_values(
        self, samples: Tensor, targets: Tensor, observed: Tensor, given: dict[str, Tensor], series: Tensor
    ) -> None:
        unknown = ((series < 0) | (series >= self.series)).nonzero()
        if len(unknown):
            window = int(unknown[0])
            raise ConfigError(
                f"series: window {self._seen + window} is of series {int(series[window])}; "
                f"the metrics were made for series 0 to {self.series - 1}"
            )
        checks = {"targets": ~targets.isfinite(), "samples": ~samples.isfinite().all(dim=0)}
        # Variances of heavy tails are infinite, as is the surprise at a target without density.
        checks |= {name: values.isnan() for name, values in given.items()}
        for name, wrong in checks.items():
            at = (wrong & observed).nonzero()
            if len(at):
                window, step = at[0].tolist()
                raise ConfigError(
                    f"{name}: window {self._seen + window}, step {step} has NaN or an infinite number "
                    "where the target was observed; did training diverge, or is `observed` wrong?"
                )


def _metrics(levels: Sequence[float]) -> list[str]:
    """Names of the metrics that are ratios of sums, in the order of :meth:`ForecastMetrics.compute`."""
    names = ["crps", "mean_weighted_quantile_loss", "mse", "mae", "mase", "smape"]
    names += ["msis"] if _SCALED_LEVEL in levels else []
    names += [_key(kind, level) for kind in ("winkler", "width", "coverage") for level in levels]
    return [*names, "nll", "aleatoric_sd", "epistemic_sd"]


def _key(kind: str, level: float) -> str:
    return f"{kind}_{100 * level:g}"


def _known_terms(known: dict[str, Tensor], *, like: Tensor) -> dict[str, Tensor]:
    """Terms of what the caller knows in closed form, and their numbers of steps: zero where it was not given."""
    terms = {}
    for name, given, sign in (
        ("nll", "log_density", -1),
        ("aleatoric_sd", "aleatoric", 1),
        ("epistemic_sd", "epistemic", 1),
    ):
        terms[name] = sign * _at_least_float32(known[given]) if given in known else like.new_zeros(())
        terms[denominator(name)] = like.new_full((), given in known)
    return terms


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
