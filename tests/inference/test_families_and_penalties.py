"""Every family with every penalty: all numbers stay finite and all precisions positive, whatever the curvature's sign."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from proxscore.inference import (
    ForwardKL,
    FullCovariance,
    GradientSolver,
    Kronecker,
    LowRank,
    MeanField,
    Mixture,
    NoPenalty,
    ProximalScore,
    Quadratic,
    ReverseKL,
)
from proxscore.posterior import Posterior
from proxscore.posterior.checks import check_tensors

FAMILIES = [MeanField(), FullCovariance(), LowRank(2), Kronecker(), Mixture(2)]


@pytest.mark.parametrize("penalty", [ForwardKL, ReverseKL, Quadratic, NoPenalty])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.kind)
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("bend", [1.0, -1.0], ids=["convex", "concave"])
def test_the_state_stays_a_distribution(family: Any, penalty: Any, paired: bool, bend: float) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 2, bias=False)
    try:
        optimizer = ProximalScore(
            module.named_parameters(),
            50,
            family=family,
            penalty=penalty(precision=2.0),
            paired=paired,
            metric="posterior",
            initial_precision=0.1,
        )
    except ValueError as error:  # a penalty without a form for a family that the gradient solver moves: said at once
        assert "penalty" in str(error)  # noqa: PT017
        return
    for _ in range(10):
        for _ in optimizer.draws():
            (bend * sum(p.square().sum() for p in module.parameters())).backward()
        optimizer.step()
    check_tensors(Posterior.of(module, optimizer), "state")


@pytest.mark.parametrize("penalty", [Quadratic, NoPenalty])
def test_a_solved_full_covariance_with_them_stays_finite(penalty: Any) -> None:
    module = nn.Linear(3, 2)
    try:
        optimizer = ProximalScore(
            module.named_parameters(),
            50,
            family=FullCovariance(),
            penalty=penalty(precision=2.0),
            solver=GradientSolver(2),
            metric="posterior",
            initial_precision=0.1,
            paired=True,
        )
    except ValueError as error:
        assert "penalty" in str(error)  # noqa: PT017
        return
    for _ in range(6):
        for _ in optimizer.draws():
            (-sum(p.square().sum() for p in module.parameters())).backward()
        optimizer.step()
    check_tensors(Posterior.of(module, optimizer), "state")
