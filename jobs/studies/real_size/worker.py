"""One of the processes that train a large network, which says what memory each of its phases took.

    torchrun --nproc-per-node 2 worker.py CONFIG.json (begin|resume) RESULT.json
    python worker.py POSTERIOR load RESULT.json

``begin`` takes the first steps and ends one behind a checkpoint, as if it had been killed; ``resume`` goes on from that,
evaluates and saves; ``load`` reads a posterior in one process. Memory is Linux's: ``VmHWM``, the most pages that the process
had in RAM, reset before each phase.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.inference import ProximalScore
from proxscore.posterior import Posterior
from proxscore.training.evaluation import evaluate_variants  # noqa: F401  (its imports count as an idle worker's)
from proxscore.training.local import torchrun
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop import train as loop
from proxscore.training.loop.fit import fit
from proxscore.training.sharding import meshes
from proxscore.training.worker import Write


def status(field: str) -> int:
    """Bytes that Linux counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def reset() -> None:
    """Let the high-water mark begin anew at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


class Measured(LocalWorker):
    """A worker that keeps, of every phase between two reports, what it took above an idle process, and how long.

    Args:
        idle: bytes of this process before there is a network.
    """

    def __init__(self, *arguments: Any, idle: int) -> None:
        super().__init__(*arguments)
        self.idle = idle
        self.phases: list[dict[str, Any]] = []
        self.begin()

    def begin(self) -> None:
        gc.collect()
        reset()
        self._since = time.perf_counter()

    def note(self, name: str, **more: Any) -> None:
        """End a phase."""
        seconds = time.perf_counter() - self._since
        held, peak = status("VmRSS") - self.idle, status("VmHWM") - self.idle
        self.phases.append({"name": name, "seconds": seconds, "peak": peak, "held": held, **more})
        self.begin()

    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        losses = [(record["step"], record["train/nll"]) for record in payload["records"]]
        times = {name: value for name, value in payload["resources"].items() if name.startswith("seconds_")}
        if losses:
            self.note("validation" if payload["metrics"] else "step", losses=losses, times=times)
        else:
            self.note("evaluation")
        super().report(payload, write, wait=wait)
        if write is not None:
            self.note("checkpoint" if losses else "posterior")


def work(config: Config, action: str, folder: Path) -> dict[str, Any]:
    """Train and say what it took."""
    task = config.task.build()
    device = torch.device("cpu")
    arrangement = meshes.build_meshes(config, config.method, "cpu", config.training.workers)
    task.data.train.__getitems__([0, 1])  # decoders and what else an idle worker has
    _warm_up(arrangement.fsdp)
    dist.barrier()
    worker = Measured(folder, device, lambda payloads: None, 1, arrangement, idle=status("VmRSS"))
    if action == "begin":
        fit(config, config.method, config.training.epochs, task, worker, until=2 / 3)
        return {"idle": worker.idle, "phases": worker.phases}
    results = loop.train(config, config.method, config.training.epochs, task, worker)
    return {"idle": worker.idle, "phases": worker.phases, "test": results["test"], "parameters": results["parameters"]}


def _warm_up(mesh: DeviceMesh) -> None:
    """Take a step of a network of some hundred weights, so that libraries' code and buffers count as an idle worker's."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 4)
    )
    fully_shard(module, mesh=mesh)
    optimizer = ProximalScore(module.named_parameters(), 10, initial_precision=1.0)
    for _ in optimizer.draws():
        module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()


def load(folder: Path) -> dict[str, Any]:
    """Read a posterior in this process, and say what it took."""
    idle = status("VmRSS")
    reset()
    started = time.perf_counter()
    posterior = Posterior.load(folder)
    seconds = time.perf_counter() - started
    numbers = sum(tensor.nbytes for tensors in posterior.groups().values() for tensor in tensors.values())
    found = {"seconds": seconds, "peak": status("VmHWM") - idle, "bytes": numbers}
    posterior.draw(0)
    return found


def main(file: str, action: str, result: str) -> None:
    torch.set_num_threads(1)
    if action == "load":
        Path(result).write_text(json.dumps(load(Path(file))))
        return
    config = torchrun.with_process_count(configuration.parse(json.loads(Path(file).read_text())))
    with torchrun.process_group(config):
        found = work(config, action, Path(config.training.storage))
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, found)
        if dist.get_rank() == 0:
            Path(result).write_text(json.dumps(ranks))


if __name__ == "__main__":
    main(*sys.argv[1:])
