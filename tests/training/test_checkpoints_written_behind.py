"""Checkpoints that are written while training goes on hold the state of their step, and what cannot be written is said."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cluster_runs import tree
from safetensors import safe_open
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from proxscore.inference import Categorical, FullCovariance, ProximalScore
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop import checkpoint, fit
from proxscore.training.loop.train import train
from proxscore.training.ray import trainer
from proxscore.training.sharding.meshes import Meshes
from proxscore.vision.image_task import ImageTask


def stepped(module: nn.Module, optimizer: ProximalScore, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
        for _ in optimizer.draws():
            Categorical().nll(module(x), y).mean().backward()
        optimizer.step()


def content(folder: Path) -> dict[str, Any]:
    """What the files of a checkpoint hold, by their names."""
    found: dict[str, Any] = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
            found[path.name] = tensors, file.metadata()
    return found


def written_late(module: nn.Module, folder: Path) -> None:
    """One checkpoint at once, and one of the same state after two more steps; each rank looks before it writes."""
    optimizer = ProximalScore(module.named_parameters(), 50, families={"1.*": FullCovariance()})
    stepped(module, optimizer, 2)
    snapshot = checkpoint.Snapshot(module, optimizer, {"step": 2, "at": [1, 2]})
    checkpoint.save(folder / "at once", snapshot)
    write = checkpoint.stage(folder / "late", snapshot)
    snapshot.progress |= {"step": 4, "at": [3]}
    stepped(module, optimizer, 2)
    rank = dist.get_rank() if dist.is_initialized() else 0
    assert not list((folder / "late").glob(f"*-{rank + 1:05d}-model*"))
    write()


def test_what_is_written_later_is_the_state_of_its_step_to_the_bit(tmp_path: Path) -> None:
    written_late(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), tmp_path)
    assert content(tmp_path / "late") == content(tmp_path / "at once")


def _sharded(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    for layer in (*module, module):
        fully_shard(layer, mesh=init_device_mesh("cpu", (world,)))
    written_late(module, Path(folder))

    # A run of two processes, one of which cannot write.
    def fails(folder: Path) -> Any:
        def write() -> None:
            if rank == 1:
                raise RuntimeError("the checkpoint at step 1 cannot be written: No space left on device")

        return write

    meshes = Meshes(init_device_mesh("cpu", (world,)), None)
    worker = LocalWorker(Path(folder) / "run", torch.device("cpu"), lambda payloads: None, 1, meshes)
    worker.report({"step": 1, "score": 1.0}, fails)
    with pytest.raises(RuntimeError, match="the checkpoint at step 1 cannot be written: No space left on device"):
        worker.report({"step": 2, "score": 1.0})
    assert worker.folders() == []
    dist.barrier()
    dist.destroy_process_group()


def test_of_two_ranks_both_write_later_and_both_are_told_what_one_could_not(tmp_path: Path) -> None:
    mp.start_processes(_sharded, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    assert len(content(tmp_path / "late")) == 3
    assert content(tmp_path / "late") == content(tmp_path / "at once")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def alone(folder: Path) -> dict[str, Any]:
    config = tree(folder, "alone", epochs=3, workers=0, batch_size=100, validate_every=10)
    tracking = config.tracking.model_copy(update={"interval": 1000})  # a report waits for a checkpoint
    config = config.model_copy(update={"tracking": tracking})
    worker = LocalWorker(folder, torch.device("cpu"), lambda payloads: None, 100)
    return train(config, config.method, 3, ImageTask(config.task), worker)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = alone(tmp_path / "at once")
    monkeypatch.setitem(fit.WRITTEN_BEHIND, "cpu", True)
    seen = threading.Event()
    write_out = checkpoint._Writer.write_out

    def slow(writer: Any) -> None:
        if writer._later:
            assert seen.wait(60), "training waits for what is written"
        write_out(writer)

    monkeypatch.setattr(checkpoint._Writer, "write_out", slow)
    folders = tmp_path / "late" / "checkpoints"
    steps = 0
    step = fit.train_step

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6:  # of the second epoch of four steps: the first one's checkpoint is being written
            assert [path.name for path in folders.iterdir()] == ["partial-000000004"]
            seen.set()
        return step(*arguments)

    monkeypatch.setattr(fit, "train_step", counted)
    late = alone(tmp_path / "late")
    assert late["test"] == whole["test"]
    names = [path.name for path in sorted(folders.iterdir())]
    assert names == [f"step-{step:09d}" for step in (4, 8, 12)]
    for name in names[:-1]:
        assert checkpoint.damage(folders / name) is None
        ours, theirs = (content(tmp_path / run / "checkpoints" / name) for run in ("late", "at once"))
        for each in (ours, theirs):
            each[checkpoint.INDEX_FILE]["values"].pop("progress.seconds")
        assert ours == theirs


def test_what_cannot_be_written_later_ends_the_run_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fit.WRITTEN_BEHIND, "cpu", True)
    write = checkpoint.write

    def full(path: Path, content: str) -> None:
        if "000000008" in path.parent.name:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(RuntimeError, match=r"^the checkpoint at step 8 cannot be written: .*No space left"):
        alone(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000004"]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.timeout(600)
def test_workers_of_ray_write_and_send_behind_training_and_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    def behind(payload: dict[str, Any]) -> dict[str, Any]:
        """What a worker of Ray's runs: the loop, with checkpoints as on an accelerator."""
        from proxscore.training.loop import checkpoint, fit
        from proxscore.training.loop.train import train
        from proxscore.training.ray.rank import set_up_worker

        fit.WRITTEN_BEHIND["cpu"] = True
        config, task, worker = set_up_worker(payload)
        write = checkpoint.write

        def full(path: Path, content: str) -> None:
            if '"progress.step": 8' in content:
                raise OSError(28, "No space left on device")
            write(path, content)

        checkpoint.write = full  # type: ignore[assignment]
        return train(config, config.method, payload["epochs"], task, worker)

    config = tree(tmp_path, "behind", epochs=3, batch_size=100, workers=2, max_failures=0, keep_checkpoints=10)

    with pytest.raises(RuntimeError, match=r"the checkpoint at step 8 cannot be written: .*No space left on device"):
        trainer.train_on_ray(config, config.method, 3, "behind", lambda reports: None, worker=behind)
    found = (tmp_path / "runs" / "behind").glob("checkpoint_0*")  # and what the other worker has sent of step 8
    assert [checkpoint.step_of(folder) for folder in found if checkpoint.damage(folder) is None] == [4]
