"""Running statistics of BatchNorm layers under each draw, kept with a posterior: whoever has no training data predicts with them.

Under each draw of the weights the layers' inputs have other means and variances, which a pass over training batches
estimates (:func:`proxscore.posterior.drawn.refresh_batch_norm`). The statistics of a number of draws of one seed, and of the
mean, lie in ``draw_statistics.safetensors`` beside the posterior: twice as many numbers as there are channels, for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference.names import named_buffers
from proxscore.storage import replacing

FILE = "draw_statistics.safetensors"
_MEAN = "mean"
#: What the draws' noise is, whose statistics a file holds: those of other noise belong to other draws.
_NOISE = "philox4x32-10"


@dataclass
class DrawStatistics:
    """Buffers by the index of a draw (none: of the mean), and by name.

    Attributes:
        seed: of the draws.
        buffers: of each draw that is known.
        outdated: whether they were those of the draws of an earlier version, whose noise was another.
    """

    seed: int
    buffers: dict[int | None, dict[str, Tensor]] = field(default_factory=dict)
    outdated: bool = False

    @classmethod
    def load(cls, folder: Path) -> DrawStatistics | None:
        """Read those beside a posterior; none: its network has no such layers, or it was saved without them.

        Raises:
            ConfigError: the file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                found = cls(int(told["seed"]), outdated=told.get("noise") != _NOISE)
                for key in file.keys():  # noqa: SIM118  (no dictionary)
                    index, _, name = key.partition(".")
                    if index == _MEAN or not found.outdated:
                        found.buffers.setdefault(None if index == _MEAN else int(index), {})[name] = file.get_tensor(
                            key
                        )
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: damaged statistics of draws: {' '.join(str(error).split())}") from error
        return found

    def save(self, folder: Path) -> None:
        """Write them beside a posterior; nothing, where there are none."""
        tensors = {
            f"{_MEAN if index is None else index}.{name}": value.detach().cpu().contiguous()
            for index, named in self.buffers.items()
            for name, value in named.items()
        }
        if tensors:
            with replacing(folder / FILE) as partial:
                save_file(tensors, partial, metadata={"seed": str(self.seed), "noise": _NOISE})

    @property
    def draws(self) -> int:
        """How many draws are known, from the first on.

        Raises:
            ConfigError: they are of an earlier version.
        """
        self.check([0][: self.outdated], self.seed)
        return len(self.buffers.keys() - {None})

    def check(self, indices: Sequence[int], seed: int) -> None:
        """Refuse draws, by their indices, whose statistics are not known.

        Raises:
            ConfigError: they are more, of another seed, or of an earlier version.
        """
        if indices and self.outdated:
            raise ConfigError(
                "the statistics of BatchNorm layers are those of an earlier version's draws, which had other noise: train again, "
                "give training batches to estimate them from (refresh), or predict with the mean weights"
            )
        if indices and seed != self.seed:
            raise ConfigError(
                f"seed is {seed}: the statistics of BatchNorm layers are known of draws of seed {self.seed} alone: use it"
            )
        if not self.buffers.keys() >= set(indices):
            raise ConfigError(
                f"the statistics of BatchNorm layers are known of {self.draws} draws: ask for at most so many, or train with a "
                "larger evaluation.draws"
            )

    def put_into(self, module: nn.Module, index: int | None, seed: int) -> None:
        """Put the statistics of a draw into the layers of a network.

        Raises:
            ConfigError: that draw's are not known.
        """
        if index is not None:
            self.check([index], seed)
        if index not in self.buffers:
            raise ConfigError("the statistics of BatchNorm layers under the mean weights are not known")
        held = named_buffers(module)
        with torch.no_grad():
            for name, value in self.buffers[index].items():
                if name not in held or held[name].shape != value.shape:
                    raise ConfigError(f"{FILE}: the network has no buffer {name} of shape {tuple(value.shape)}")
                held[name].copy_(value)

    @classmethod
    def of(cls, seed: int, *found: Mapping[int | None, Mapping[str, Tensor]]) -> DrawStatistics:
        """Of what :meth:`proxscore.posterior.drawn.Drawn.statistics` gave for draws, and for the mean."""
        joined = {index: dict(named) for each in found for index, named in each.items() if named}
        return cls(seed, joined)
