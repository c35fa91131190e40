"""Defaults of a method that depend on the task: weights that are given are what the prior is about."""

from __future__ import annotations

from typing import Any

import pytest

from proxscore import config as configuration


def prior_mean(task: dict[str, Any], method: dict[str, Any]) -> str:
    found: Any = configuration.parse({"task": task, "method": method}).method
    return str(getattr(found, "of", found).prior.mean)


GIVEN = [
    {"weights": "model.safetensors"},
    {"pretrained": True},
    {"weights": "models:/network@champion"},
]


@pytest.mark.parametrize("model", GIVEN)
@pytest.mark.parametrize("kind", ["proximal_score", "elbo", "sgld", "sghmc"])
def test_the_prior_is_about_the_weights_that_are_given(model: dict[str, Any], kind: str) -> None:
    task = {"model": {"name": "resnet18"} | model}
    assert prior_mean(task, {"kind": kind}) == "initial"
    assert prior_mean(task, {"kind": kind, "prior": {"scale": 2.0}}) == "initial"
    assert prior_mean(task, {"kind": kind, "prior": {"mean": "zero"}}) == "zero"
    assert prior_mean({"model": {"name": "resnet18"}}, {"kind": kind}) == "zero"
    assert prior_mean(task, {"kind": "ensemble", "members": 2, "of": {"kind": kind}}) == "initial"


def test_without_a_kind_the_method_is_proximal_score_matching() -> None:
    assert prior_mean({"model": {"weights": "model.pt"}}, {}) == "initial"


def test_methods_without_a_prior_get_none() -> None:
    found = configuration.parse({"task": {"model": {"weights": "model.pt"}}, "method": {"kind": "adamw"}}).method
    assert found.kind == "adamw"
