"""Ensembles: members trained one after another by the loop, each from its own seed, and put together as one predictive.

A checkpoint holds the member in training, and the posteriors of those before it in ``members/``. Lakshminarayanan et al.,
Simple and scalable predictive uncertainty estimation using deep ensembles, arXiv 1612.01474.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from proxscore.config import Config
from proxscore.inference import noise
from proxscore.posterior import Posterior
from proxscore.posterior.convergence import KEY, Verdict
from proxscore.training.loop import checkpoint
from proxscore.training.worker import Worker, Write


class MemberWorker(Worker):
    """The worker as the loop of one member sees it: that of the ensemble, with steps and time counted over all members.

    Args:
        worker: of the ensemble.
        finished: posteriors of the members before this one, whose descriptions tell the seconds that they took.
        members: of the ensemble.
    """

    def __init__(self, worker: Worker, finished: list[Posterior], members: int) -> None:
        self.method_section = "method.of"
        self.rank, self.world, self.device, self.meshes = worker.rank, worker.world, worker.device, worker.meshes
        self.on_ray = worker.on_ray
        self.worker, self.finished, self.members = worker, list(finished), members

    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        number, steps = len(self.finished), payload["total_steps"]
        before = number * steps
        payload |= {
            "step": before + payload["step"],
            "total_steps": self.members * steps,
            "epoch": payload["epoch"] * (before + payload["step"]) / payload["step"],
            "seconds": self.seconds + payload["seconds"],
            "records": [record | {"step": before + record["step"]} for record in payload["records"]],
        }

        def write_all(folder: Path) -> Callable[[], None] | None:
            assert write is not None
            later = write(folder)
            for k, posterior in enumerate(self.finished):
                checkpoint.save_posterior(folder / "members" / str(k), posterior, self.rank)
            return later

        self.worker.report(payload, None if write is None else write_all, wait=wait)

    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        """Give the ensemble's checkpoints that were written while this member trained."""
        for held in self.worker.checkpoints():
            with held as folder:
                if len(member_folders(folder)) == len(self.finished):
                    yield nullcontext(folder)

    def busy(self) -> bool:
        return self.worker.busy()

    def leaving(self) -> bool:
        return self.worker.leaving()

    @property
    def seconds(self) -> float:
        """The seconds that the members before this one took."""
        return sum(posterior.description["seconds"] for posterior in self.finished)


def member_folders(folder: Path) -> list[Path]:
    """List the folders in which a checkpoint holds its finished members, in order."""
    return sorted((folder / "members").glob("*"), key=lambda path: int(path.name))


def finished_members(worker: Worker) -> list[Posterior]:
    """Load the finished members of the newest checkpoint, each rank its shards; there are none without a checkpoint."""
    for held in worker.checkpoints():
        with held as folder:
            return [Posterior.load(member, worker.mesh) for member in member_folders(folder)]
    return []


def member_config(config: Config, number: int) -> Config:
    """Give a member a seed of its own, of initial weights, order of data and noise."""
    return config.model_copy(update={"seed": noise.key(config.seed, "member", number) % 2**31})


def finished(posterior: Posterior, seconds: float, sharded: bool) -> Posterior:
    """The posterior of a member that has just been trained, as it stays when the next one is: sharded, or on the CPU.

    Its description has the seconds that it took, and its verdict.
    """
    kept = {key: value for key, value in posterior.description.items() if key == KEY}
    found = posterior.detached() if sharded else posterior.gather()
    found.description = {"seconds": seconds} | kept
    return found


def joint_verdict(members: list[Posterior]) -> dict[str, Any]:
    """Join the members' verdicts into one, if they have one each, as a description holds it."""
    found = [verdict for member in members if (verdict := member.verdict) is not None]
    return {KEY: Verdict.of_all(found).as_json()} if len(found) == len(members) else {}
