"""Going on from a checkpoint of the run, and going back to the best one."""

from __future__ import annotations

import torch
import torch.distributed as dist

from proxscore.config import ConfigError
from proxscore.terminal import say
from proxscore.training.loop import checkpoint
from proxscore.training.worker import Worker


def resume(snapshot: checkpoint.Snapshot, worker: Worker) -> bool:
    """Go on from the newest checkpoint, or from an older one where its files are damaged.

    Returns:
        Whether there is a checkpoint.

    Raises:
        ConfigError: a checkpoint does not fit, or all of them are damaged.
    """
    damaged = []
    for held in worker.checkpoints():
        with held as folder:
            problem = checkpoint.damage(folder)
            found = torch.tensor([problem is not None], dtype=torch.float32, device=worker.device)
            if worker.world > 1:
                dist.all_reduce(found)
            if not found:
                checkpoint.load(folder, snapshot)
                if worker.rank == 0:
                    say(f"going on from the checkpoint at step {snapshot.progress['step']} (processes: {worker.world})")
                return True
        damaged.append(f"{folder}: {problem or 'damaged for another worker'}")
        if worker.rank == 0:
            say(f"checkpoint {damaged[-1]}; going back to the one before")
    if damaged:
        raise ConfigError(f"every checkpoint of this run is damaged ({damaged[0]}): take another name")
    return False


def return_to_best(snapshot: checkpoint.Snapshot, worker: Worker) -> None:
    """Take the state of the lowest validation NLL from its checkpoint; the run counts as one that has taken all its steps.

    Raises:
        ConfigError: its checkpoint is gone.
    """
    ended = dict(snapshot.progress)
    for held in worker.checkpoints():
        with held as folder:
            if checkpoint.damage(folder) is None and checkpoint.step_of(folder) == ended["best_step"]:
                checkpoint.load(folder, snapshot)
                snapshot.progress |= ended | {"stopped": True}
                if worker.rank == 0:
                    say(f"early stopping: back at step {ended['best_step']}, validation NLL {ended['best_score']:.4f}")
                return
    raise ConfigError(
        f"training.early_stopping: the checkpoint of step {ended['best_step']}, where the validation NLL was the lowest "
        f"({ended['best_score']:.4f}), is gone from the run's folder: take another name, or training.early_stopping=false"
    )
