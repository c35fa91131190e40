"""What a step of the loop sends between ranks, counted on two and on four gloo processes: plain FSDP2 training plus one number.

And what a dry run counts of it without any process.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.methods import Setup, build_method
from proxscore.training.loop.run_length import run_length
from proxscore.training.loop.step import train_step
from proxscore.training.preflight.traffic import Traffic, traffic
from proxscore.training.run import Run, training_data
from proxscore.training.sharding import parallelize as parallelize_module
from proxscore.training.sharding.meshes import Meshes
from proxscore.training.sharding.parallelize import parallelize
from proxscore.training.worker import Worker
from proxscore.vision.image_task import ImageTask

WARM_UP = 2  # the first steps set up FSDP's streams and the optimizer's state
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw"},
    "unpaired": {"kind": "proximal_score", "initial_noise": 0.02},
    "paired": {"kind": "proximal_score", "paired": True, "initial_noise": 0.02},
    "two draws": {"kind": "proximal_score", "initial_noise": 0.02, "draws": 2},
}
RANKS = {"shard": 4, "replicate x shard": 4, "draw x shard": 4, "replicate": 4, "two shards": 2}
LAYOUTS = ["shard", "replicate x shard", "replicate", "two shards"]
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


class Rank(Worker):
    def __init__(self, rank: int, world: int, meshes: Meshes | None) -> None:
        self.rank, self.world, self.device, self.meshes = rank, world, torch.device("cpu"), meshes

    def report(self, payload: object, write: object = None) -> None:
        raise AssertionError("a step reports nothing")

    def checkpoints(self) -> None:
        raise AssertionError("a step resumes nothing")


class Sizes(TorchDispatchMode):
    """Sums the bytes of whole tensors in collectives, by sort."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        whole = {"c10d._allgather_base_": 0, "c10d._reduce_scatter_base_": 1, "c10d.allreduce_": 0}
        for prefix, place in whole.items():
            if name.startswith(prefix):
                tensors = args[place] if isinstance(args[place], (list, tuple)) else [args[place]]
                self.bytes[prefix] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def build(config: Config, worker: Rank) -> tuple[ImageTask, nn.Module, Any]:
    task = ImageTask(config.task)
    torch.manual_seed(0)
    module = parallelize(task.build_model(), config.training, worker.mesh)
    data = training_data(config, task, worker)
    return task, module, data


def counted_step(config: Config, worker: Rank) -> tuple[Counter[str], Counter[str]]:
    """Collectives of a later step of the loop, and their bytes."""
    task, module, data = build(config, worker)
    length = run_length(data.steps_per_epoch, 1, task)
    method = build_method(config.method, Setup(module, length, draw_mesh=worker.draw_mesh))
    method.monitor = True
    run = Run(config, task, worker, module, data)
    for step, (micro_batches, size) in enumerate(data.epoch(0)):
        counts, sizes = CommDebugMode(), Sizes()
        with counts, sizes:
            train_step(run, method, micro_batches, size, step)
        if step == WARM_UP:
            return named(counts), sizes.bytes
    raise AssertionError("too few batches")


def counted_plain_step(config: Config, worker: Rank) -> Counter[str]:
    """Collectives of ordinary FSDP2 training as its documentation writes it, with the same micro-batches."""
    _, module, data = build(config, worker)
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


def layouts_of(ranks: int) -> dict[str, Meshes]:
    """The arrangements of so many ranks."""
    if ranks == 2:
        return {"two shards": Meshes(init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)), None)}
    groups = init_device_mesh("cpu", (2, 2), mesh_dim_names=("draw", "shard"))
    both = ("replicate", "shard")
    return {
        "shard": Meshes(init_device_mesh("cpu", (4,), mesh_dim_names=("shard",)), None),
        "replicate x shard": Meshes(init_device_mesh("cpu", (2, 2), mesh_dim_names=both), None),
        "replicate": Meshes(init_device_mesh("cpu", (4, 1), mesh_dim_names=both), None),
        "draw x shard": Meshes(groups["shard"], groups["draw"]),
    }


def worker(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    whole, parallelize_module.WORTH_CUTTING = parallelize_module.WORTH_CUTTING, 0  # as if the network were large
    place = f"file://{folder}/rendezvous-{ranks}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    counts = {}
    for layout, meshes in layouts_of(ranks).items():
        worker = Rank(rank, ranks, meshes)
        for name, method in METHODS.items():
            if meshes.draw is None or method.get("draws", 1) > 1:
                config = configuration.parse({**TREE, "method": method})
                found, sizes = counted_step(config, worker)
                counts[layout, name], counts[layout, f"{name}, bytes"] = dict(found), dict(sizes)
        counts[layout, "plain"] = dict(counted_plain_step(configuration.parse(TREE), worker))
    parallelize_module.WORTH_CUTTING = whole
    if ranks == 2:
        small = configuration.parse({**TREE, "method": METHODS["unpaired"]})
        found, sizes = counted_step(small, Rank(rank, ranks, layouts_of(2)["two shards"]))
        counts["two shards, at once", "unpaired"] = dict(found)
        counts["two shards, at once", "unpaired, bytes"] = dict(sizes)
    if rank == 0:
        torch.save(counts, f"{folder}/counts-{ranks}.pt")
    dist.barrier()
    dist.destroy_process_group()


Counts = dict[tuple[str, str], Counter[str]]


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    folder: Path = tmp_path_factory.mktemp("ranks")
    found = {}
    for ranks in (2, 4):
        mp.start_processes(worker, args=(ranks, str(folder)), nprocs=ranks, start_method="forkserver")
        found |= torch.load(folder / f"counts-{ranks}.pt")
    return {key: Counter(count) for key, count in found.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_training_gathers_and_scatters_every_block(layout: str, counts: Counts) -> None:
    """And sums over replicas, where there are any; where these are all there is, it does nothing else."""
    plain, sharded = counts[layout, "plain"], layout != "replicate"
    assert bool({kind for kind in plain if "gather" in kind}) == sharded
    assert bool({kind for kind in plain if "scatter" in kind}) == sharded
    assert bool({kind for kind in plain if "allreduce" in kind}) == ("replicate" in layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["adamw", "unpaired"])
def test_a_step_sends_what_plain_fsdp2_sends_and_one_all_reduce_of_the_loss(
    method: str, layout: str, counts: Counts
) -> None:
    plain = counts[layout, "plain"]
    assert plain - counts[layout, method] == Counter()
    assert counts[layout, method] - plain == Counter({"allreduce_": 1})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_gathers_and_scatters_twice_and_reduces_the_loss_once(layout: str, counts: Counts) -> None:
    plain = counts[layout, "plain"]
    assert counts[layout, "paired"] == plain + plain + Counter({"allreduce_": 1})


def test_draw_groups_add_one_message_for_scores_and_curvatures(counts: Counts) -> None:
    """Two groups, each with one of two draws: one forward and backward pass, the loss, and what the groups took."""
    plain = counts["draw x shard", "plain"]
    assert counts["draw x shard", "two draws"] == plain + Counter({"allreduce_": 2})
    alone = counts["shard", "plain"]
    assert counts["shard", "two draws"] == alone + alone + Counter({"allreduce_": 1})


ARRANGED: dict[str, dict[str, int]] = {
    "shard": {},
    "two shards": {},
    "replicate": {"replicate": 4},
    "replicate x shard": {"replicate": 2},
    "draw x shard": {"draw_groups": 2},
}


def test_a_small_network_is_gathered_at_once(counts: Counts) -> None:
    """Once for the two micro-batches of a step, where a large one's blocks are gathered again for each backward pass."""
    found = counts["two shards, at once", "unpaired"]
    assert found == Counter({"_allgather_base_": 2, "_reduce_scatter_base_": 1, "allreduce_": 1})
    expected, sent = predicted("two shards", "unpaired"), counts["two shards, at once", "unpaired, bytes"]
    assert expected.messages == sum(found.values())
    assert (expected.gathered, expected.scattered) == (
        sent["c10d._allgather_base_"],
        sent["c10d._reduce_scatter_base_"],
    )


def predicted(layout: str, method: str) -> Traffic:
    training = TREE["training"] | {"workers": RANKS[layout]} | ARRANGED[layout]
    config = configuration.parse({**TREE, "training": training, "method": METHODS[method]})
    return traffic(config, config.method, ImageTask(config.task).build_model(torch.device("meta")))


@pytest.mark.parametrize(
    ("layout", "method"), [(layout, name) for layout in LAYOUTS for name in METHODS] + [("draw x shard", "two draws")]
)
def test_a_dry_run_counts_the_messages_and_bytes_that_ranks_send(
    layout: str, method: str, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, the padding of shards included."""
    monkeypatch.setattr(parallelize_module, "WORTH_CUTTING", 0)
    expected, sent = predicted(layout, method), counts[layout, f"{method}, bytes"]
    assert expected.messages == sum(counts[layout, method].values())
    assert expected.gathered == sent["c10d._allgather_base_"]
    assert expected.scattered == sent["c10d._reduce_scatter_base_"]
    assert expected.reduced == sent["c10d.allreduce_"]


def test_a_worker_alone_sends_nothing() -> None:
    config = configuration.parse({**TREE, "training": TREE["training"] | {"workers": 1}})
    alone = traffic(config, config.method, ImageTask(config.task).build_model(torch.device("meta")))
    assert (alone.messages, alone.gathered, alone.scattered, alone.reduced, alone.received) == (0, 0, 0, 0, 0)
    assert counted_step(configuration.parse({**TREE, "method": METHODS["paired"]}), Rank(0, 1, None)) == ({}, {})
