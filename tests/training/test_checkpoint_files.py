"""What lies in a checkpoint or a posterior is parsed, never executed; it reshards; tied and plain values come back."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stepped import stepped
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from proxscore.config import ConfigError
from proxscore.inference import FullCovariance, ProximalScore
from proxscore.posterior import Posterior
from proxscore.training.loop import checkpoint


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))


def snapshot_of(module: nn.Module, steps: int = 2, **settings: Any) -> checkpoint.Snapshot:
    optimizer = ProximalScore(
        module.named_parameters(), 50, **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings)
    )
    stepped(module, optimizer, steps)
    return checkpoint.Snapshot(module, optimizer, {"step": steps, "score": float("inf"), "lanes": 0})


class Payload:
    """A pickle that leaves a marker when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def hostile(path: Path, marker: Path, how: str) -> None:
    """Replace a file by one whose reading by pickle or torch.load leaves a marker."""
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save({"run": Payload(marker)}, buffer := io.BytesIO())
        path.write_bytes(buffer.getvalue())


SHARD = "shard-00001-model-00001-of-00001.safetensors"
FILES = ["checkpoint.json", SHARD, ".metadata", "__0_0.distcp", "extra.safetensors", "run.pt"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_no_file_of_a_checkpoint_is_executed(name: str, how: str, tmp_path: Path) -> None:
    folder, marker = tmp_path / "checkpoint", tmp_path / "marker"
    snapshot = snapshot_of(network())
    checkpoint.save(folder, snapshot)
    hostile(folder / name, marker, how)
    damage = checkpoint.damage(folder)
    try:
        checkpoint.load(folder, snapshot_of(network(1), 0))
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert not marker.exists()
    assert (damage is not None) == name.endswith(("json", "safetensors"))
    content = (folder / name).read_bytes()
    torch.load(io.BytesIO(content), weights_only=False) if how == "torch" else pickle.loads(content)
    assert marker.exists(), "the payload is none"


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_an_old_checkpoint_is_refused_and_not_read(how: str, tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        hostile(tmp_path / name, tmp_path / "marker", how)
    assert "earlier version" in str(checkpoint.damage(tmp_path))
    with pytest.raises(ConfigError, match="earlier version"):
        checkpoint.load(tmp_path, snapshot_of(network(), 0))
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_that_does_not_say_whether_steps_were_compiled_is_read(tmp_path: Path) -> None:
    """Those of earlier versions, whose steps never were."""
    snapshot = snapshot_of(network())
    checkpoint.save(tmp_path, snapshot)
    index = json.loads((tmp_path / checkpoint.INDEX_FILE).read_text())
    kept = {name: value for name, value in index["values"].items() if not name.endswith(".fused")}
    assert len(kept) < len(index["values"])
    (tmp_path / checkpoint.INDEX_FILE).write_text(json.dumps(index | {"values": kept}))
    other = snapshot_of(network(), 0)
    checkpoint.load(tmp_path, other)
    for (name, saved), loaded in zip(
        snapshot.module.state_dict().items(), other.module.state_dict().values(), strict=True
    ):
        assert torch.equal(saved, loaded), name


@pytest.mark.parametrize("name", ["posterior.json", "posterior.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_no_file_of_a_posterior_is_executed(name: str, how: str, tmp_path: Path) -> None:
    snapshot = snapshot_of(network())
    Posterior.of(snapshot.module, snapshot.optimizer).save(tmp_path)
    hostile(tmp_path / name, tmp_path / "marker", how)
    with pytest.raises(ConfigError, match="damaged posterior"):
        Posterior.load(tmp_path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 2}',
        "[]",
        '{"format": 2, "files": ["../x.safetensors"], "values": {}}',
        "\xff",
        "[" * 100_000,
        '{"format": 9}',
    ],
)
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, snapshot_of(network()))
    (tmp_path / "checkpoint.json").write_bytes(text.encode("latin-1"))
    assert "checkpoint.json cannot be read" in str(checkpoint.damage(tmp_path))


def test_a_checkpoint_from_before_passes_were_compiled_is_read(tmp_path: Path) -> None:
    module = network()
    saved = snapshot_of(module)
    checkpoint.save(tmp_path, saved)
    index = json.loads((tmp_path / checkpoint.INDEX_FILE).read_text())
    names = [name for name in index["values"] if name.endswith(".fused")]
    assert names
    for name in names:
        del index["values"][name]
    (tmp_path / checkpoint.INDEX_FILE).write_text(json.dumps(index))
    read = snapshot_of(network(seed=1), steps=1)
    checkpoint.load(tmp_path, read)
    for name, parameter in read.module.named_parameters():
        assert torch.equal(parameter, module.get_parameter(name))
    assert not read.optimizer.fused  # type: ignore[attr-defined]
    assert read.progress["step"] == 2


def test_plain_values_of_other_types_are_refused_in_one_line(tmp_path: Path) -> None:
    snapshot = snapshot_of(network())
    checkpoint.save(tmp_path, snapshot)
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    index["values"]["optimizer.param_groups"] = "no groups"
    (tmp_path / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="does not fit this model and method") as refusal:
        checkpoint.load(tmp_path, snapshot_of(network(1), 0))
    assert "\n" not in str(refusal.value)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("front", self.table[:2])  # shares its memory
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).t())  # not contiguous
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


def test_tied_weights_and_buffers_of_all_kinds_come_back(tmp_path: Path) -> None:
    module = Tied()
    saved = snapshot_of(module)
    checkpoint.save(tmp_path, saved)
    assert checkpoint.damage(tmp_path) is None
    other = Tied()
    loaded = snapshot_of(other, 0)
    checkpoint.load(tmp_path, loaded)
    assert loaded.progress == {"step": 2, "score": float("inf"), "lanes": 0}
    assert other.last.weight is other.first.weight
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())
    groups = saved.optimizer.param_groups[0], loaded.optimizer.param_groups[0]
    assert [g["step"] for g in groups] == [2, 2]


def _sharded(rank: int, world: int, folder: str, action: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{action}-{world}", rank=rank, world_size=world
    )
    mesh = init_device_mesh("cpu", (world,))
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    for layer in (*module, module):
        fully_shard(layer, mesh=mesh)
    snapshot = snapshot_of(module, 2 if action == "save" else 0, families={"1.*": FullCovariance()})
    if action == "save":
        checkpoint.save(Path(folder) / "checkpoint", snapshot)
    else:
        assert checkpoint.damage(Path(folder) / "checkpoint") is None
        checkpoint.load(Path(folder) / "checkpoint", snapshot)
    posterior = Posterior.of(module, snapshot.optimizer).gather()
    if rank == 0:
        posterior.save(Path(folder) / f"{action}-{world}")
    dist.barrier()
    dist.destroy_process_group()


def test_a_checkpoint_of_four_ranks_is_read_by_one_and_by_two(tmp_path: Path) -> None:
    """Four ranks share rows of three: one of them holds an empty shard."""
    mp.start_processes(_sharded, (4, str(tmp_path), "save"), nprocs=4, start_method="forkserver")
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) == 4
    for world in (1, 2):
        mp.start_processes(_sharded, (world, str(tmp_path), "load"), nprocs=world, start_method="forkserver")
        ours, theirs = (Posterior.load(tmp_path / name) for name in ("save-4", f"load-{world}"))
        for group, tensors in ours.groups().items():
            assert all(torch.equal(value, theirs.groups()[group][name]) for name, value in tensors.items())
        assert torch.equal(ours.joint[0].state["factor"], theirs.joint[0].state["factor"])
