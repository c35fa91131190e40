"""What a configuration section makes of the length of a run."""

from __future__ import annotations

import pytest
from method_problems import section
from torch import nn

from proxscore.inference import ProximalScore
from proxscore.methods import RunLength, Setup, build_method


def built(**settings: object) -> ProximalScore:
    """Of a run of 40 steps in 4 epochs."""
    method = build_method(
        section(kind="proximal_score", initial_precision=0.1, **settings),
        Setup(nn.Linear(2, 1), RunLength(40, 10, 100)),
    )
    assert isinstance(method, ProximalScore)
    return method


def test_a_prior_that_warms_up_counts_in_full_after_its_epochs() -> None:
    schedule = built(prior_warmup=1.5).prior_schedule
    assert schedule is not None
    factors = [schedule.factor(step) for step in range(40)]
    assert factors[15:] == [1.0] * 25
    assert factors[:15] == pytest.approx([(step + 1) / 16 for step in range(15)])


def test_without_it_the_prior_counts_from_the_first_step_on() -> None:
    schedule = built().prior_schedule
    assert schedule is None or [schedule.factor(step) for step in range(40)] == [1.0] * 40


def test_the_precisions_weight_is_the_number_of_steps_and_the_means_step_ends_at_zero() -> None:
    penalty = built().penalty
    assert penalty.precision == 40
    assert penalty.mean_schedule.factor(5) == pytest.approx(1.0)  # after a warm-up of half an epoch
    assert penalty.mean_schedule.factor(40) == pytest.approx(0.0, abs=1e-6)
