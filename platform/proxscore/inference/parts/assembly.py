"""Which parameter belongs to which part of the optimizer: what its family, the prior and the solver decide."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxscore.inference.families import ClosedForm, Family, MeanField
from proxscore.inference.members import Member
from proxscore.inference.parts.block import Block
from proxscore.inference.parts.closed_form_block import ClosedFormBlock
from proxscore.inference.parts.meanless_shards import MeanlessShards
from proxscore.inference.parts.part import Part, States
from proxscore.inference.parts.points import Points
from proxscore.inference.parts.shards import Shards
from proxscore.inference.parts.solved_block import SolvedBlock
from proxscore.inference.penalties import Penalty
from proxscore.inference.solver import GradientSolver


@dataclass(frozen=True)
class Assembly:
    """The settings that decide about parts; the arguments are those of :class:`proxscore.inference.ProximalScore`.

    Args:
        adaptive: with the adaptive metric of the mean.
        scale: data size / temperature.
        evaluations: gradients that add up in a step.
    """

    family: Family
    families: Mapping[str, Family]
    solver: GradientSolver | None
    penalty: Penalty
    adaptive: bool
    keep_mean: bool
    draws: int
    point_lr: float
    scale: float
    evaluations: int

    def check(self, names: Iterable[str]) -> None:
        """Refuse patterns of ``families`` that match none of the names.

        Raises:
            ValueError: names the pattern.
        """
        found = list(names)
        for pattern in self.families:
            if not fnmatch.filter(found, pattern):
                raise ValueError(f"families: the pattern {pattern!r} matches no parameter, for example {found[0]!r}")

    def parts(self, members: list[Member], state: States, seed: int) -> list[Part]:
        """Make the parts of one parameter group.

        Args:
            state: the optimizer's; gets the initial values.
            seed: seed of the initial states' noise.
        """
        points: list[Member] = []
        shards: list[Member] = []
        together: dict[int, list[Member]] = {}
        for member in members:
            family = self._family_of(member)
            if not member.prior.sampled:
                points.append(member)
            elif self.solver is None and isinstance(family, MeanField):
                shards.append(member)
            else:
                together.setdefault(id(member) if family.per_parameter else id(family), []).append(member)
        parts: list[Part] = []
        if shards:
            kind = Shards if self.keep_mean else MeanlessShards
            parts.append(kind(shards, state, self.draws, self.adaptive))
        for joined in together.values():
            for member in joined:
                state[
                    member.parameter
                ].clear()  # there from now on, also where only the first parameter holds something
            parts.append(self._block(joined, seed))
        if points:
            parts.append(Points(points, state, self.point_lr, self.scale, self.evaluations))
        for member in members:
            member.prior_mean = None  # the parts hold their piece of it
        return parts

    def _block(self, members: list[Member], seed: int) -> Block:
        """A block that the solver moves; without a solver, in closed form, or where the family has none, by a default solver."""
        family = self._family_of(members[0])
        if self.solver is None and isinstance(family, ClosedForm):
            return ClosedFormBlock(family, members, seed, self.adaptive)
        return SolvedBlock(family, members, seed, self.solver or GradientSolver(), self.penalty)

    def _family_of(self, member: Member) -> Family:
        matches = [family for pattern, family in self.families.items() if fnmatch.fnmatchcase(member.name, pattern)]
        return matches[-1] if matches else self.family
