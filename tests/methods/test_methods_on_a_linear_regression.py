"""What the theory of each method promises on a linear regression, whose posterior N(m, A^-1) is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_problems import ROWS, copies_trial, regression, section

PRIOR = 4.0  # precision
COPIES = 50
POINTS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "lr": 0.05, "weight_decay": PRIOR / ROWS},
    "adamw": {"kind": "adamw", "lr": 0.05, "weight_decay": 0.0},
}
MEAN_FIELDS: dict[str, dict[str, Any]] = {
    "elbo": {"kind": "elbo", "prior": {"scale": PRIOR**-0.5}, "lr": 0.02, "initial_scale": 0.1},
    "ivon": {"kind": "ivon", "weight_decay": PRIOR / ROWS, "lr": 0.1, "hess_init": 1.0, "beta2": 0.995},
}


@pytest.mark.parametrize("name", POINTS)
def test_a_point_estimate_is_the_mode_from_mini_batches_too(name: str) -> None:
    """SGD's weight decay is a prior. AdamW's is none (it is decoupled from the gradient's scale): without it, the MLE."""
    mode, covariance = regression().exact(PRIOR if name == "sgd" else 0.0)
    for batch, tolerance in ((ROWS, 0.02), (40, 0.1)):
        weight = copies_trial(section(**POINTS[name]), 1, 400, batch).go().posterior().mean["weight"]
        assert ((weight - mode).abs() / covariance.diagonal().sqrt()).max() < tolerance


@pytest.mark.parametrize("name", MEAN_FIELDS)
def test_a_mean_field_has_the_posteriors_mean_and_the_diagonal_of_its_precision(name: str) -> None:
    """The optimum of the ELBO. Each copy's estimate is noisy; their average is not, by a factor of sqrt(COPIES)."""
    mean, covariance = regression().exact(PRIOR)
    trial = copies_trial(section(**MEAN_FIELDS[name]), COPIES, 2000, 60).go()
    posterior = trial.posterior()
    deviation = (posterior.mean["weight"] - mean) / covariance.diagonal().sqrt()
    assert deviation.abs().max() < 0.5  # of a copy, in posterior standard deviations
    assert deviation.mean(0).abs().max() < 0.1
    ratio = posterior.precision["weight"] / torch.linalg.inv(covariance).diagonal()
    assert ratio.mean(0).sub(1).abs().max() < 0.05
