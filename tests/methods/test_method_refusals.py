"""What a method cannot do is refused in one line that names the setting, before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from method_problems import section
from torch import nn

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, EvaluationConfig
from proxscore.methods import RunLength, Setup, build_method, check_running_statistics
from proxscore.training import launch
from proxscore.training.sharding import meshes
from proxscore.vision.task import ModelConfig, VisionConfig

HORIZON = RunLength(total_steps=20, steps_per_epoch=4, data_size=200)


def tree(method: dict[str, Any], **training: Any) -> Config:
    return configuration.parse(
        {
            "name": "refused",
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 2, "hidden": 4}},
                "data": {"kind": "digits", "limit": 200},
            },
            "method": method,
            "training": {"epochs": 5, "batch_size": 50, "workers": 0, "device": "cpu"} | training,
        }
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no dropout": ({"kind": "mc_dropout"}, r"method\.kind=mc_dropout: the network has no dropout layer"),
    "no step after burn-in": (
        {"kind": "sghmc", "burn_in": 5},
        r"method\.burn_in=5 epochs is the whole run \(5 epochs\)",
    ),
    "burn-in of a longer run": ({"kind": "sgld", "burn_in": 9}, r"method\.burn_in=9 epochs is the whole run"),
    "more samples than steps": ({"kind": "sgld", "samples": 12}, r"method\.samples=12: 4 of the run's 20 steps"),
    "one collection": (
        {"kind": "swag", "start": 0.8},
        r"method\.collect_every=1 epochs leaves 1 collections in the 4 steps",
    ),
    "a member's": (
        {"kind": "ensemble", "of": {"kind": "sgld", "burn_in": 1, "samples": 1}, "budget": "shared", "members": 5},
        r"method\.burn_in=1 epochs is the whole run \(1 epochs\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_does_not_fit_network_or_run_is_refused_before_a_run_exists(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message) as refusal:
        launch.run(tree(method))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_draws_below_batch_norm_need_batches_for_its_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    samples = section(kind="sgld")
    with pytest.raises(
        ConfigError, match=r"evaluation\.norm_batches=0: the network has 1 BatchNorm layers \(1, \.\.\.\)"
    ):
        check_running_statistics(samples, network, 0)
    with pytest.raises(ConfigError, match=r"belong to no draw of method\.kind=elbo"):
        check_running_statistics(section(kind="ensemble", of={"kind": "elbo"}), network, 0)
    check_running_statistics(samples, network, 1)
    check_running_statistics(samples, nn.Linear(8, 2), 0)
    for fixed in (
        {"kind": "adamw"},
        {"kind": "laplace"},
        {"kind": "proximal_score", "prior": {"select": "last_layer"}},
    ):
        check_running_statistics(section(**fixed), network, 0)
    monkeypatch.chdir(tmp_path)
    task = VisionConfig(model=ModelConfig(name="resnet10t"))
    config = tree({"kind": "sgld", "samples": 1}).model_copy(
        update={"task": task, "evaluation": EvaluationConfig(norm_batches=0)}
    )
    with pytest.raises(ConfigError, match=r"evaluation\.norm_batches=0: the network has \d+ BatchNorm layers"):
        launch.run(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["ivon", "laplace"])
def test_a_method_that_cannot_shard_says_so(kind: str) -> None:
    for workers in (0, 1):
        config = tree({"kind": kind}, workers=workers)
        assert meshes.arrangement(config, config.method) == (1, 1, 1)
    config = tree({"kind": kind}, workers=2)
    with pytest.raises(
        ConfigError, match=rf"^training\.workers=2: {kind} works on one worker; use training\.workers=0 or 1$"
    ):
        meshes.arrangement(config, config.method)


@pytest.mark.parametrize(
    ("of", "shards"),
    [
        ({"kind": "adamw"}, True),
        ({"kind": "proximal_score"}, True),
        ({"kind": "laplace"}, False),
        ({"kind": "proximal_score", "family": {"kind": "low_rank"}}, False),
        ({"kind": "proximal_score", "families": {"head.*": {"kind": "full_covariance"}}}, False),
    ],
)
def test_an_ensemble_shards_where_its_members_posteriors_do(of: dict[str, Any], shards: bool) -> None:
    assert section(kind="ensemble", of=of).shards is shards


def test_laplace_needs_a_linear_last_layer_and_a_covariance_that_fits() -> None:
    convolution = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    with pytest.raises(ConfigError, match=r"method\.subset=last_layer: the last layer, 1, is Conv1d and not Linear"):
        build_method(section(kind="laplace"), Setup(convolution, HORIZON))
    wide = nn.Sequential(nn.Linear(200, 200))
    with pytest.raises(ConfigError, match=r"method\.structure=full: family full_covariance: 40,200 numbers"):
        build_method(section(kind="laplace", subset="all"), Setup(wide, HORIZON))
    many = nn.Sequential(nn.Linear(64, 1000))
    with pytest.raises(
        ConfigError, match=r"each row's Jacobian, 1,000 outputs x 65,000 weights, 0\.3 GB; at most 0\.13 GB"
    ):
        build_method(section(kind="laplace", structure="diag"), Setup(many, HORIZON))


@pytest.mark.parametrize(("kind", "package"), [("ivon", "ivon"), ("laplace", "laplace")])
def test_a_package_that_is_not_installed_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "proxscore.methods.ivon_optimizer", raising=False)
    with pytest.raises(ConfigError, match=rf"method\.kind={kind} needs the package {package}: .*proxscore\[peers\]"):
        build_method(section(kind=kind), Setup(nn.Linear(2, 2), HORIZON))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.kind=ensemble", "method.of.kind=sgd", "method.of.lrr=1"],
            r"key 'method\.of\.lrr'; did you mean 'lr'",
        ),
        (["method.kind=ensemble", "method.of.kind=ensemble"], r"method\.of\.kind is 'ensemble'; it must be one of"),
        (["method.kind=sghmc", "method.frictoin=1"], r"unknown key 'method\.frictoin'; did you mean 'friction'"),
        (["method.kind=sghmc", "method.friction=0"], r"method\.friction is 0"),
        (["method.kind=ensemble", "method.members=1"], r"method\.members is 1"),
    ],
)
def test_a_key_of_a_method_that_does_not_exist_is_named_with_its_section(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configuration.load(overrides=overrides)
