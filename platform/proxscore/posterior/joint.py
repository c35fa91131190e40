"""Parameters that one family describes together: their part of a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.families import State
from proxscore.inference.layout import Layout


@dataclass
class Joint:
    """Parameters that one family describes together.

    Attributes:
        layout: their names, and how a vector of the family is cut into them.
        state: of the family.
    """

    layout: Layout
    state: State

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.layout.members]

    def draw_(self, targets: Mapping[str, Tensor], index: int, seed: int) -> None:
        """Write draw ``index`` into the tensors of these names."""
        with torch.no_grad():
            vector = self.layout.draw(self.state, 1.0, noise.key(seed, "posterior", index))
            self.layout.put(vector, (targets[name] for name in self.names))

    def gathered(self) -> State:
        """The state of the whole block; where it is sharded, every rank must call it."""
        return {name: self.layout.gather(value) for name, value in self.state.items()}

    def placed_as(self, means: Mapping[str, Tensor]) -> Joint:
        """The block, whose state is whole, for these means, which may be sharded: then a rank keeps its part, if the family
        can be cut."""
        members = [(name, means[name], noise.shard_offset(means[name], name)) for name in self.names]
        layout = Layout(self.layout.family, members)
        if not layout.local:
            return Joint(layout, self.state)
        parts = list(zip(members, layout.sizes, strict=True))

        def own(value: Tensor) -> Tensor:
            if not value.ndim:
                return value
            pieces = value.split(self.layout.sizes)
            cut = [piece[start : start + size] for ((_, _, start), size), piece in zip(parts, pieces, strict=True)]
            return torch.cat(cut)

        return Joint(layout, {name: own(value) for name, value in self.state.items()})
