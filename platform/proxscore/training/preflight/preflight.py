"""What the start-up checks have found out about a job, so that nobody builds or counts it again."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from proxscore.config import Config, MethodSection, TrainingConfig
from proxscore.tasks import Task
from proxscore.training.initial_network import InitialNetwork
from proxscore.training.preflight.memory import Memory, UncountableError, count_memory


class Preflight:
    """A job that is about to begin: its network is built once with numbers and once without, its memory counted once a method.

    Attributes:
        config: of the job.
        task: that it trains on.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self.config, self.task = config, task
        self._counted: dict[tuple[str, str], Memory | UncountableError] = {}

    @cached_property
    def initial(self) -> InitialNetwork:
        """The network as training begins with it.

        Raises:
            ConfigError: it cannot be built.
        """
        return InitialNetwork(self.config, self.task)

    @cached_property
    def meta_network(self) -> nn.Module:
        """The network on the meta device, which memory is counted on."""
        return self.task.build_model(torch.device("meta"))

    def release(self) -> None:
        """Let go of the network's numbers: workers in other processes make their own."""
        if "initial" in self.__dict__:
            self.initial.module = None

    def memory(self, settings: MethodSection, training: TrainingConfig | None = None) -> Memory:
        """Count what a worker of a method holds, or look up what has been counted.

        Args:
            training: another arrangement of workers than the job's.

        Raises:
            ConfigError: the network, the method's settings for a run of this length, or the arrangement of workers, is
                refused.
            UncountableError: the network needs numbers to be built or to be run forward; says what stands in the way.
        """
        training = training or self.config.training
        key = settings.model_dump_json(), training.model_dump_json()
        if key not in self._counted:
            self._counted[key] = self._count(settings, self.config.model_copy(update={"training": training}))
        found = self._counted[key]
        if isinstance(found, UncountableError):
            raise found
        return found

    def countable(self, settings: MethodSection) -> Memory | None:
        """Count as :meth:`memory` does, and give none where that is not possible."""
        try:
            return self.memory(settings)
        except UncountableError:
            return None

    def _count(self, settings: MethodSection, config: Config) -> Memory | UncountableError:
        try:
            return count_memory(config, settings, self.task, lambda: self.meta_network)
        except UncountableError as error:
            return error
