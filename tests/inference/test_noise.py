"""Noise keyed by global index: independent of sharding, standard normal, different wherever the key differs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from proxscore.inference import noise

TOTAL = 200_000  # several pieces


def draw(
    seed: int, start: int = 0, count: int = TOTAL, total: int = TOTAL, dtype: torch.dtype = torch.float32
) -> Tensor:
    result = torch.full((count,), float("nan"), dtype=dtype)
    for piece, values in noise.NormalStream(torch.device("cpu"), dtype).pieces(seed, start, count):
        result[piece] = values
    return result


@pytest.mark.parametrize(
    "cuts", [[0, 1, 2, 65_535, 65_537, TOTAL], [0, 0, 131_072, 131_072, TOTAL], [0, 70_001, TOTAL]]
)
def test_pieces_of_any_cut_join_to_the_whole(cuts: list[int]) -> None:
    pieces = [draw(5, low, high - low) for low, high in pairwise(cuts)]
    assert torch.equal(torch.cat(pieces), draw(5))


@pytest.mark.parametrize("total", [1, 3, 15, 17, 100])
def test_pieces_of_a_small_parameter_join_to_the_whole(total: int) -> None:
    whole = draw(5, 0, total, total)
    assert whole.isfinite().all()
    for cut in range(total):
        assert torch.equal(torch.cat([draw(5, 0, cut, total), draw(5, cut, total - cut, total)]), whole)


def test_noise_is_standard_normal() -> None:
    values = draw(1).double()
    assert abs(values.mean()) < 5 * TOTAL**-0.5
    assert abs(values.var() - 1) < 5 * (2 / TOTAL) ** 0.5
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize(
    "other",
    [
        noise.key(1, "draw", 0, 0),
        noise.key(0, "draw", 1, 0),
        noise.key(0, "draw", 0, 1),
        noise.key(0, "posterior", 0, 0),
    ],
    ids=["seed", "step", "draw", "purpose"],
)
def test_noise_of_another_seed_step_or_draw_is_uncorrelated(other: int) -> None:
    first, second = draw(noise.key(0, "draw", 0, 0)), draw(other)
    correlation = (first * second).mean().item()
    assert abs(correlation) < 5 * TOTAL**-0.5
    assert not torch.equal(first, second)


def test_noise_of_different_blocks_and_parameters_is_uncorrelated() -> None:
    values = draw(0)
    block = noise.PIECE["cpu"]
    assert abs((values[:block] * values[block : 2 * block]).mean().item()) < 5 * block**-0.5
    layer = noise.key(noise.key(0, "draw", 0, 0), "layer.weight"), noise.key(noise.key(0, "draw", 0, 0), "layer.bias")
    assert abs((draw(layer[0]) * draw(layer[1])).mean().item()) < 5 * TOTAL**-0.5


def test_keys_do_not_collide_on_a_grid_and_depend_on_the_order() -> None:
    grid = {noise.key(seed, "draw", step, index) for seed in range(10) for step in range(1000) for index in range(4)}
    assert len(grid) == 40_000
    assert noise.key(1, 2) != noise.key(2, 1)
    assert all(0 <= value < 1 << 64 for value in grid)
