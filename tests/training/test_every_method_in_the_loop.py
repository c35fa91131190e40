"""Every method on the digits: a run that died and was resumed is the one that did not, and what it saved predicts the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proxscore import config as configuration
from proxscore.config import METHODS as KINDS
from proxscore.config import Config
from proxscore.posterior import Posterior, Samples
from proxscore.training import run as training_run
from proxscore.training.data.batches import TrainingData
from proxscore.training.evaluation import evaluate
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop import fit
from proxscore.training.loop.train import train
from proxscore.vision.image_task import ImageTask

CNN = {"name": "small_cnn", "kwargs": {"width": 2, "hidden": 4}}
VIT = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "proj_drop_rate": 0.2},
}
METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd"},
    "elbo": {"kind": "elbo"},
    "ivon": {"kind": "ivon"},
    "laplace": {"kind": "laplace"},
    "mc_dropout": {"kind": "mc_dropout", "of": {"kind": "sgd", "lr": 0.01}},
    "sgld": {"kind": "sgld", "samples": 2, "cycles": 2, "exploration": 0.3},
    "sghmc": {"kind": "sghmc", "samples": 2, "cycles": 2, "exploration": 0.3},
    "swag": {"kind": "swag", "collect_every": 0.5, "start": 0.3},
    "ensemble": {"kind": "ensemble", "members": 3},
    "ensemble of samplers": {
        **{"kind": "ensemble", "members": 2, "budget": "shared"},
        "of": {"kind": "sghmc", "samples": 2, "cycles": 1, "exploration": 0.0},
    },
}
TEMPERED = ("sgd", "ensemble")
STEPS = 6  # two epochs of three; 40 + 40 + 20 of 100 rows


def tree(method: str) -> Config:
    return configuration.parse(
        {
            "name": "small",
            "task": {"model": VIT if method == "mc_dropout" else CNN, "data": {"kind": "digits", "limit": 100}},
            "method": METHODS[method],
            "training": {"epochs": 2, "batch_size": 40, "workers": 0, "device": "cpu", "checkpoint_every": 0.3},
            "evaluation": {"draws": 4, "validation_draws": 1, "temperature_scaling": method in TEMPERED},
            "tracking": {"interval": 0},
        }
    )


class Run:
    """One run in a folder; ``go`` starts or resumes it, and dies after reporting a step if asked."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config, self.task = folder, config, ImageTask(config.task)
        self.records: list[dict[str, float]] = []

    def go(self, die_at: int | None = None) -> dict[str, Any]:
        def sink(payloads: list[dict[str, Any]]) -> None:
            self.records += payloads[0]["records"]
            if payloads[0]["step"] == die_at:
                raise InterruptedError

        with LocalWorker(self.folder, torch.device("cpu"), sink, keep=2) as worker:
            return train(self.config, self.config.method, self.config.training.epochs, self.task, worker)

    def posterior(self) -> Posterior:
        return Posterior.load(sorted((self.folder / "checkpoints").iterdir())[-1] / "posterior")


def test_no_method_is_missing_here() -> None:
    assert set(KINDS.kinds()) - {settings["kind"] for settings in METHODS.values()} == {"proximal_score", "adamw"}


@pytest.mark.parametrize(("method", "behind"), [*((method, False) for method in METHODS), ("ensemble", True)])
def test_a_resumed_run_is_the_one_that_did_not_stop_and_its_posterior_predicts_as_it_did(
    method: str, behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoints that training waits for, or ``behind`` training."""
    whole, broken = Run(tmp_path / "whole", tree(method)), Run(tmp_path / "broken", tree(method))
    results = whole.go()
    monkeypatch.setitem(fit.WRITTEN_BEHIND, "cpu", behind)
    for die_at in (2, results["steps"] - 1):  # of an ensemble: in the first and in the last member
        with pytest.raises(InterruptedError):
            broken.go(die_at)
    resumed = broken.go()
    assert resumed["test"] == results["test"]
    (_, ours), (_, theirs) = broken.posterior().pack(), whole.posterior().pack()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())

    check_budget(whole, method, results)
    check_saved(whole, method, results["test"])


def check_budget(run: Run, method: str, results: dict[str, Any]) -> None:
    """An ensemble says what it costs: its members' evaluations, or the same epochs divided among them."""
    members = METHODS[method].get("members", 1)
    shared = METHODS[method].get("budget") == "shared"
    assert results["steps"] == results["evaluations"] == (STEPS if shared else STEPS * members)
    assert results["evaluations"] == STEPS * run.config.method.evaluations_per_step()
    assert [record["step"] for record in run.records] == list(range(1, results["steps"] + 1))


def check_saved(run: Run, method: str, results: dict[str, dict[str, float]]) -> None:
    """The posterior on disk predicts as the run did, and temperature scaling is a variant of each result."""
    posterior = run.posterior()
    plain = {"sgd": {"point"}}.get(method, {"posterior", posterior.single})
    if isinstance(posterior, Samples):
        first, *others = [member.mean["head.weight"] for member in posterior.members]
        assert not any(torch.equal(first, other) for other in others)
    assert set(results) == plain | {f"{name}_tempered" for name in plain if method in TEMPERED}
    module = posterior.load_into(run.task.build_model())
    worker = LocalWorker(run.folder / "other", torch.device("cpu"), lambda payloads: None, keep=1)
    data = TrainingData(run.task.data.train, 40, rank=0, world=1, seed=0)
    loaded = training_run.Run(run.config, run.task, worker, module, data)
    for name in plain:
        draws = 4 if name == "posterior" else 0
        metrics, _ = evaluate(loaded, "test", draws, posterior)
        assert metrics == pytest.approx(results[name], rel=1e-5, abs=1e-6)
        if method in TEMPERED:
            warm = results[f"{name}_tempered"]
            assert warm["accuracy"] == metrics["accuracy"]
            assert warm["temperature"] > 0
            assert "mutual_information" not in warm
