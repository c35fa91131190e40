"""Ensembles: members trained one after another by the loop, each from its own seed, and put together as one predictive.

A checkpoint holds the member in training, and the posteriors of those before it in ``members/``. Lakshminarayanan et al.,
Simple and scalable predictive uncertainty estimation using deep ensembles, arXiv 1612.01474.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from proxscore.config import Config
from proxscore.inference import noise
from proxscore.posterior import Posterior
from proxscore.posterior.convergence import KEY, Verdict
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

        def write_all(folder: Path) -> None:
            assert write is not None
            write(folder)
            if self.rank == 0:
                for k, posterior in enumerate(self.finished):
                    posterior.save(folder / "members" / str(k))

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


def finished_members(worker: Worker) -> list[Member]:
    """Load the finished members of the newest checkpoint; there are none without a checkpoint."""
    for held in worker.checkpoints():
        with held as folder:
            return [Member(Posterior.load(member)) for member in member_folders(folder)]
    return []


def member_config(config: Config, number: int) -> Config:
    """Give a member a seed of its own, of initial weights, order of data and noise."""
    return config.model_copy(update={"seed": noise.key(config.seed, "member", number) % 2**31})


@dataclass(frozen=True)
class Member:
    """A member that is finished.

    Attributes:
        saved: its posterior on the CPU, with the seconds that it took and its verdict, as checkpoints hold it. Where the
            network is sharded, it is whole on the first rank alone, or, of one that a checkpoint gave, on every rank.
        shards: its posterior in shards; none: it is not sharded, or comes from a checkpoint.
    """

    saved: Posterior
    shards: Posterior | None = None

    @classmethod
    def of(cls, posterior: Posterior, seconds: float, sharded: bool) -> Member:
        """Keep the posterior of a member that has just been trained."""
        kept = {key: value for key, value in posterior.description.items() if key == KEY}
        saved = posterior.gather()
        saved.description = {"seconds": seconds} | kept
        return cls(saved, posterior.detached() if sharded else None)

    def posterior(self, module: nn.Module, sharded: bool) -> Posterior:
        """Its posterior, as the module of the last member predicts with it."""
        if not sharded:
            return self.saved
        found = self.saved.sharded_as(module) if self.shards is None else self.shards
        found.description = self.saved.description
        return found


def joint_verdict(members: list[Posterior]) -> dict[str, Any]:
    """Join the members' verdicts into one, if they have one each, as a description holds it."""
    found = [verdict for member in members if (verdict := member.verdict) is not None]
    return {KEY: Verdict.of_all(found).as_json()} if len(found) == len(members) else {}
