"""Distribution functions and quantiles of mixtures, against scipy's distributions and root finder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from proxscore.calibration.forecasting import ForecastMetrics
from proxscore.forecasting.distributions import Normal, StepDistribution, StudentT
from proxscore.forecasting.mixtures import StepMixture
from proxscore.forecasting.predictive import ForecastPredictive

PROBABILITIES = (0.001, 0.025, 0.1, 0.5, 0.8, 0.975, 0.999)


def outputs(kind: str, draws: int, spread: float, unit: float = 1.0) -> torch.Tensor:
    """(S, 3, 4, K); means of draws lie ``spread`` apart, in scales."""
    generator = torch.Generator().manual_seed(0)
    loc = unit * (spread * torch.randn(draws, 3, 4, generator=generator) + 7)
    scale = unit * (0.5 + torch.rand(draws, 3, 4, generator=generator))
    df = 2.1 + 20 * torch.rand(draws, 3, 4, generator=generator)
    return torch.stack([df, loc, scale] if kind == "student_t" else [loc, scale], -1)


def theirs(values: torch.Tensor):  # type: ignore[no-untyped-def]
    parts = values.double().numpy()
    return stats.t(*np.moveaxis(parts, -1, 0)) if parts.shape[-1] == 3 else stats.norm(*np.moveaxis(parts, -1, 0))


FAMILIES: dict[str, StepDistribution] = {"student_t": StudentT(), "normal": Normal()}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("draws", "spread"), [(1, 0.0), (2, 30.0), (8, 0.0), (16, 1.0), (5, 1000.0)])
@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_quantiles_are_those_of_scipy_by_its_root_finder(kind: str, draws: int, spread: float, unit: float) -> None:
    values = outputs(kind, draws, spread, unit)
    found = StepMixture(FAMILIES[kind], values).quantiles(PROBABILITIES)
    assert found.shape == (len(PROBABILITIES), 3, 4)
    for row, step in ((0, 0), (2, 3)):
        own = theirs(values[:, row, step])
        for probability, quantile in zip(PROBABILITIES, found[:, row, step].tolist(), strict=True):
            low, high = own.ppf(probability).min(), own.ppf(probability).max()
            expected = low
            if high > low:
                expected = optimize.brentq(
                    lambda y, own=own, p=probability: own.cdf(y).mean() - p, low, high, xtol=1e-14 * unit
                )
            if own.pdf(quantile).mean() * unit > 1e-5:  # between draws that lie far apart, any value will do
                assert quantile == pytest.approx(expected, rel=1e-5, abs=1e-6 * unit)
            assert own.cdf(quantile).mean() == pytest.approx(probability, rel=1e-5)
    assert (found.diff(dim=0) > 0).all()


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_distribution_function_is_scipys(kind: str) -> None:
    values, at = outputs(kind, 6, 2.0), 7 + 3 * torch.randn(3, 4)
    expected = theirs(values).cdf(at.double().numpy()).mean(0)
    np.testing.assert_allclose(StepMixture(FAMILIES[kind], values).cdf(at).numpy(), expected, rtol=1e-10)


def test_metrics_take_medians_intervals_and_pit_from_the_distribution() -> None:
    """Of one normal draw, where all of them have a closed form; 200 samples widen MASE by more than a percent."""
    generator = torch.Generator().manual_seed(1)
    loc, scale = torch.randn(400, 5, generator=generator), 0.5 + torch.rand(400, 5, generator=generator)
    truth = loc + scale * torch.randn(400, 5, generator=generator)
    targets = torch.stack([truth, torch.ones(400, 5), torch.zeros(400, 5), torch.zeros(400, 5)], 1)
    predictive = ForecastPredictive(Normal(), torch.stack([loc, scale], -1)[None], None, targets)
    metrics = ForecastMetrics(5, 1)
    for chunk in predictive.chunks(150):
        assert chunk.steps is not None
        values, observed, series, _ = chunk.targets.unbind(1)
        metrics.update(
            chunk.samples,
            values,
            observed,
            quantiles=chunk.steps.quantiles,
            cdf=chunk.steps.cdf(values),
            season_error=torch.full((len(values),), 2.0),
            series=series[:, 0].long(),
        )
    found = metrics.compute()
    assert found["mase"] == pytest.approx(float((truth - loc).abs().mean()) / 2, rel=1e-5)
    assert found["mae"] == pytest.approx(float((truth - loc).abs().mean()), rel=1e-5)
    for level in (50, 80, 90, 95):
        z = stats.norm.ppf(0.5 + level / 200)
        assert found[f"width_{level}"] == pytest.approx(float((2 * z * scale).mean()), rel=1e-5)
        assert found[f"coverage_{level}"] == pytest.approx(
            float(((truth - loc).abs() <= z * scale).float().mean()), abs=1e-6
        )
    cells = np.histogram(stats.norm.cdf(truth, loc, scale), bins=10, range=(0, 1))[0]
    np.testing.assert_array_equal(metrics.pit_counts.numpy(), cells)
