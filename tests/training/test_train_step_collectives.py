"""What a step of the loop sends between ranks, counted on two gloo processes: plain FSDP2 training plus one number."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.methods import build_method
from proxscore.training.context import Context
from proxscore.training.loop import horizon_of, train_step, training_data
from proxscore.training.meshes import Meshes
from proxscore.training.parallelize import parallelize
from proxscore.vision.task import VisionTask

WARM_UP = 2  # the first steps set up FSDP's streams and the optimizer's state
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw"},
    "unpaired": {"kind": "proximal_score", "paired": False},
    "paired": {"kind": "proximal_score"},
}
TREE: dict[str, Any] = {
    "task": {
        "model": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
        },
        "data": {"kind": "digits", "limit": 100},
    },
    "training": {"batch_size": 20, "device": "cpu", "accumulate": 2},
}


class Rank(Context):
    def __init__(self, rank: int, mesh: DeviceMesh) -> None:
        self.rank, self.world, self.device = rank, mesh.size(), torch.device("cpu")
        self.meshes = Meshes(mesh, None)

    def report(self, payload: object, write: object = None) -> None:
        raise AssertionError("a step reports nothing")

    def checkpoints(self) -> None:
        raise AssertionError("a step resumes nothing")


def build(config: Config, context: Rank) -> tuple[VisionTask, nn.Module, Any]:
    task = VisionTask(config.task)
    torch.manual_seed(0)
    module = parallelize(task.build_model(), config.training, context.mesh)
    data = training_data(config, task, context)
    return task, module, data


def counted_step(config: Config, context: Rank) -> Counter[str]:
    """Collectives of a later step of the loop."""
    task, module, data = build(config, context)
    method = build_method(config.method, module, horizon_of(data.steps_per_epoch, 1, task), 0, lambda: iter(()))
    method.monitor = True
    for step, (micro_batches, size) in enumerate(data.epoch(0)):
        counts = CommDebugMode()
        with counts:
            train_step(module, method, task, micro_batches, size, config, context, step)
        if step == WARM_UP:
            return named(counts)
    raise AssertionError("too few batches")


def counted_plain_step(config: Config, context: Rank) -> Counter[str]:
    """Collectives of ordinary FSDP2 training as its documentation writes it, with the same micro-batches."""
    _, module, data = build(config, context)
    optimizer = torch.optim.AdamW(module.parameters())
    for step, (micro_batches, _) in enumerate(data.epoch(0)):
        counts = CommDebugMode()
        with counts:
            for number, (inputs, targets) in enumerate(micro_batches):
                module.set_requires_gradient_sync(number == len(micro_batches) - 1)
                nn.functional.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        if step == WARM_UP:
            return named(counts)
    raise AssertionError("too few batches")


def named(counts: CommDebugMode) -> Counter[str]:
    return Counter({str(kind).split(".")[-1]: number for kind, number in counts.get_comm_counts().items()})


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    context = Rank(rank, init_device_mesh("cpu", (2,)))
    counts = {
        name: counted_step(configuration.parse({**TREE, "method": method}), context) for name, method in METHODS.items()
    }
    counts["plain"] = counted_plain_step(configuration.parse(TREE), context)
    if rank == 0:
        torch.save({name: dict(count) for name, count in counts.items()}, f"{folder}/counts.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["proxscore.vision.task", "proxscore.training.loop"])
    mp.start_processes(worker, args=(str(folder),), nprocs=2, start_method="forkserver")
    return {name: Counter(count) for name, count in torch.load(folder / "counts.pt").items()}


def test_plain_training_gathers_and_scatters_every_block(counts: dict[str, Counter[str]]) -> None:
    plain = counts["plain"]
    assert sum(plain.values()) > 0
    assert {kind for kind in plain if "gather" in kind}
    assert {kind for kind in plain if "scatter" in kind}
    assert not {kind for kind in plain if "reduce_" in kind and "scatter" not in kind}


@pytest.mark.parametrize("method", ["adamw", "unpaired"])
def test_a_step_sends_what_plain_fsdp2_sends_and_one_all_reduce_of_the_loss(
    method: str, counts: dict[str, Counter[str]]
) -> None:
    extra = counts[method] - counts["plain"]
    assert counts["plain"] - counts[method] == Counter()
    assert list(extra.values()) == [1]
    assert "allreduce" in next(iter(extra))


def test_an_unpaired_step_sends_what_adamw_sends(counts: dict[str, Counter[str]]) -> None:
    assert counts["unpaired"] == counts["adamw"]


def test_a_pair_gathers_and_scatters_twice_and_reduces_the_loss_once(counts: dict[str, Counter[str]]) -> None:
    for kind, number in counts["unpaired"].items():
        assert counts["paired"][kind] == (number if "allreduce" in kind else 2 * number)
