"""The preset for networks trains one that AdamW trains, without another setting."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from proxscore.inference import ProximalScore, presets
from proxscore.posterior import Posterior, predict


def test_the_preset_for_networks_separates_what_no_line_does() -> None:
    """Two interleaved spirals: draws of the posterior classify new points; the log loss of guessing is log 2 = .69."""
    generator = torch.Generator().manual_seed(0)

    def spirals(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(rows) % 2
        angle = 6 * torch.rand(rows, generator=generator).sqrt()
        turn = angle + torch.pi * labels
        points = torch.stack([angle * turn.cos(), angle * turn.sin()], 1) / 3
        return points + 0.02 * torch.randn(rows, 2, generator=generator), labels

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    inputs, labels = spirals(1000)
    steps = 1500
    optimizer = ProximalScore(module.named_parameters(), 100_000, **presets.network(steps))
    for _ in range(steps):
        rows = torch.randint(len(inputs), (100,), generator=generator)
        for _ in optimizer.draws():
            nn.functional.cross_entropy(module(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    test = spirals(500)
    predictive = predict(module, [test], Posterior.of(module, optimizer), draws=8)
    assert (predictive.mean.argmax(1) == test[1]).float().mean() > 0.95
    assert -predictive.log_density.mean() < 0.2


def test_a_run_has_a_step_at_least() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        presets.network(0)
