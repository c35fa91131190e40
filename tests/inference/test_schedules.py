"""Schedules of the proximal step: values, units and warm-up."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from proxscore.inference import ForwardKL, Schedule


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Schedule(), 12345, 1.0),
        (Schedule("linear", length=10), 0, 1.0),
        (Schedule("linear", length=10), 5, 0.5),
        (Schedule("linear", length=10, end=0.2), 5, 0.6),
        (Schedule("linear", length=10, end=0.2), 99, 0.2),
        (Schedule("cosine", length=12), 0, 1.0),
        (Schedule("cosine", length=12), 4, 0.75),  # cos(pi / 3) = 1/2
        (Schedule("cosine", length=12, end=0.5), 6, 0.75),
        (Schedule("cosine", length=12), 12, 0.0),
        (Schedule("exponential", length=2, end=0.01), 1, 0.1),
        (Schedule("exponential", length=2, end=0.01), 50, 0.01),
        (Schedule("power", length=1, power=0.5), 3, 0.5),
        (Schedule("power", length=4, power=1.0), 12, 0.25),
        (Schedule("constant", warmup=4), 0, 0.2),
        (Schedule("constant", warmup=4), 3, 0.8),
        (Schedule("constant", warmup=4), 4, 1.0),
        (Schedule("linear", warmup=4, length=10), 9, 0.5),
    ],
)
def test_factors_are_those_of_the_formula(schedule: Schedule, step: int, expected: float) -> None:
    assert schedule.factor(step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "exponential", "power"])
def test_factors_rise_over_the_warm_up_and_never_rise_afterwards(kind: Any) -> None:
    schedule = Schedule(kind, warmup=7, end=0.1).resolve(total_steps=50, steps_per_epoch=10)
    factors = [schedule.factor(step) for step in range(60)]
    assert all(0 < a < b <= 1 for a, b in pairwise(factors[:8]))
    assert factors[7] == 1.0
    assert all(a >= b > 0 for a, b in pairwise(factors[7:]))


def test_epochs_become_steps_and_an_open_length_becomes_the_rest_of_the_run() -> None:
    resolved = Schedule("cosine", warmup=0.5, unit="epochs").resolve(total_steps=100, steps_per_epoch=20)
    assert (resolved.unit, resolved.warmup, resolved.length) == ("steps", 10, 90)
    assert resolved.factor(10) == 1.0
    assert resolved.factor(55) == pytest.approx(0.5)
    assert resolved.factor(100) == pytest.approx(0.0, abs=1e-12)
    two_epochs = Schedule("linear", length=2, unit="epochs").resolve(total_steps=100, steps_per_epoch=20)
    assert two_epochs.factor(20) == pytest.approx(0.5)
    per_epoch = Schedule("power", power=1.0, unit="epochs").resolve(total_steps=100, steps_per_epoch=20)
    assert per_epoch.factor(60) == pytest.approx(0.25)  # three epochs: 1 / (1 + 3)


def test_a_schedule_that_lacks_the_length_of_the_run_says_so() -> None:
    with pytest.raises(ValueError, match="epochs must be resolved"):
        Schedule("constant", unit="epochs").factor(0)
    with pytest.raises(ValueError, match="cosine schedule needs a length"):
        Schedule("cosine").factor(0)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"kind": "cubic"}, "kind"),
        ({"unit": "hours"}, "unit"),
        ({"warmup": -1}, "warmup"),
        ({"length": 0}, "length"),
        ({"end": 1.5}, "end"),
        ({"kind": "exponential"}, "end"),
        ({"power": 0}, "power"),
    ],
)
def test_bad_schedule_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^schedule {name} is .*$") as error:
        Schedule(**settings)
    assert "\n" not in str(error.value)


def test_a_penalty_weight_is_the_inverse_of_the_scheduled_step() -> None:
    penalty = ForwardKL(100.0, 4.0, Schedule("linear", length=10), Schedule("exponential", length=2, end=0.01))
    assert penalty.weights(5) == pytest.approx((200.0, 400.0))
    assert penalty.weights(10) == pytest.approx((math.inf, 400.0))  # a step of zero: an infinite weight


@pytest.mark.parametrize("name", ["precision", "mean"])
def test_a_penalty_weight_that_is_not_positive_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"penalty\.{name} is 0"):
        ForwardKL(**{name: 0.0})
