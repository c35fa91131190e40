"""The network that start-up checks have built, for the loop that trains it."""

from __future__ import annotations

import torch
from torch import nn

from proxscore.config import Config
from proxscore.tasks import Task


def build_network(config: Config, task: Task) -> nn.Module:
    """Build the network as training begins with it: on the CPU, or without numbers where shards are initialised one by one."""
    return task.build_model(torch.device("meta")) if config.training.meta_init else task.build_model()


class InitialNetwork:
    """A network with the initial weights that a configuration's seed gives; on the meta device with ``training.meta_init``.

    A large network takes long to build. So the one that the checks need is handed on to the loop, with the state of torch's
    random numbers that building it left: the run is the same, to the bit, as if the loop had built it.

    Attributes:
        module: the network, until it is taken.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self._seed = config.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.module: nn.Module | None = build_network(config, task)
            self._random_state = torch.get_rng_state()

    def take(self, config: Config) -> nn.Module | None:
        """Hand over the network, once, as training changes it, and to a run from the same seed; any other gets none."""
        if self.module is None or config.seed != self._seed:
            return None
        torch.set_rng_state(self._random_state)
        module, self.module = self.module, None
        return module
