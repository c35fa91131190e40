"""ForecastMetrics against gluonts.ev on masked arrays, against numpy and scipy by hand, and invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gluonts.ev import metrics as gluonts_metrics
from gluonts.ev.ts_stats import seasonal_error as gluonts_seasonal_error
from scipy import stats
from torch import Tensor

from proxscore.calibration import ForecastMetrics, crps_samples, pit_counts, pit_values, seasonal_error
from proxscore.config import ConfigError

S, B, H, N = 59, 12, 6, 4
LEVELS = (0.5, 0.8, 0.9, 0.95)
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def windows(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Windows of four series with a fifth of the steps missing, whose predictive is somewhat too narrow."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    level = 20 + 3 * normal(B, H)
    batch = {
        "samples": level + normal(S, B, H),
        "targets": level + 1.5 * normal(B, H),
        "observed": (torch.rand(B, H, generator=g) < 0.8).double(),
        "season_error": torch.rand(B, generator=g, dtype=torch.float64) + 0.5,
        "log_density": normal(B, H) - 2,
        "mean": level,
        "aleatoric": normal(B, H).square(),
        "epistemic": normal(B, H).square() / 10,
    }
    return {name: values.to(dtype) for name, values in batch.items()} | {"series": torch.arange(B) % N}


def computed(*batches: dict[str, Tensor], **settings: Any) -> dict[str, float]:
    metrics = ForecastMetrics(H, N, **settings)
    for batch in batches:
        metrics.update(**batch)
    return metrics.compute()


def part(batch: dict[str, Tensor], keep: Tensor | slice) -> dict[str, Tensor]:
    """Some windows of a batch."""
    return {name: values[:, keep] if name == "samples" else values[keep] for name, values in batch.items()}


def in_numpy(batch: dict[str, Tensor]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    arrays = {name: values.numpy() for name, values in batch.items()}
    return arrays, arrays["observed"] > 0


def test_quantile_loss_msis_mase_smape_mae_mse_and_coverage_equal_gluonts() -> None:
    batch = windows()
    arrays, seen = in_numpy(batch)
    probabilities = sorted({*QUANTILES, 0.025, 0.05, 0.25, 0.75, 0.95, 0.975})
    data = dict(
        zip(
            map(str, probabilities),
            np.quantile(arrays["samples"], probabilities, axis=0, method="weibull"),
            strict=True,
        )
    )
    data |= {
        "label": np.ma.masked_array(arrays["targets"], ~seen),
        "mean": arrays["mean"],
        "seasonal_error": arrays["season_error"][:, None],
    }

    def gluonts(definition: Any) -> float:
        return float(definition(axis=None).update(data).get())

    found = computed(batch)
    expected = {
        "mean_weighted_quantile_loss": gluonts(gluonts_metrics.MeanWeightedSumQuantileLoss(QUANTILES)),
        "msis": gluonts(gluonts_metrics.MSIS(alpha=0.05)),
        "mase": gluonts(gluonts_metrics.MASE()),
        "smape": 100 * gluonts(gluonts_metrics.SMAPE()),
        "mae": gluonts(gluonts_metrics.MAE()),
        "mse": gluonts(gluonts_metrics.MSE()),
    }
    for level in LEVELS:
        below, above = (gluonts(gluonts_metrics.Coverage(round(q, 3))) for q in ((1 - level) / 2, (1 + level) / 2))
        expected[f"coverage_{100 * level:g}"] = above - below
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_scores_by_hand_from_each_observed_step() -> None:
    batch = windows()
    arrays, seen = in_numpy(batch)
    crps, winkler, width = [], [], []
    for b, h in zip(*seen.nonzero(), strict=True):
        x, y = arrays["samples"][:, b, h], arrays["targets"][b, h]
        crps.append(np.abs(x - y).mean() - np.abs(x[:, None] - x).sum() / (2 * S * (S - 1)))
        lower, upper = np.quantile(x, [0.1, 0.9], method="weibull")
        width.append(upper - lower)
        winkler.append(upper - lower + 10 * max(lower - y, 0) + 10 * max(y - upper, 0))
    expected = {
        "crps": np.mean(crps),
        "winkler_80": np.mean(winkler),
        "width_80": np.mean(width),
        "nll": -arrays["log_density"][seen].mean(),
        "aleatoric_sd": np.sqrt(arrays["aleatoric"][seen].mean()),
        "epistemic_sd": np.sqrt(arrays["epistemic"][seen].mean()),
        "observed_steps": seen.sum(),
        "scaled_steps": seen.sum(),
    }
    found = computed(batch)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert all(type(value) is float for value in found.values())
    single = computed(windows(dtype=torch.float32))
    assert {name: single[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_keys_are_those_of_the_docstring() -> None:
    intervals = [f"{kind}_{level}" for kind in ("winkler", "width", "coverage") for level in ("50", "80", "90", "95")]
    points = ["crps", "mean_weighted_quantile_loss", "mse", "mae", "mase", "smape", "msis"]
    known = ["nll", "aleatoric_sd", "epistemic_sd"]
    counts = ["pit_pvalue", "observed_steps", "scaled_steps"]
    assert list(computed(windows())) == points + intervals + known + counts
    other = computed(windows(), levels=(0.6,), quantiles=(0.5,))
    assert list(other) == [*points[:-1], "winkler_60", "width_60", "coverage_60", *known, *counts]


def test_pit_pvalue_is_the_chi_square_test_of_the_observed_steps() -> None:
    batch = windows()
    metrics = ForecastMetrics(H, N, bins=5)
    metrics.update(**batch)
    seen = batch["observed"] > 0
    # 60 ranks in 5 bins: which bin a step is in does not depend on the randomisation.
    counts = pit_counts(pit_values(batch["samples"], batch["targets"])[seen], bins=5)
    assert metrics.pit_counts.tolist() == counts.tolist()
    assert metrics.compute()["pit_pvalue"] == pytest.approx(stats.chisquare(counts.numpy()).pvalue)


def test_a_calibrated_predictive_covers_what_it_says_and_a_narrow_one_less() -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(100, 4000, 1, generator=g)
    rest = {"observed": torch.ones(4000, 1), "season_error": torch.ones(4000), "series": torch.zeros(4000).long()}
    results = {}
    for spread in (1.0, 0.6):
        metrics = ForecastMetrics(1, 1)
        metrics.update(spread * values[1:], values[0], **rest)
        results[spread] = metrics.compute()
    for level in LEVELS:
        error = 4 * (level * (1 - level) / 4000) ** 0.5
        assert results[1.0][f"coverage_{100 * level:g}"] == pytest.approx(level, abs=error)
        assert results[0.6][f"coverage_{100 * level:g}"] < level - error
    assert results[1.0]["pit_pvalue"] > 0.01 > results[0.6]["pit_pvalue"]
    assert results[1.0]["crps"] < results[0.6]["crps"]
    assert results[1.0]["winkler_95"] < results[0.6]["winkler_95"]


def test_missing_steps_count_nowhere_whatever_they_hold() -> None:
    batch = windows()
    expected = computed(batch)
    missing = batch["observed"] == 0
    for name in ("samples", "targets", "log_density", "mean", "aleatoric", "epistemic"):
        batch[name] = batch[name].masked_fill(missing, torch.nan)
    assert computed(batch) == expected
    batch["observed"] = batch["observed"].bool()
    assert computed(batch) == expected


def test_batches_add_up_to_the_whole() -> None:
    batch = windows()
    expected = computed(batch, bins=5)
    assert computed(*(part(batch, slice(i, i + 5)) for i in range(0, B, 5)), bins=5) == pytest.approx(expected)
    metrics = ForecastMetrics(H, N, bins=5)
    metrics.update(**windows(seed=1))
    metrics.compute()
    metrics.reset()
    metrics.update(**part(batch, slice(7)))
    metrics.compute()
    metrics.update(**part(batch, slice(7, B)))
    assert metrics.compute() == pytest.approx(expected)


def test_by_series_and_by_horizon_are_the_metrics_of_those_steps_alone() -> None:
    batch = windows()
    metrics = ForecastMetrics(H, N)
    metrics.update(**batch)
    by_series, by_horizon = metrics.by_series(), metrics.by_horizon()
    for n in range(N):
        alone = computed(part(batch, batch["series"] == n))
        assert {name: float(values[n]) for name, values in by_series.items()} == pytest.approx(
            {name: alone[name] for name in by_series}
        )
    for h in range(H):
        step = torch.zeros(H).index_fill_(0, torch.tensor(h), 1)
        alone = computed(batch | {"observed": batch["observed"] * step})
        assert {name: float(values[h]) for name, values in by_horizon.items()} == pytest.approx(
            {name: alone[name] for name in by_horizon}
        )
    assert (
        set(by_series) == set(by_horizon) == set(metrics.compute()) - {"pit_pvalue", "observed_steps", "scaled_steps"}
    )


def test_what_was_not_given_is_left_out_and_the_mean_is_then_that_of_the_samples() -> None:
    batch = windows()
    optional = {name: batch.pop(name) for name in ("log_density", "mean", "aleatoric", "epistemic")}
    found = computed(batch)
    assert not {"nll", "aleatoric_sd", "epistemic_sd"} & set(found)
    seen = batch["observed"] > 0
    expected = float((batch["targets"] - batch["samples"].mean(0))[seen].square().mean())
    assert found["mse"] == pytest.approx(expected)
    # Given in one batch of two: the mean over the steps of that one.
    both = computed(batch, batch | {"log_density": optional["log_density"]})
    assert both["nll"] == pytest.approx(-float(optional["log_density"][seen].mean()))


def test_series_without_a_season_error_do_not_count_in_scaled_metrics() -> None:
    batch = windows()
    constant = batch["series"] == 1
    batch["season_error"][constant] = torch.tensor([0.0, torch.nan, torch.inf], dtype=torch.float64)
    metrics = ForecastMetrics(H, N)
    metrics.update(**batch)
    found, rest = metrics.compute(), computed(part(batch, ~constant))
    for name in ("mase", "msis", "scaled_steps"):
        assert found[name] == pytest.approx(rest[name])
    assert found["observed_steps"] == batch["observed"].sum()
    assert metrics.by_series()["mase"].isnan().tolist() == [False, True, False, False]
    assert "mase" not in computed(batch | {"season_error": torch.zeros(B)})


def test_crps_is_close_to_the_closed_form_of_what_the_samples_come_from() -> None:
    batch = windows()
    y = (batch["targets"] - batch["mean"]).numpy()
    exact = torch.as_tensor(y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - np.pi**-0.5)
    seen = batch["observed"] > 0
    error = float((crps_samples(batch["samples"], batch["targets"]) - exact)[seen].std() / seen.sum() ** 0.5)
    assert computed(batch)["crps"] == pytest.approx(float(exact[seen].mean()), abs=4 * error)


def test_an_impossible_target_makes_the_nll_infinite_and_nothing_else() -> None:
    batch = windows()
    batch["observed"][0, 0] = 1
    batch["log_density"][0, 0] = -torch.inf
    found = computed(batch)
    assert [name for name, value in found.items() if not np.isfinite(value)] == ["nll"]


def test_values_that_are_no_numbers_are_refused_by_window_and_step() -> None:
    for name in ("samples", "targets", "log_density", "mean", "aleatoric", "epistemic"):
        batch = windows()
        batch["observed"][3, 2] = 1
        batch[name][..., 3, 2] = torch.nan
        metrics = ForecastMetrics(H, N)
        metrics.update(**windows())
        with pytest.raises(ConfigError, match=f"{name}: window {B + 3}, step 2 has NaN"):
            metrics.update(**batch)


def test_wrong_shapes_numbers_and_settings_are_refused() -> None:
    batch = windows()
    wrong = {
        "samples": (batch["samples"][:, :, 1:], r"samples have shape \(59, 12, 5\); wanted \(samples, 12, 6\)"),
        "targets": (batch["targets"][:, 1:], r"targets have shape \(12, 5\); wanted \(windows, horizon=6\)"),
        "observed": (batch["observed"][1:], "observed has shape"),
        "mean": (batch["mean"][1:], "mean has shape"),
        "season_error": (torch.ones(B, 1), "one value per window, 12"),
        "series": (batch["series"] + 1, "window 3 is of series 4; the metrics were made for series 0 to 3"),
    }
    for name, (value, match) in wrong.items():
        with pytest.raises(ConfigError, match=match):
            ForecastMetrics(H, N).update(**batch | {name: value})
    with pytest.raises(ConfigError, match=r"30 are too few for the 0\.025 quantile, which needs at least 39"):
        ForecastMetrics(H, N).update(**batch | {"samples": batch["samples"][:30]})
    for settings, match in (
        ({"horizon": 0}, "horizon is 0"),
        ({"series": 0}, "series is 0"),
        ({"bins": 1}, "bins is 1"),
        ({"levels": (95,)}, "levels has 95"),
        ({"quantiles": ()}, "quantiles is"),
    ):
        with pytest.raises(ConfigError, match=match):
            ForecastMetrics(**{"horizon": H, "series": N} | settings)
    nothing = batch | {"observed": torch.zeros(B, H)}
    assert computed(nothing) == {"observed_steps": 0.0, "scaled_steps": 0.0}


@pytest.mark.parametrize("season", [1, 7, 40])
def test_seasonal_error_is_that_of_gluonts_and_leaves_missing_pairs_out(season: int) -> None:
    past = torch.randn(30, generator=torch.Generator().manual_seed(0))
    expected = gluonts_seasonal_error(past.double().numpy(), season).item()
    assert float(seasonal_error(past, season)) == pytest.approx(expected)
    past[[3, 20]] = torch.nan
    lag = season if season < 30 else 1
    pairs = [abs(float(past[t]) - float(past[t - lag])) for t in range(lag, 30)]
    assert float(seasonal_error(past, season)) == pytest.approx(np.nanmean(pairs))


def test_seasonal_error_of_nothing_is_nan_and_wrong_arguments_are_refused() -> None:
    assert seasonal_error(torch.tensor([1.0]), 1).isnan()
    assert float(seasonal_error(torch.ones(5), 2)) == 0
    with pytest.raises(ConfigError, match="season is 0"):
        seasonal_error(torch.ones(5), 0)
    with pytest.raises(ConfigError, match="wanted one series"):
        seasonal_error(torch.ones(5, 2), 1)
