"""Checkpoints that are written while training goes on hold the state of their step, and what cannot be written is said."""

from __future__ import annotations

import json
import mmap
import re
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cluster_runs import tree
from safetensors import safe_open
from stepped import stepped
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from proxscore.experiments.sweep import alone as alone_in_a_process
from proxscore.inference import FullCovariance, ProximalScore
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop import checkpoint, fit
from proxscore.training.loop.train import train
from proxscore.training.ray import trainer
from proxscore.training.sharding.meshes import Meshes
from proxscore.vision.image_task import ImageTask


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


def ended_by(error: BaseException, worker: LocalWorker, step: int, write: Any) -> None:
    with worker:
        worker.report({"step": step, "score": 1.0}, write)
        raise error


def half(folder: Path) -> Any:
    """Of a checkpoint, as far as it came."""
    return (folder / f"half of {dist.get_rank()}").touch


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

    # One that has ended by an error, and one whose rank was lost while it wrote: the next attempt keeps the first.
    for step, write in {3: partial(checkpoint.stage, snapshot=plain(module)), 4: half}.items():
        with pytest.raises(ZeroDivisionError):
            ended_by(ZeroDivisionError(), worker, step, write)
        assert names(worker)[-1] == f"partial-{step:09d}"
        worker._behind = None  # this attempt's is forgotten with it
    dist.barrier()
    again = LocalWorker(Path(folder) / "run", torch.device("cpu"), lambda payloads: None, 1, meshes)
    with next(again.checkpoints()) as held:
        assert checkpoint.step_of(held) == 3
    assert names(again) == ["step-000000003"]
    dist.barrier()
    dist.destroy_process_group()


def test_of_two_ranks_both_write_later_and_both_are_told_what_one_could_not(tmp_path: Path) -> None:
    mp.start_processes(_sharded, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    assert len(content(tmp_path / "late")) == 3
    assert content(tmp_path / "late") == content(tmp_path / "at once")


@pytest.fixture
def worker(tmp_path: Path) -> LocalWorker:
    return LocalWorker(tmp_path, torch.device("cpu"), lambda payloads: None, 100)


def names(worker: LocalWorker) -> list[str]:
    return sorted(path.name for path in worker.folder.iterdir())


def test_a_worker_is_busy_while_it_writes_and_waits_where_it_is_asked_to(worker: LocalWorker) -> None:
    go_on = threading.Event()

    def write(folder: Path) -> Any:
        return lambda: go_on.wait(60) and (folder / "file").touch()

    assert not worker.busy()
    worker.report({"step": 1, "score": 1.0}, write)
    assert worker.busy()
    assert names(worker) == ["partial-000000001"]
    go_on.set()
    worker.report({"step": 2, "score": 1.0})
    assert not worker.busy()
    assert names(worker) == ["step-000000001"]
    worker.report({"step": 3, "score": 1.0}, write, wait=True)
    assert names(worker) == ["step-000000001", "step-000000003"]
    worker.report({"step": 4, "score": 1.0}, write)
    assert len(list(worker.checkpoints())) == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit("of a library"), MemoryError()])
def test_whatever_ends_the_writing_a_broken_checkpoint_is_none(error: BaseException, worker: LocalWorker) -> None:
    def write() -> None:
        raise error

    worker.report({"step": 1, "score": 1.0}, lambda folder: write)
    with pytest.raises(RuntimeError, match=str(error).replace("[", r"\[") or type(error).__name__):
        worker.report({"step": 2, "score": 1.0})
    assert names(worker) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_is_being_written_when_a_run_ends_by_an_error_is_kept(
    error: type[BaseException], worker: LocalWorker
) -> None:
    with pytest.raises(error):
        ended_by(error(), worker, 1, lambda folder: lambda: time.sleep(0.3))
    assert names(worker) == ["step-000000001"]
    with pytest.raises(error) as ended:
        ended_by(error(), worker, 2, lambda folder: (folder / "nowhere" / "file").touch)
    assert "nowhere" in ended.value.__notes__[0]
    assert names(worker) == ["step-000000001"]


def test_a_trial_that_ray_tune_ends_has_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(values: dict[str, Any]) -> None:
        raise SystemExit

    monkeypatch.setattr(alone_in_a_process.tune, "report", end)
    worker = alone_in_a_process.TuneWorker(tmp_path, torch.device("cpu"), lambda payloads: None, 1)
    worker.progress = SimpleNamespace(of=lambda payload: {"nll": 1.0})  # type: ignore[assignment]
    with pytest.raises(SystemExit):
        worker.report({"step": 1, "score": 1.0}, lambda folder: lambda: time.sleep(0.3))
    assert names(worker) == ["step-000000001"]


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTFORK"), reason="forks of this system inherit all memory")
def test_processes_that_are_forked_meanwhile_do_not_hold_what_is_written(tmp_path: Path) -> None:
    module = nn.Linear(1000, 300)
    staged = checkpoint._collect(tmp_path, plain(module), later=True)
    ((_, tensors, _),) = staged._waiting
    (weight,) = (tensor for name, tensor in tensors.items() if name == "weights.weight")
    assert torch.equal(weight, module.weight)
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    for mapping in filter(None, mappings):
        low, high = (int(end, 16) for end in mapping.split()[0].split("-"))
        if low <= weight.data_ptr() < high:
            assert " dc" in mapping.partition("VmFlags:")[2]  # do not copy on fork
            return
    pytest.fail("the copy is nowhere")


def plain(module: nn.Module) -> checkpoint.Snapshot:
    return checkpoint.Snapshot(module, torch.optim.SGD(module.parameters(), lr=0.1), {"step": 3})


def alone(folder: Path) -> dict[str, Any]:
    config = tree(folder, "alone", epochs=3, workers=0, batch_size=100, validate_every=10)
    tracking = config.tracking.model_copy(update={"interval": 1000})  # a report waits for a checkpoint
    config = config.model_copy(update={"tracking": tracking})
    with LocalWorker(folder, torch.device("cpu"), lambda payloads: None, 100) as worker:
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
