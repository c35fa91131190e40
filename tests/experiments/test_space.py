"""Spaces: what they suggest lies in them, what they refuse is one line, and every trial has the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from small_sweeps import KIND, SPACE, settings, tree

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.sweep.defaults import default_space
from proxscore.experiments.sweep.ledger import Ledger
from proxscore.experiments.sweep.search import Sampled
from proxscore.experiments.sweep.space import Domain, applied, check, distribution, ordered
from proxscore.inference.initial import INITIAL_NOISE
from proxscore.inference.metric import LR


def sampled(folder: Path, space: dict[str, Domain], count: int) -> list[dict[str, Any]]:
    config, _ = settings(folder)
    base = configuration.flatten(config)
    ledger = Ledger(str(folder / "sweep"), {})
    common: dict[str, Any] = {"trials": 999, "random": True, "seed": 0, "search_seed": 0, "epochs": 4}
    source = Sampled(ledger, space, base, {"nll": False}, **common)
    found = []
    for _ in range(count + 1):
        trial = source.propose()
        assert trial is not None
        ledger.add(trial)
        found.append(trial.params)
    assert found[0] == {}  # as given
    return found[1:]


def test_values_lie_in_their_domains_and_conditional_ones_appear_under_their_condition(tmp_path: Path) -> None:
    found = sampled(tmp_path, SPACE, 60)
    for params in found:
        assert 0.05 <= params["method.max_mean_step"] <= 0.8
        assert 0.1 <= params["method.penalty.mean"] <= 2
        assert ("method.penalty.mean_schedule.power" in params) == (params[KIND] == "power")
    assert {params["method.draws"] for params in found} == {1, 2, 3}
    assert {params[KIND] for params in found} == {"constant", "cosine", "power"}
    # A logarithmic scale: about half of 60 values below its middle; outside 15..45 with a probability of 1e-4.
    assert 15 < sum(params["method.max_mean_step"] < 0.2 for params in found) < 45


def test_a_condition_may_name_a_key_that_is_not_searched(tmp_path: Path) -> None:
    power = "method.penalty.mean_schedule.power"
    given = Domain(uniform=[0.25, 1.0], when={KIND: ["cosine", "power"]})  # the configuration's is cosine
    other = Domain(uniform=[0.25, 1.0], when={KIND: "power"})
    assert all(power in params for params in sampled(tmp_path / "a", {power: given}, 5))
    assert all(power not in params for params in sampled(tmp_path / "b", {power: other}, 5))


def test_keys_come_after_those_that_their_conditions_name() -> None:
    chain = {"c": Domain(choice=[1], when={"b": 1}), "b": Domain(choice=[1], when={"a": 1}), "a": Domain(choice=[1])}
    assert ordered(chain) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="depend on each other"):
        ordered({"a": Domain(choice=[1], when={"b": 1}), "b": Domain(choice=[1], when={"a": 1})})


def test_every_trial_has_as_many_gradient_evaluations_as_the_given_configuration(tmp_path: Path) -> None:
    config, _ = settings(tmp_path)
    for params in ({}, {"method.paired": True}, {"method.draws": 3}, {"method.draws": 2, "method.paired": True}):
        changed = applied(config, params)
        assert changed.training.epochs * changed.method.evaluations_per_step() == pytest.approx(4)
        assert changed.training.validate_every * changed.method.evaluations_per_step() == pytest.approx(1)
    assert applied(config, {"method.prior.scale": 0.3}).method.prior.scale == 0.3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "domain", "message"),
    [
        ("method.max_mean_stp", {"uniform": [0, 1]}, "unknown key 'method.max_mean_stp'; did you mean 'max_mean_step'"),
        ("method.penalty.mean", {"uniform": [2, 1]}, r"uniform is \[2, 1\]: an empty range"),
        ("method.penalty.mean", {"uniform": [1, 1]}, "an empty range"),
        ("method.penalty.mean", {"loguniform": [0, 1]}, "loguniform starts at 0: a logarithmic scale needs a positive"),
        ("method.penalty.mean", {"uniform": [-1, 1]}, "greater than 0"),
        ("method.penalty.mean", {"choice": []}, "choice is empty"),
        ("method.penalty.mean", {"choice": [1, 1]}, "list different values"),
        ("method.penalty.mean", {"choice": [[1]]}, "list numbers, texts"),
        ("method.penalty.mean", {}, "no domain: give one of choice, uniform"),
        ("method.penalty.mean", {"choice": [1], "uniform": [1, 2]}, "has choice and uniform"),
        ("method.penalty.mean", {"uniform": [1, 2, 3]}, "give two ends"),
        (
            "method.penalty.mean",
            {"uniform": [1, 2], "when": {"method.kindd": 1}},
            "'method.kindd' is no key of the space",
        ),
        ("method.draws", {"randint": [0, 2]}, "greater than or equal to 1"),
        ("training.epochs", {"uniform": [1, 2]}, "every trial has the same budget: leave it out"),
        ("evaluation.draws", {"randint": [1, 2]}, "the objective would change its meaning"),
        ("seed", {"randint": [1, 2]}, "good settings are repeated from other seeds"),
        (f"{KIND}", {"choice": ["constant", "cosin"]}, "cosin"),
    ],
)
def test_what_no_trial_could_be_made_from_is_one_line_with_the_key(
    key: str, domain: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config, _ = settings(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        check({key: Domain(**domain)}, config)
    assert f"tune.space.{key}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": {"metric": "adaptive"}},
        {"method": {"paired": True, "temperature": 0.5}},
        {"method": {"penalty": {"precision": 77.0}}},
    ],
)
def test_default_spaces_are_valid_and_hold_the_given_values(changes: dict[str, Any], tmp_path: Path) -> None:
    config = configuration.parse(tree(tmp_path, **changes))
    space = default_space(config, 16)
    check(space, config)
    flat = configuration.flatten(config)
    of_null = {"method.lr": LR, "method.max_mean_step": 0.1, "method.penalty.precision": 16.0}
    of_null["method.initial_noise"] = INITIAL_NOISE
    for key, domain in space.items():
        value = flat[key] if flat[key] is not None else of_null[key]
        assert distribution(domain)._contains(distribution(domain).to_internal_repr(value)), key


def test_other_methods_have_their_rate_and_those_without_one_are_refused(tmp_path: Path) -> None:
    adamw = configuration.parse(tree(tmp_path) | {"method": {"kind": "adamw", "lr": 0.01}})
    assert default_space(adamw, 16) == {"method.lr": Domain(loguniform=[0.001, 0.1])}
    dropout = configuration.parse(tree(tmp_path) | {"method": {"kind": "mc_dropout"}})
    with pytest.raises(ConfigError, match=r"tune\.space: method\.kind=mc_dropout has no default space: give one"):
        default_space(dropout, 16)


def test_domains_are_what_optuna_has() -> None:
    assert distribution(Domain(randint=[1, 3])) == optuna.distributions.IntDistribution(1, 3)
    assert distribution(Domain(loguniform=[0.1, 1])) == optuna.distributions.FloatDistribution(0.1, 1, log=True)
