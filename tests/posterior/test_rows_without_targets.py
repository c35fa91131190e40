"""Batches of inputs alone are predicted as those with targets; statistics of draws that were kept are those of a refresh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from proxscore.config import ConfigError
from proxscore.inference import Categorical, Gaussian, MultiLabel
from proxscore.posterior import Posterior, predict
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.drawn import drawn

LIKELIHOODS = {"categorical": Categorical(), "gaussian": Gaussian(), "multi_label": MultiLabel()}


def problem() -> tuple[nn.Module, Posterior, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    mean = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    return module, Posterior(mean, {n: torch.full_like(p, 20.0) for n, p in mean.items()}, buffers), torch.randn(40, 5)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_rows_without_targets_have_the_same_predictive(kind: str) -> None:
    module, posterior, x = problem()
    targets = torch.zeros(40, dtype=torch.long) if kind == "categorical" else torch.zeros(40, 3)
    likelihood = LIKELIHOODS[kind]
    known = predict(module, [(x, targets)], posterior, likelihood=likelihood, draws=4)
    for batches in ([x], [(x,)], DataLoader(TensorDataset(x), batch_size=7), [([x],)]):
        unknown = predict(module, batches, posterior, likelihood=likelihood, draws=4)
        torch.testing.assert_close(unknown.mean, known.mean)
    if kind == "categorical":
        with pytest.raises(ConfigError, match="no targets"):
            _ = unknown.log_density
    else:
        assert unknown.log_density.isnan().all()


def test_kept_statistics_are_those_of_the_refresh(tmp_path: Path) -> None:
    module, posterior, x = problem()
    training = [(torch.randn(32, 5) * 3 + 1, torch.zeros(32))]
    right = {n: predict(module, [x], posterior, draws=n, refresh=training, seed=5).mean for n in (0, 4)}
    found = []
    for draws in (4, 0):
        with drawn(module, posterior, draws, 5, training) as ready:
            found.append(ready.statistics())
    DrawStatistics.of(5, *found).save(tmp_path)
    kept = DrawStatistics.load(tmp_path)
    assert kept is not None
    assert kept.draws == 4
    for n, expected in right.items():
        torch.testing.assert_close(predict(module, [x], posterior, draws=n, refresh=kept, seed=5).mean, expected)
        assert not torch.allclose(predict(module, [x], posterior, draws=n, seed=5).mean, expected)
    with pytest.raises(ConfigError, match="of 4 draws"):
        predict(module, [x], posterior, draws=5, refresh=kept, seed=5)
    with pytest.raises(ConfigError, match="seed 5 alone"):
        predict(module, [x], posterior, draws=4, refresh=kept, seed=6)


def test_damaged_statistics_are_named(tmp_path: Path) -> None:
    (tmp_path / "draw_statistics.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"draw_statistics\.safetensors: damaged"):
        DrawStatistics.load(tmp_path)
    assert DrawStatistics.load(tmp_path / "elsewhere") is None


def test_statistics_of_an_earlier_versions_draws_are_refused_and_those_of_the_mean_are_not(tmp_path: Path) -> None:
    """Their noise was another: the draws of the same number are others."""
    module, posterior, x = problem()
    training = [(torch.randn(32, 5) * 3 + 1, torch.zeros(32))]
    found = []
    for draws in (4, 0):
        with drawn(module, posterior, draws, 5, training) as ready:
            found.append(ready.statistics())
    DrawStatistics.of(5, *found).save(tmp_path)
    path = tmp_path / "draw_statistics.safetensors"
    save_file(load_file(path), path, metadata={"seed": "5"})  # as it was written before
    kept = DrawStatistics.load(tmp_path)
    assert kept is not None
    with pytest.raises(ConfigError, match="an earlier version's draws"):
        predict(module, [x], posterior, draws=4, refresh=kept, seed=5)
    with pytest.raises(ConfigError, match="an earlier version's draws"):
        _ = kept.draws
    expected = predict(module, [x], posterior, draws=0, refresh=training, seed=5).mean
    torch.testing.assert_close(predict(module, [x], posterior, draws=0, refresh=kept, seed=5).mean, expected)
