"""A set of posteriors of equal weight: samples of a Markov chain, the members of an ensemble, or both within each other.

    p(y | x) = 1/M sum_m p(y | x, member m)

Lakshminarayanan et al., deep ensembles, arXiv 1612.01474; Wilson and Izmailov, mixtures of them (MultiSWAG), arXiv 2002.08791.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import noise
from proxscore.inference.names import named_buffers
from proxscore.posterior.posterior import DESCRIPTION_FILE, Joint, Posterior
from proxscore.posterior.stored import unpack


class Samples(Posterior):
    """Members of equal weight, each with its own buffers. Without draws, it is the last member: means of modes are none.

    Args:
        members: at least one.
    """

    kind = "samples"
    single = "member"

    def __init__(self, members: Sequence[Posterior], description: Mapping[str, Any] | None = None) -> None:
        last = members[-1]
        super().__init__(last.mean, {}, last.buffers, dict(last.description if description is None else description))
        self.members = list(members)

    @property
    def random(self) -> bool:
        return len(self.members) > 1 or self.members[0].random

    @property
    def varying(self) -> set[str] | None:
        return None if any(member.varying is None for member in self.members) else set(self.mean)

    @property
    def family(self) -> str:
        return f"{len(self.members)} x {self.members[-1].family}"

    def indices(self, draws: int) -> list[int]:
        """At most so many draws, equally many of each member; of so many members, evenly spaced, if there are more."""
        count = len(self.members)
        if draws < count:
            return [(2 * i + 1) * count // (2 * draws) for i in range(draws)]
        inner = self.members[-1].indices(draws // count)
        return [index * count + member for index in inner for member in range(count)]

    def draw(self, index: int, seed: int = 0) -> dict[str, Tensor]:
        """Weights of one draw; ``index`` counts members first."""
        inner, member = divmod(index, len(self.members))
        return self.members[member].draw(inner, noise.key(seed, "member", member))

    def shuffled(self, draws: int, seed: int) -> list[int]:
        """Members follow each other as they were found: what comes first may be alike."""
        indices = self.indices(draws)
        generator = torch.Generator().manual_seed(noise.key(seed, "order") >> 1)
        return [indices[place] for place in torch.randperm(len(indices), generator=generator).tolist()]

    def put(self, targets: Mapping[str, Tensor], index: int, seed: int = 0) -> None:
        """The weights of a draw; a member's buffers are put in place by :meth:`use` alone."""
        inner, member = divmod(index, len(self.members))
        self.members[member].put(targets, inner, noise.key(seed, "member", member))

    @contextmanager
    def use(self, module: nn.Module, index: int | None = None, seed: int = 0) -> Iterator[nn.Module]:
        """Within the context, weights and buffers are those of a draw (none: the last member's mean)."""
        inner, number = (None, -1) if index is None else divmod(index, len(self.members))
        member = self.members[number]
        held = named_buffers(module)
        buffers = {name: held[name] for name in member.buffers if name in held}
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        try:
            with torch.no_grad():
                for name, buffer in buffers.items():
                    buffer.copy_(member.buffers[name])
            with member.use(module, inner, noise.key(seed, "member", number % len(self.members))):
                yield module
        finally:
            with torch.no_grad():
                for name, buffer in buffers.items():
                    buffer.copy_(before[name])

    def _variances(self) -> dict[str, Tensor]:
        """Within the members, and between their means; of the members' average, not of the last one's mean."""
        found = {}
        within = [member._variances() for member in self.members]
        for name in self.mean:
            means = torch.stack([member.mean[name] for member in self.members])
            found[name] = torch.stack([each[name] for each in within]).mean(0) + means.var(0, correction=0)
        return found

    def _covariance(self, at: Mapping[str, slice]) -> Tensor:
        within = torch.stack([member._covariance(at) for member in self.members]).mean(0)
        means = torch.stack(
            [torch.cat([member.mean[name].reshape(-1).to(within) for name in at]) for member in self.members]
        )
        return within + (means - means.mean(0)).mT @ (means - means.mean(0)) / len(self.members)

    def gather(self) -> Posterior:
        return Samples([member.gather() for member in self.members], self.description)

    def detached(self) -> Posterior:
        return Samples([member.detached() for member in self.members], self.description)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        packed = [member.pack() for member in self.members]
        header: dict[str, Any] = {"format": 1, "family": self.family, "kind": self.kind}
        header["members"] = [member_header for member_header, _ in packed]
        tensors = {f"member-{k}.{name}": t for k, (_, ts) in enumerate(packed) for name, t in ts.items()}
        return header | self.description, tensors

    @classmethod
    def from_groups(
        cls, folder: Path, description: dict[str, Any], groups: dict[str, dict[str, Tensor]], joint: list[Joint]
    ) -> Posterior:
        headers = description.pop("members", None)
        if not isinstance(headers, list) or not headers:
            raise ConfigError(f"{folder / DESCRIPTION_FILE}: a set of samples needs its members")
        members = [unpack(folder, header, groups.get(f"member-{k}", {})) for k, header in enumerate(headers)]
        return cls(members, description)
