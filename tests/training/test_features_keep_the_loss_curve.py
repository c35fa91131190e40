"""Every feature of the engine, switched on alone and all together, on four gloo ranks: the loss curve stays where it was.

The reference is the same loop in one plain process without any of them (but with the same way to initial weights).
"""

from __future__ import annotations

import multiprocessing
import statistics
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.training.sharding import meshes, parallelize
from proxscore.vision.image_task import ImageTask

pytestmark = pytest.mark.timeout(1800)

RANKS = 4
EXACT, ROUNDED = 2e-4, 0.1  # nats, at any step: float32 in another order; bfloat16 has three digits, and steps add up
FEATURES: dict[str, tuple[dict[str, Any], float]] = {
    "shards": ({}, EXACT),
    "replicas of shards": ({"replicate": 2}, EXACT),
    "draw groups of shards": ({"draw_groups": 2}, EXACT),
    "accumulation": ({"accumulate": 3}, EXACT),
    "activation checkpointing": ({"activation_checkpointing": True}, EXACT),
    "compilation and prefetching": ({"compile": True, "loader_processes": 1}, EXACT),
    "initial weights shard by shard": ({"meta_init": True}, EXACT),
    "bfloat16": ({"precision": "bf16"}, ROUNDED),
    "everything": (
        {
            "draw_groups": 2,
            "meta_init": True,
            "accumulate": 2,
            "activation_checkpointing": True,
            "compile": True,
            "loader_processes": 1,
            "precision": "bf16",
        },
        ROUNDED,
    ),
}


def tree(folder: Path, **training: Any) -> Config:
    return configuration.parse(
        {
            "task": {
                "model": {
                    "name": "vit_tiny_patch16_224",
                    "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
                },
                "data": {"kind": "digits", "limit": 301},
            },
            "method": {"kind": "proximal_score", "draws": 2, "max_mean_step": 0.4, "initial_precision": 0.03},
            "training": {"epochs": 1, "batch_size": 30, "device": "cpu", "storage": str(folder)} | training,
            "evaluation": {"draws": 2, "validation_draws": 1},
        }
    )


def curve(config: Config, folder: Path, arrangement: meshes.Meshes | None) -> list[float]:
    """Training NLL by step, then validation NLL; of the first rank."""
    reports: list[dict[str, Any]] = []
    worker = LocalWorker(folder, torch.device("cpu"), lambda payloads: reports.append(payloads[0]), 1, arrangement)
    train(config, config.method, config.training.epochs, ImageTask(config.task), worker)
    losses = [record["train/nll"] for report in reports for record in report["records"]]
    return losses + [report["metrics"]["validation/nll"] for report in reports if report["metrics"]]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    parallelize.WORTH_CUTTING = 0  # block by block, as a large network
    # Loader processes are forked, as those of a job are: a forkserver's, which each rank would have, import everything anew.
    multiprocessing.set_start_method("fork", force=True)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS, timeout=timedelta(seconds=300)
    )
    curves = {}
    for name, (training, _) in FEATURES.items():
        config = tree(Path(folder), workers=RANKS, **training)
        arrangement = meshes.build_meshes(config, config.method, "cpu", config.training.workers)
        curves[name] = curve(config, Path(folder) / name.replace(" ", "_"), arrangement)
    if rank == 0:
        torch.save(curves, f"{folder}/curves.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("features")
    mp.start_processes(worker, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return torch.load(folder / "curves.pt")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[float]]:
    folder = tmp_path_factory.mktemp("reference")
    return {meta: curve(tree(folder, workers=0, meta_init=meta), folder / str(meta), None) for meta in (False, True)}


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The curve of a network that hardly moves."""
    folder = tmp_path_factory.mktemp("still")
    config = tree(folder, workers=0)
    method = config.method.model_copy(update={"lr": 1e-9})
    return curve(config.model_copy(update={"method": method}), folder, None)


@pytest.mark.parametrize("feature", list(FEATURES))
def test_a_feature_leaves_the_loss_curve_where_it_was(
    feature: str, curves: dict[str, list[float]], references: dict[bool, list[float]], still: list[float]
) -> None:
    training, tolerance = FEATURES[feature]
    reference = references["meta_init" in training]
    assert max(abs(a - b) for a, b in zip(reference, still, strict=True)) > 100 * EXACT  # it trains
    assert curves[feature] == pytest.approx(reference, abs=tolerance)
    assert statistics.mean(curves[feature]) == pytest.approx(statistics.mean(reference), abs=tolerance / 5)


@pytest.mark.parametrize(
    ("training", "method", "message"),
    [
        ({"workers": 3, "replicate": 2}, {}, "training.workers=3 cannot be divided"),
        ({"workers": 4, "draw_groups": 2}, {"draws": 1}, "method.draws=1 cannot be shared by training.draw_groups=2"),
        ({"workers": 0, "draw_groups": 2}, {}, "training.workers=0 cannot be divided"),
    ],
)
def test_workers_that_cannot_be_arranged_are_refused(
    training: dict[str, Any], method: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = tree(tmp_path, **training)
    with pytest.raises(ConfigError, match=message):
        meshes.arrangement(config, config.method.model_copy(update=method))


def test_a_method_without_draws_takes_draw_groups_as_replicas(tmp_path: Path) -> None:
    config = tree(tmp_path, workers=8, draw_groups=2, replicate=2)
    assert meshes.arrangement(config, config.method) == (2, 2, 2)
    assert meshes.arrangement(config, configuration.parse({"method": {"kind": "adamw"}}).method) == (1, 4, 2)
