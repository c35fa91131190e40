"""Two moons: every method separates them, and the Bayesian ones know less far away from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_problems import moons, moons_trial, section

from proxscore.posterior import Samples, predict

POINTS: dict[str, dict[str, Any]] = {"adamw": {"kind": "adamw", "lr": 0.01}, "sgd": {"kind": "sgd"}}
BAYESIAN: dict[str, dict[str, Any]] = {
    "elbo": {"kind": "elbo", "lr": 0.02},
    "ivon": {"kind": "ivon"},
    "ensemble": {"kind": "adamw", "lr": 0.01},
    "mc_dropout": {"kind": "mc_dropout", "of": {"kind": "adamw", "lr": 0.01}},
    "sgld": {"kind": "sgld"},
    "sghmc": {"kind": "sghmc"},
    "laplace": {"kind": "laplace", "of": {"kind": "adamw", "lr": 0.01}},
    "swag": {"kind": "swag", "lr": 0.1, "swag_lr": 0.1},
}


def entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    return -(log_probabilities.exp() * log_probabilities).sum(1)


@pytest.mark.parametrize("name", [*POINTS, *BAYESIAN])
def test_a_method_separates_the_moons_and_its_draws_disagree_far_away(name: str) -> None:
    """What draws disagree on, mutual information, is epistemic: larger between the moons and beyond than on them."""
    members = [
        moons_trial(section(**(POINTS | BAYESIAN)[name]), 400, dropout=0.1 if name == "mc_dropout" else 0.0, seed=seed)
        for seed in range(4 if name == "ensemble" else 1)
    ]
    trial, *others = [member.go() for member in members]
    posterior = Samples([t.posterior() for t in (trial, *others)]) if others else trial.posterior()
    x, y = moons(seed=1, rows=500)
    angles = torch.linspace(0, 2 * torch.pi, 101)[:-1]
    away = torch.tensor([0.5, 0.25]) + 6 * torch.stack([angles.cos(), angles.sin()], 1)
    inputs = torch.cat([x, away])
    targets = torch.cat([y, torch.zeros(len(away), dtype=y.dtype)])
    predictive = predict(trial.module, lambda: [(inputs, targets)], posterior, draws=30)
    accuracy = (predictive.log_probabilities[: len(x)].argmax(1) == y).double().mean()
    total = entropy(predictive.log_probabilities)
    knowledge = total - predictive.expected_entropy
    near, far = knowledge[: len(x)].mean(), knowledge[len(x) :].mean()
    assert accuracy > 0.93
    if name in BAYESIAN:
        assert far > near > 0
    else:
        assert far == pytest.approx(0, abs=1e-5)
