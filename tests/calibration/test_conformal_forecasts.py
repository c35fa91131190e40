"""Conformal intervals of forecasts: coverage of exchangeable windows, order statistics by brute force, drift, no look-ahead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from proxscore.calibration.conformal_forecasts import Thresholds, moved, scores, threshold_by_step, tracked
from proxscore.calibration.interval_coverage import IntervalSums, coverage_by_horizon, wilson
from proxscore.config import ConfigError

LEVELS = (0.5, 0.8, 0.9)


def gaussian(levels: tuple[float, ...], mean: torch.Tensor, sd: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Central intervals of Gaussian forecasts, (L, ...)."""
    z = torch.tensor(stats.norm.ppf([(1 + level) / 2 for level in levels])).view(-1, *(1,) * mean.ndim)
    return mean - z * sd, mean + z * sd


@pytest.mark.parametrize("sd", [0.4, 1.0, 3.0])
def test_exchangeable_windows_are_covered_as_often_as_is_said(sd: float) -> None:
    """Forecasts of a wrong width; n windows calibrate and one is tested, many times over: in columns, as steps ahead."""
    repetitions, n, generator = 20_000, 20, torch.Generator().manual_seed(0)
    mean = torch.randn(n + 1, repetitions, generator=generator, dtype=torch.float64)
    targets = mean + torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    lower, upper = gaussian(LEVELS, mean, sd)
    found = Thresholds.of(scores(lower, upper, targets)[:, :n], torch.ones(n, repetitions, dtype=torch.bool), LEVELS)
    assert found.levels == LEVELS
    for place, level in enumerate(LEVELS):
        low, high = (ends[0] for ends in moved(lower[[place], n], upper[[place], n], found.pooled[[place]]))
        covered = ((low <= targets[n]) & (targets[n] <= high)).double().mean()
        error = 3 * math.sqrt(level * (1 - level) / repetitions)
        assert level - error <= covered <= level + 1 / (n + 1) + error


def test_a_threshold_is_the_least_that_covers_enough_of_the_windows() -> None:
    """By trying every score: the least t with at least ceil((n + 1) L) of n scores at or below it."""
    random = np.random.default_rng(0)
    values, observed = random.standard_normal((30, 5)), random.random((30, 5)) < 0.8
    for level in LEVELS:
        found = threshold_by_step(torch.from_numpy(values), torch.from_numpy(observed), level)
        for step in range(5):
            own = values[observed[:, step], step]
            enough = [t for t in own if (own <= t).sum() >= math.ceil((len(own) + 1) * level)]
            assert found[step] == min(enough)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_are_those_of_mapie(level: float) -> None:
    """Its conformalised quantile regression, symmetric, whose score is in the unit of the target: of one width, the same."""
    from mapie.regression import ConformalizedQuantileRegressor
    from sklearn.dummy import DummyRegressor

    targets = np.random.default_rng(1).standard_normal(60)
    rows = np.zeros((60, 1))
    fitted = [DummyRegressor(strategy="constant", constant=c).fit(rows, targets) for c in (-0.5, 0.7, 0.1)]
    peer = ConformalizedQuantileRegressor(fitted, confidence_level=level, prefit=True).conformalize(rows, targets)
    _, expected = peer.predict_interval(rows[:1], symmetric_correction=True)
    lower, upper = torch.full((1, 60, 1), -0.5), torch.full((1, 60, 1), 0.7)
    values = scores(lower, upper, torch.from_numpy(targets)[:, None])
    found = Thresholds.of(values, torch.ones(60, 1, dtype=torch.bool), (level,))
    ends = moved(lower[:, 0], upper[:, 0], found.pooled)
    np.testing.assert_allclose([float(end) for end in ends], expected.ravel(), atol=1e-6)


def test_ends_never_cross_and_levels_are_nested() -> None:
    generator = torch.Generator().manual_seed(2)
    lower, upper = gaussian(LEVELS, torch.randn(40, 3, generator=generator, dtype=torch.float64), 1.0)
    thresholds = torch.rand(3, 40, 3, generator=generator, dtype=torch.float64) * 2 - 0.5
    low, high = moved(lower, upper, thresholds)
    assert (low <= high + 1e-12).all()
    assert (low.diff(dim=0) <= 0).all()
    assert (high.diff(dim=0) >= 0).all()
    at_most = scores(lower, upper, (lower + upper) / 2)
    torch.testing.assert_close(at_most, torch.full_like(at_most, -0.5))


def test_too_few_windows_are_refused_with_both_numbers() -> None:
    values = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0))
    found = Thresholds.of(values, torch.ones(8, 2, dtype=torch.bool), LEVELS)
    assert found.levels == (0.5, 0.8)
    with pytest.raises(ConfigError, match=r"level 0.9: 8 validation windows .* 9 are needed"):
        found.check(0.9)
    with pytest.raises(ConfigError, match=r"level 0.7 was not calibrated .* known are 0.5, 0.8"):
        found.check(0.7)
    found.check(0.8)


def test_a_group_has_its_own_thresholds_where_it_has_windows_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = ["a"] * 20 + ["b"] * 3
    values = torch.randn(3, 23, 2, generator=generator, dtype=torch.float64)
    values[:, :20] += 5
    found = Thresholds.of(values, torch.ones(23, 2, dtype=torch.bool), LEVELS, groups)
    alone = Thresholds.of(values[:, :20], torch.ones(20, 2, dtype=torch.bool), LEVELS)
    torch.testing.assert_close(found.of_group("a"), alone.pooled)
    torch.testing.assert_close(found.of_group("b")[2], found.pooled[2])  # 9 are needed
    assert (found.of_group("b")[0] < found.pooled[0]).all()  # 1 is enough
    assert found.of_windows(["a", "new", None]).shape == (3, 3, 2)


def _drifting(windows: int = 3000) -> tuple[torch.Tensor, torch.Tensor, Thresholds]:
    """Scores (1, n, 2) at 90% of windows after calibration, where the noise has become three times as large; times."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(200 + windows, 2, generator=generator, dtype=torch.float64)
    noise[200:] *= 3
    lower, upper = gaussian((0.9,), torch.zeros_like(noise), 1.0)
    values = scores(lower, upper, noise)
    start = Thresholds.of(values[:, :200], torch.ones(200, 2, dtype=torch.bool), (0.9,))
    return values[:, 200:], torch.arange(windows), start


def test_adaptive_thresholds_reach_the_level_where_fixed_ones_do_not() -> None:
    values, times, start = _drifting()
    observed = torch.ones(values.shape[1:], dtype=torch.bool)
    used, _ = tracked(start, values, observed, times, [None] * len(times), 0.05)
    fixed = (values <= start.pooled[:, None]).double().mean(1)
    assert (fixed < 0.6).all()
    assert ((values <= used).double().mean(1) - 0.9).abs().max() < 0.01


def test_nothing_after_an_origin_moves_its_thresholds() -> None:
    """Scores of every target from a time on are changed: thresholds of origins up to it stay, and a later one moves."""
    values, times, start = _drifting(200)
    observed = torch.ones(200, 2, dtype=torch.bool)
    before, _ = tracked(start, values, observed, times, [None] * 200, 0.05)
    changed = values.clone()
    for step in range(2):
        changed[:, times + step >= 100, step] = 50.0
    after, _ = tracked(start, changed, observed, times, [None] * 200, 0.05)
    torch.testing.assert_close(after[:, :101], before[:, :101])
    assert (after[:, 101:, 0] > before[:, 101:, 0]).all()
    torch.testing.assert_close(after[:, 101, 1], after[:, 101, 1].clamp(min=before[:, 101, 1]))
    assert (after[:, 102:, 1] > before[:, 102:, 1]).all()


def test_a_tracker_is_that_of_a_loop_over_time() -> None:
    """Two series whose origins interleave, against a loop that walks through time step by step; one target is missing."""
    generator = torch.Generator().manual_seed(5)
    times = torch.tensor([0, 3, 3, 4, 6, 9, 9])
    values = torch.randn(1, 7, 3, generator=generator, dtype=torch.float64)
    observed = torch.ones(7, 3, dtype=torch.bool)
    observed[2, 1] = False
    start = Thresholds((0.8,), torch.zeros(1, 3, dtype=torch.float64), torch.full((3,), 10))
    used, end = tracked(start, values, observed, times, [None] * 7, 0.3)
    for step in range(3):
        now, at = 0.0, {}
        for clock in range(30):
            origin = clock - step - 1  # whose target lies in the step before
            rows = [row for row in range(7) if times[row] == origin and observed[row, step]]
            if rows:
                misses = sum(float(values[0, row, step] > at[row]) for row in rows) / len(rows)
                now = max(now + 0.3 * (misses - 0.2), -0.5)
            for row in range(7):
                if times[row] == clock:
                    at[row] = now
        np.testing.assert_allclose(used[0, :, step], [at[row] for row in range(7)], atol=1e-12)
        assert float(end.pooled[0, step]) == pytest.approx(now, abs=1e-12)


def test_wilson_bands_are_those_of_statsmodels() -> None:
    counts = torch.tensor([10.0, 10.0, 10.0, 500.0])
    covered = torch.tensor([0.0, 9.0, 10.0, 450.0])
    lower, upper = wilson(covered / counts, counts)
    for place in range(4):
        expected = proportion_confint(covered[place], counts[place], method="wilson")
        np.testing.assert_allclose((lower[place], upper[place]), expected, atol=1e-9)
    assert wilson(torch.tensor(math.nan), torch.tensor(0.0))[0].isnan()


def test_sums_count_observed_steps_alone_and_are_drawn() -> None:
    generator = torch.Generator().manual_seed(4)
    targets = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    own = gaussian(LEVELS, torch.zeros_like(targets), 0.5)
    wide = gaussian(LEVELS, torch.zeros_like(targets), 5.0)
    observed = torch.ones(50, 3, dtype=torch.bool)
    observed[:, 2] = False
    targets[:, 2] = math.nan
    sums = IntervalSums.of(LEVELS, own, wide, targets, observed)
    metrics, found = sums.metrics(), sums.by_horizon()
    assert found["steps"] == [50, 50, 0]
    assert metrics["calibrated/width_90"] == pytest.approx(2 * 1.6448536 * 5)
    kept = targets[:, :2]
    inside = ((own[0][2, :, :2] <= kept) & (kept <= own[1][2, :, :2])).double().mean(0)
    assert found["levels"]["0.9"]["before"]["coverage"] == [*inside.tolist(), None]
    assert len(coverage_by_horizon(found).axes) == 4


def test_intervals_without_width_are_moved_in_units_of_a_given_one_and_keep_within_what_can_be() -> None:
    """Those of counts: a score puts its own target on the end of the interval that it moves."""
    lower, upper = torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 5.0, 9.0]])
    targets, width = torch.tensor([3.0, 0.0, 1.0, 6.0]), torch.tensor([1.5, 1.5, 6.0, 2.0])
    found = scores(lower, upper, targets, width)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0, 1 / 6, -3 / 8]], dtype=torch.float64))
    low, high = moved(lower, upper, found, width, 0.0)
    torch.testing.assert_close(low, torch.tensor([[0.0, 0.0, 1.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(high, torch.tensor([[3.0, 0.0, 6.0, 6.0]], dtype=torch.float64))
    narrow, wide = moved(lower, upper, torch.tensor(-0.5), width, 0.0)
    assert (narrow <= wide).all()
