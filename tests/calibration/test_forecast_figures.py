"""What the figures of forecasts show are the numbers that they were given."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from proxscore.calibration import (
    ForecastMetrics,
    coverage_against_nominal,
    error_by_horizon,
    fan_chart,
    pit_histogram,
    sample_quantiles,
)
from proxscore.config import ConfigError

P, T, H = 3, 20, 8
PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9)


def fan() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    history, targets = torch.randn(P, T, generator=generator), torch.randn(P, H, generator=generator)
    targets[1, 2] = torch.nan
    samples = torch.randn(99, P, H, generator=generator)
    return history, targets, sample_quantiles(samples, PROBABILITIES).transpose(0, 1)


def check_is_drawn(figure: Figure) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    assert image.getvalue().startswith(b"\x89PNG")


def test_every_panel_of_the_fan_chart_has_its_bands_median_and_values() -> None:
    history, targets, quantiles = fan()
    figure = fan_chart(history, targets, quantiles, PROBABILITIES, names=["a", "b", "c"], unit="births", title="fans")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["a", "b", "c"]
    for i, axes in enumerate(shown):
        assert [band.get_label() for band in axes.collections] == ["80%", "50%"]
        for j, band in enumerate(axes.collections):
            heights = {round(float(y), 5) for y in band.get_paths()[0].vertices[:, 1]}
            assert {round(float(y), 5) for y in quantiles[i, [j, -1 - j]].flatten()} <= heights
        median, observed = axes.lines[:2]
        np.testing.assert_allclose(median.get_ydata(), quantiles[i, 2])
        assert median.get_xdata().tolist() == list(range(1, H + 1))
        np.testing.assert_allclose(observed.get_ydata(), torch.cat([history[i], targets[i]]))
        assert observed.get_xdata().tolist() == list(range(1 - T, H + 1))
    check_is_drawn(figure)


def test_a_fan_of_another_form_is_refused() -> None:
    history, targets, quantiles = fan()
    with pytest.raises(ConfigError, match="do not fit"):
        fan_chart(history, targets, quantiles, PROBABILITIES, names=["a"])
    with pytest.raises(ConfigError, match="do not fit"):
        fan_chart(history, targets, quantiles.transpose(0, 1), PROBABILITIES, names=["a", "b", "c"])
    for wrong in ((0.1, 0.3, 0.5, 0.75, 0.9), (0.25, 0.1, 0.5, 0.9, 0.75)):
        with pytest.raises(ConfigError, match=r"wanted 0\.5 and pairs"):
            fan_chart(history, targets, quantiles, wrong, names=["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"wanted 0\.5 and pairs"):
        fan_chart(history, targets, quantiles[:, [0, -1]], (0.1, 0.9), names=["a", "b", "c"])


def test_pit_bars_are_densities_and_the_band_holds_the_bins_of_calibrated_forecasts() -> None:
    counts = torch.tensor([30, 10, 20, 40])
    axes = pit_histogram(counts, title="some").axes[0]
    assert [bar.get_height() for bar in axes.containers[0]] == pytest.approx([1.2, 0.4, 0.8, 1.6])
    assert "N  100" in axes.texts[0].get_text()
    assert "20.0" in axes.texts[0].get_text()  # (5^2 + 15^2 + 5^2 + 15^2) / 25
    generator = np.random.default_rng(0)
    lower, upper = np.quantile(generator.binomial(100, 0.25, size=200_000) / 25, [0.025, 0.975])
    band = next(patch for patch in axes.patches if patch.get_label().startswith("95%"))
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((lower, upper))
    check_is_drawn(axes.figure)
    with pytest.raises(ConfigError, match="at least one observed step"):
        pit_histogram(torch.zeros(5))


def test_coverage_is_drawn_in_the_order_of_its_levels() -> None:
    figure = coverage_against_nominal((0.9, 0.5), {"MAP": (0.7, 0.4), "posterior": (0.88, 0.52)})
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}
    assert lines["MAP"] == ([0.5, 0.9], [0.4, 0.7])
    assert lines["posterior"] == ([0.5, 0.9], [0.52, 0.88])
    assert lines["calibrated"] == ([0, 1], [0, 1])
    check_is_drawn(figure)
    with pytest.raises(ConfigError, match="MAP has 1 values for 2 levels"):
        coverage_against_nominal((0.5, 0.9), {"MAP": (0.4,)})
    with pytest.raises(ConfigError, match="no method"):
        coverage_against_nominal((0.5,), {})


def test_errors_by_horizon_are_those_of_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    metrics = ForecastMetrics(H, 1)
    metrics.update(
        torch.randn(39, 5, H, generator=generator),
        torch.randn(5, H, generator=generator),
        torch.ones(5, H),
        season_error=torch.ones(5),
        series=torch.zeros(5, dtype=torch.long),
    )
    curves = {"posterior": metrics.by_horizon(), "other": {name: 2 * v for name, v in metrics.by_horizon().items()}}
    figure = error_by_horizon(curves, metrics=("crps", "mase"), title="by step")
    for axes, metric in zip(figure.axes, ("crps", "mase"), strict=True):
        assert axes.get_ylabel() == metric
        for line, values in zip(axes.lines, curves.values(), strict=True):
            np.testing.assert_allclose(line.get_ydata(), values[metric])
            assert line.get_xdata().tolist() == list(range(1, H + 1))
        assert axes.get_ylim()[0] == 0
    check_is_drawn(figure)
    with pytest.raises(ConfigError, match="posterior has no metric nonsense; it has crps, "):
        error_by_horizon(curves, metrics=("nonsense",))
    with pytest.raises(ConfigError, match="no method"):
        error_by_horizon({})
