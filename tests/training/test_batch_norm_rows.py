"""BatchNorm that sees one value per channel of a row: no forward pass in training has a single row."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from timm.models import register_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from proxscore.config import Config, ConfigError, parse
from proxscore.training import launch
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.micro_batches import joined_batch
from proxscore.training.data.norm_rows import least_rows
from proxscore.training.data.stream_order import EpochOrder, batch_sizes
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.training.preflight.dry_run import dry_run


class Flat(nn.Module):
    """BatchNorm over vectors."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, img_size: int = 8, spatial: bool = False) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(in_chans) if spatial else nn.Identity()
        self.features = nn.Sequential(norm, nn.Flatten(), nn.Linear(in_chans * img_size**2, 6))
        self.norm = nn.Identity() if spatial else nn.BatchNorm1d(6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.features(x)))


if not timm.is_model("flat_norm"):

    @register_model
    def flat_norm(pretrained: bool = False, **kwargs: Any) -> Flat:
        kwargs = {
            name: value for name, value in kwargs.items() if name in ("num_classes", "in_chans", "img_size", "spatial")
        }
        return Flat(**kwargs)


def config(**training: Any) -> Config:
    settings = {"workers": 0, "device": "cpu", "epochs": 1, "batch_size": 20, **training}
    data = {"kind": "digits", "limit": 101}
    method = {"kind": "adamw"}
    evaluation = {"draws": 2, "validation_draws": 2, "norm_batches": 20}
    model = {"name": "flat_norm"}
    return parse(
        {"task": {"data": data, "model": model}, "method": method, "training": settings, "evaluation": evaluation}
    )


@given(st.integers(1, 300), st.integers(1, 60), st.booleans())
def test_batches_hold_every_row_and_only_an_even_end_moves_rows(rows: int, size: int, even_end: bool) -> None:
    sizes = batch_sizes(rows, size, even_end=even_end)
    assert sum(sizes) == rows
    assert len(sizes) == -(-rows // size)
    assert max(sizes) <= size
    if even_end and len(sizes) > 1:
        assert 2 * min(sizes) >= size
    else:
        assert sizes[:-1] == [size] * (len(sizes) - 1)


@pytest.mark.parametrize(("accumulate", "kind"), [(1, "adamw"), (2, "adamw"), (1, "proximal_score")])
def test_an_epoch_whose_last_batch_would_be_one_row_is_trained(accumulate: int, kind: str, tmp_path: Path) -> None:
    settings = config(accumulate=accumulate)
    settings = parse(settings.model_dump(mode="json") | {"method": {"kind": kind}})
    records: list[dict[str, float]] = []
    worker = LocalWorker(tmp_path, torch.device("cpu"), lambda payloads: records.extend(payloads[0]["records"]), keep=1)
    results = train(settings, settings.method, 1, settings.task.build(), worker)
    assert results["steps"] == 6
    assert all(np.isfinite(record["train/nll"]) for record in records)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_every_piece_of_every_rank_has_two_rows_and_all_rows_are_there_once(world: int, accumulate: int) -> None:
    task = config().task.build()
    seen = []
    for rank in range(world):
        data = TrainingData(task.data.train, 20, rank, world, 0, accumulate, least=2)
        for micro_batches, _ in data.epoch(0):
            assert min(len(targets) for _, targets in micro_batches) >= 2
            seen.append(sum(len(targets) for _, targets in micro_batches))
    assert sum(seen) == 101


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_streamed_order_has_the_same_even_end(world: int) -> None:
    sizes = batch_sizes(101, 20, even_end=True)
    order = EpochOrder(np.array([40, 40, 21]), 20, world, 0, 0, sizes)
    counts = sum(order.counts(rank, world) for rank in range(world))
    assert counts.tolist() == sizes == [20, 20, 20, 20, 11, 10]
    positions = np.concatenate([part for rank in range(world) for part in order.positions(rank, world, 4, 5)])
    assert sorted(positions) == list(range(80, 91))


def test_a_piece_that_unreadable_rows_leave_with_one_row_is_padded() -> None:
    class OneReadable(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 8

        def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
            return torch.ones(1, 3), torch.ones(1, dtype=torch.long)

    data = TrainingData(OneReadable(), 8, 0, 1, 0, least=2)
    ((inputs, targets),), _ = next(data.epoch(0))
    assert inputs.shape == (2, 3)
    assert targets.shape == (1,)
    assert joined_batch([(inputs, targets)])[0].shape == (2, 3)


def test_a_dry_run_refuses_one_row_in_the_same_words() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size=1: BatchNorm needs 2 rows"):
        dry_run(config(batch_size=1))
    assert "one step here" in dry_run(config())


def test_what_a_layer_sees_decides() -> None:
    task = config().task.build()
    assert least_rows(Flat(), task) == 2
    assert least_rows(Flat(spatial=True), task) == 1
    assert least_rows(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task) == 1
    module = Flat()
    module.norm.eval()
    modes = [layer.training for layer in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    least_rows(module, task)
    assert [layer.training for layer in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "training",
    [
        {"batch_size": 1},
        {"batch_size": 4, "workers": 2},
        {"batch_size": 20, "accumulate": 20},
        {"batch_size": 8, "workers": 4},
    ],
)
def test_settings_that_leave_a_piece_with_one_row_are_refused_with_a_size_that_serves(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.batch_size=\d+: BatchNorm needs 2 rows") as refused:
        launch.check_job(launch.with_absolute_paths(config(**training)))
    size = int(str(refused.value).rpartition("training.batch_size=")[2].split()[0])
    if size <= 101:
        launch.check_job(launch.with_absolute_paths(config(**training | {"batch_size": size})))
    assert not list(itertools.chain(tmp_path.iterdir()))


def _look(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    module = Flat()
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    task = config().task.build()
    assert least_rows(module, task) == 2
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    dist.barrier()
    dist.destroy_process_group()


def test_a_sharded_network_is_left_in_shards(tmp_path: Path) -> None:
    """An optimizer that is made of gathered weights has none when they are freed."""
    mp.start_processes(_look, (str(tmp_path),), nprocs=2, start_method="forkserver")
