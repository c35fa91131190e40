"""The covariance of a linear layer's outputs, from the posterior of its weights, without that of all its weights:

    f = W phi + b,    Var f_c = phi_1^T Sigma_cc phi_1,    phi_1 = (phi, 1)

Sigma_cc is the block of the numbers of output c, D + 1 of them. Of a mean field it is a diagonal, of a Kronecker-factored
Gaussian Cov f = A A^T |B^T phi|^2, of low rank (SWAG's, and a mixture's, likewise) a diagonal and r columns. None of these
takes more memory than the family itself; of a full covariance there are C blocks of (D + 1)^2 numbers. Independent blocks
add up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.inference import Family, FullCovariance, Kronecker, LowRank, Mixture
from proxscore.posterior import moments
from proxscore.posterior.joint import Joint
from proxscore.posterior.posterior import Posterior
from proxscore.posterior.swag import SWAGPosterior

#: Numbers of what is held at a time for the covariances of some rows.
MOST_NUMBERS = 2**25
#: Numbers of a family of whose covariance nothing but the matrix is known.
LARGEST_OTHER = 2_000


class Term(ABC):
    """An independent part of the outputs' covariance."""

    @abstractmethod
    def variance(self, phi: Tensor) -> Tensor:
        """(N, C), of features (N, D)."""

    @abstractmethod
    def covariance(self, phi: Tensor) -> Tensor:
        """(N, C, C)."""


@dataclass
class Diagonal(Term):
    """Independent numbers: variances (C, D) of the weight, (C,) of the bias."""

    weight: Tensor
    bias: Tensor

    def variance(self, phi: Tensor) -> Tensor:
        return phi.square() @ self.weight.mT + self.bias

    def covariance(self, phi: Tensor) -> Tensor:
        return self.variance(phi).diag_embed()


@dataclass
class Columns(Term):
    """Sigma = U U^T of r columns: (C, D, r) of the weight, (C, r) of the bias."""

    weight: Tensor
    bias: Tensor

    def variance(self, phi: Tensor) -> Tensor:
        found = phi.new_zeros(len(phi), len(self.weight))
        for column in range(self.bias.shape[1]):
            found += (phi @ self.weight[..., column].mT + self.bias[:, column]).square()
        return found

    def covariance(self, phi: Tensor) -> Tensor:
        each = max(1, MOST_NUMBERS // self.bias.numel())  # rows whose outputs along all columns are held
        return torch.cat([self._covariance(part) for part in phi.split(each)])

    def _covariance(self, phi: Tensor) -> Tensor:
        along = torch.einsum("nd,cdr->ncr", phi, self.weight) + self.bias
        return along @ along.mT


@dataclass
class Blocks(Columns):
    """The same of as many columns as there are numbers; variances go by the blocks Sigma_cc."""

    def __post_init__(self) -> None:
        rows = torch.cat([self.weight, self.bias[:, None]], 1)  # (C, D + 1, r)
        self._blocks = torch.stack([each @ each.mT for each in rows])

    def variance(self, phi: Tensor) -> Tensor:
        extended = torch.cat([phi, torch.ones_like(phi[:, :1])], 1)
        return torch.stack([((extended @ block) * extended).sum(1) for block in self._blocks], 1)


@dataclass
class Product(Term):
    """Kronecker-factored: Sigma = A A^T (x) B B^T, A (C, C), B (D, D)."""

    rows: Tensor
    columns: Tensor

    def variance(self, phi: Tensor) -> Tensor:
        return torch.outer((phi @ self.columns).square().sum(1), self.rows.square().sum(1))

    def covariance(self, phi: Tensor) -> Tensor:
        return (phi @ self.columns).square().sum(1)[:, None, None] * (self.rows @ self.rows.mT)


class HeadCovariance:
    """Variances and covariances of a linear layer's outputs.

    Args:
        posterior: Gaussian, or with moments that are known.
        weight: name of the layer's weight.
        bias: name of its bias, if it has one.
        like: features of some rows: of their device and type.

    Raises:
        ConfigError: a posterior without a covariance in closed form, or one that is sharded.
    """

    def __init__(self, posterior: Posterior, weight: str, bias: str | None, like: Tensor) -> None:
        moments.check_whole(posterior.mean.values())
        self._names = [weight] if bias is None else [weight, bias]
        self._shape = posterior.mean[weight].shape
        self._like = like
        self._terms = list(self._of(posterior))

    @property
    def certain(self) -> bool:
        """Whether the layer's weights are point estimates: its outputs then have no variance."""
        return not self._terms

    def variance(self, phi: Tensor) -> Tensor:
        """(N, C), of features (N, D)."""
        zeros = phi.new_zeros(len(phi), self._shape[0])
        return sum((term.variance(phi) for term in self._terms), start=zeros)

    def covariance(self, phi: Tensor) -> Tensor:
        """(N, C, C), of features (N, D).

        Raises:
            ConfigError: so many numbers that they are not to be written out.
        """
        classes = self._shape[0]
        if len(phi) * classes**2 > 4 * MOST_NUMBERS:
            raise ConfigError(
                f"covariances of {classes:,} outputs of {len(phi):,} rows are {len(phi) * classes**2:,} numbers: give smaller "
                "batches, or take draws of the last layer (head_draws=32)"
            )
        zeros = phi.new_zeros(len(phi), classes, classes)
        return sum((term.covariance(phi) for term in self._terms), start=zeros)

    def _of(self, posterior: Posterior) -> Iterator[Term]:
        if type(posterior) not in (Posterior, SWAGPosterior):
            raise ConfigError(
                f"a posterior of kind {posterior.kind} has no covariance of a last layer alone: predict with draws"
            )
        if any(name in posterior.precision for name in self._names):
            variances = {
                name: posterior.precision[name].reciprocal() for name in self._names if name in posterior.precision
            }
            yield Diagonal(*self._placed(variances))
        if isinstance(posterior, SWAGPosterior):
            scale = 1 / math.sqrt(2 * (len(posterior.deviations) - 1))
            columns = {
                name: torch.stack([each[name] for each in posterior.deviations], -1) * scale
                for name in self._names
                if name in posterior.deviations[0]
            }
            yield Columns(*self._placed(columns))
        for joint in posterior.joint:
            if any(name in joint.names for name in self._names):
                yield from self._of_joint(joint)

    def _of_joint(self, joint: Joint) -> Iterator[Term]:
        family, state = joint.layout.family, {name: value.detach() for name, value in joint.state.items()}
        if type(family).covariance is Family.covariance:  # independent numbers
            yield Diagonal(*self._placed(self._cut(joint, family.variance(state))))
        elif isinstance(family, LowRank):
            yield Diagonal(*self._placed(self._cut(joint, state["variance"])))
            yield Columns(*self._placed(self._cut(joint, state["factor"])))
        elif isinstance(family, Mixture):
            weights = state["means"].new_tensor(family.weights)
            offsets = (state["means"] - family.mean(state)[:, None]) * weights.sqrt()
            yield Diagonal(*self._placed(self._cut(joint, state["precisions"].reciprocal() @ weights)))
            yield Columns(*self._placed(self._cut(joint, offsets)))
        elif isinstance(family, Kronecker):
            yield Product(state["rows"].to(self._like), state["columns"].to(self._like))
        elif isinstance(family, FullCovariance):
            yield Blocks(*self._placed(self._cut(joint, state["factor"])))
        elif joint.layout.size <= LARGEST_OTHER:
            values, vectors = torch.linalg.eigh(family.covariance(state).double())
            yield Blocks(*self._placed(self._cut(joint, vectors * values.clamp_min(0).sqrt())))
        else:
            raise ConfigError(
                f"family {family.kind} of {self._names[0]} and others: a covariance of {joint.layout.size:,} numbers is not "
                f"decomposed here (at most {LARGEST_OTHER:,}): take draws of the last layer (head_draws=32)"
            )

    def _cut(self, joint: Joint, values: Tensor) -> dict[str, Tensor]:
        """The part of each of the layer's parameters, (*shape, ...), of what runs over the numbers of a block."""
        ends = [sum(joint.layout.sizes[:k]) for k in range(len(joint.names) + 1)]
        parts = {name: values[a:b] for name, (a, b) in zip(joint.names, pairwise(ends), strict=True)}
        shapes = {name: tensor.shape for name, tensor, _ in joint.layout.members}
        return {n: parts[n].reshape(*shapes[n], *values.shape[1:]) for n in self._names if n in parts}

    def _placed(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of weight and bias, where features are; zeros for one that is not among them."""
        weight = next(iter(self._names))
        some = next(iter(values.values()))
        more = some.shape[len(self._shape) if weight in values else 1 :]
        found = [values.get(weight, some.new_zeros(*self._shape, *more))]
        found.append(values.get(self._names[-1]) if len(self._names) == 2 else None)  # type: ignore[arg-type]
        if found[1] is None:
            found[1] = some.new_zeros(self._shape[0], *more)
        return found[0].detach().to(self._like), found[1].detach().to(self._like)
