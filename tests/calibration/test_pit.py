"""PIT values: uniform when they should be, by scipy's tests and by enumeration, and not otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from proxscore.calibration.pit import chi_square, pit_counts, pit_values, uniformity
from proxscore.config import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_values_are_uniform_for_any_number_of_samples_when_targets_come_from_the_same_distribution(count: int) -> None:
    values = torch.randn(count + 1, 20_000, generator=generator())
    pit = pit_values(values[1:], values[0], generator=generator(1))
    assert stats.kstest(pit.numpy(), "uniform").pvalue > 0.01
    assert uniformity(pit).chi_square_pvalue > 0.01


def test_values_are_uniform_for_counts_with_many_ties() -> None:
    values = torch.poisson(torch.full((10, 20_000), 0.7), generator=generator())
    pit = pit_values(values[1:], values[0], generator=generator(1))
    assert stats.kstest(pit.numpy(), "uniform").pvalue > 0.01


def test_a_predictive_too_narrow_puts_values_at_both_ends_and_one_too_wide_in_the_middle() -> None:
    samples, y = torch.randn(39, 5000, generator=generator()), torch.randn(5000, generator=generator(1))
    narrow = pit_counts(pit_values(0.5 * samples, y, generator=generator(2)))
    wide = pit_counts(pit_values(2 * samples, y, generator=generator(2)))
    assert narrow[[0, -1]].min() > 3 * narrow[4:6].max()
    assert wide[4:6].min() > 3 * wide[[0, -1]].max()
    for counts in (narrow, wide):
        assert chi_square(counts)[1] < 1e-6


def test_a_value_lies_in_the_cell_of_its_rank_and_ties_take_all_cells_they_cover() -> None:
    samples = torch.tensor([1.0, 2.0, 2.0, 3.0]).unsqueeze(1).expand(4, 3000)
    for y, cells in ((0.0, (0, 1)), (1.5, (1, 2)), (2.0, (1, 4)), (9.0, (4, 5))):
        pit = pit_values(samples, torch.full((3000,), y), generator=generator())
        assert float(pit.min()) == pytest.approx(cells[0] / 5, abs=0.01)
        assert float(pit.max()) == pytest.approx(cells[1] / 5, abs=0.01)


def test_missing_targets_and_samples_give_missing_values_that_count_nowhere() -> None:
    samples = torch.randn(9, 2, 3, generator=generator())
    y = torch.zeros(2, 3)
    y[0, 1] = torch.nan
    samples[4, 1, 2] = torch.nan
    pit = pit_values(samples, y, generator=generator())
    assert pit.isnan().tolist() == [[False, True, False], [False, False, True]]
    assert int(pit_counts(pit).sum()) == 4
    assert uniformity(pit).ks == pytest.approx(stats.kstest(pit[~pit.isnan()].numpy(), "uniform").statistic)


def test_counts_are_those_of_a_numpy_histogram_and_the_test_is_pearsons() -> None:
    pit = torch.cat([torch.rand(300, generator=generator(), dtype=torch.float64), torch.tensor([0.0, 1.0])])
    counts = pit_counts(pit, bins=7)
    expected, _ = np.histogram(pit.numpy(), 7, (0, 1))
    assert counts.tolist() == expected.tolist()
    statistic = ((expected - 302 / 7) ** 2 / (302 / 7)).sum()
    assert chi_square(counts) == pytest.approx((statistic, stats.chi2.sf(statistic, 6)))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shapes \(5, 3\) and \(4,\)"):
        pit_values(torch.zeros(5, 3), torch.zeros(4))
    with pytest.raises(ConfigError, match="at least 2"):
        pit_counts(torch.zeros(3), bins=1)
    with pytest.raises(ConfigError, match="from -1 to 2"):
        pit_counts(torch.tensor([-1.0, 2.0]))
    with pytest.raises(ConfigError, match="at least one observed step"):
        uniformity(torch.full((3,), torch.nan))
