"""Every method that shards, on two gloo ranks: losses, metrics and posterior are those of one plain process.

Not Monte Carlo dropout: every rank draws masks for its own rows.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from proxscore import config as configuration
from proxscore.config import METHODS as KINDS
from proxscore.config import Config
from proxscore.posterior import Posterior
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.training.sharding import meshes
from proxscore.vision.image_task import ImageTask

RANKS = 2
TOLERANCE = 2e-4  # of losses (nats) and of weights: float32 summed in another order, over twelve steps
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw"},
    "sgd": {"kind": "sgd"},
    "elbo": {"kind": "elbo", "draws": 2},
    "sgld": {"kind": "sgld", "samples": 3, "cycles": 2, "exploration": 0.3},
    "sghmc": {"kind": "sghmc", "samples": 3, "cycles": 2, "exploration": 0.3},
    "swag": {"kind": "swag", "collect_every": 0.25, "start": 0.3, "rank": 3},
    "ensemble": {"kind": "ensemble", "members": 2, "of": {"kind": "proximal_score", "initial_noise": 0.02}},
    "ensemble of swag": {
        **{"kind": "ensemble", "members": 2, "budget": "shared"},
        "of": {"kind": "swag", "collect_every": 0.25, "start": 0.0, "rank": 2},
    },
}


def tree(method: str, workers: int) -> Config:
    return configuration.parse(
        {
            "name": "sharded",
            "task": {
                "model": {
                    "name": "vit_tiny_patch16_224",
                    "kwargs": {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
                    | {"qkv_bias": False},  # the gradient of a key's bias is zero but for rounding
                },
                "data": {"kind": "digits", "limit": 121},  # the last batch has one row: one rank has none
            },
            "method": METHODS[method],
            "training": {
                "epochs": 3,
                "batch_size": 40,
                "workers": workers,
                "device": "cpu",
                "validate_every": 3,
                "checkpoint_every": 1,
            },
            "evaluation": {"draws": 2, "validation_draws": 1},
            "tracking": {"interval": 0},
        }
    )


def run(method: str, folder: Path, workers: int) -> dict[str, Any]:
    """Losses by step, test metrics, and what the saved posterior holds."""
    config = tree(method, workers)
    arrangement = meshes.build_meshes(config, config.method, "cpu", workers) if workers else None
    losses: list[float] = []
    worker = LocalWorker(
        folder,
        torch.device("cpu"),
        lambda payloads: losses.extend(record["train/nll"] for record in payloads[0]["records"]),
        20,
        arrangement,
    )
    results = train(config, config.method, config.training.epochs, ImageTask(config.task), worker)
    held = {}
    if not workers or dist.get_rank() == 0:
        (saved,) = (folder / "checkpoints").glob("*/posterior")
        held = Posterior.load(saved).pack()[1]
    return {"losses": losses, "test": results["test"], "posterior": held}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS, timeout=timedelta(seconds=300)
    )
    found = {method: run(method, Path(folder) / method, RANKS) for method in METHODS}
    if rank == 0:  # as if the run had died in its second member
        for last in sorted((Path(folder) / "ensemble" / "checkpoints").iterdir())[-2:]:
            shutil.rmtree(last)
    dist.barrier()
    found["resumed"] = run("ensemble", Path(folder) / "ensemble", RANKS)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    mp.start_processes(worker, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return torch.load(folder / "found.pt")


def test_no_method_that_shards_is_missing_here() -> None:
    kinds = {kind for kind in KINDS.kinds() if configuration.parse({"method": {"kind": kind}}).method.shards}
    assert kinds - set(METHODS) == {"mc_dropout", "proximal_score"}  # the latter: test_features_keep_the_loss_curve


@pytest.mark.parametrize("method", METHODS)
def test_a_method_on_shards_is_the_method_in_one_process(
    method: str, sharded: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    found, expected = sharded[method], run(method, tmp_path, 0)
    assert len(expected["losses"]) == (24 if method == "ensemble" else 12)
    assert found["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
    for variant, metrics in expected["test"].items():
        assert found["test"][variant]["nll"] == pytest.approx(metrics["nll"], abs=TOLERANCE)
    assert found["posterior"].keys() == expected["posterior"].keys()
    for name, tensor in expected["posterior"].items():
        torch.testing.assert_close(
            found["posterior"][name], tensor, atol=TOLERANCE, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_an_ensemble_on_shards_that_died_in_its_second_member_is_the_one_that_did_not(
    sharded: dict[str, dict[str, Any]],
) -> None:
    whole, resumed = sharded["ensemble"], sharded["resumed"]
    assert 0 < len(resumed["losses"]) < 12  # of the second member alone
    assert resumed["losses"] == whole["losses"][-len(resumed["losses"]) :]
    assert resumed["test"] == whole["test"]
    assert all(torch.equal(tensor, resumed["posterior"][name]) for name, tensor in whole["posterior"].items())
