"""A log density over named tensors, whole or as a sum over rows, with its score and its curvature at a point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.inference import noise

#: A function of named tensors (and, in mini-batches, of rows of the data) that gives a tensor.
Function = Callable[..., Tensor]

#: Probes of the curvature's diagonal; with as many numbers or fewer, each has its own, and the diagonal is exact.
PROBES = 64


class Target:
    """log p(theta) + constant, up to noise of mini-batches.

        whole:  log_density(tensors)
        rows:   N / B sum of log_density(tensors, rows of the batch)  +  log_prior(tensors)

    Args:
        log_density: a scalar; with ``data``, one number per row.
        start: tensors by name, of one floating type on one device; shapes and names are those of the posterior.
        data: tensors of N rows each.
        batch_size: B; none: all rows.
        log_prior: with ``data``: what is not summed over rows. A scalar.
        seed: of the order of the rows.

    Raises:
        ConfigError: in one line, what of these does not fit, or fails at the start.
    """

    def __init__(
        self,
        log_density: Function,
        start: Mapping[str, Tensor],
        data: Sequence[Tensor] | Tensor | None = None,
        batch_size: int | None = None,
        log_prior: Function | None = None,
        seed: int = 0,
    ) -> None:
        self._log_density, self._log_prior = log_density, log_prior
        self.data = () if data is None else (data,) if isinstance(data, Tensor) else tuple(data)
        self.start = {name: self._checked(name, value) for name, value in start.items()}
        if not self.start:
            raise ConfigError("start names no tensor: give a dictionary such as {'mu': torch.zeros(())}")
        first = next(iter(self.start))
        for name, value in self.start.items():
            if (value.dtype, value.device) != (self.start[first].dtype, self.start[first].device):
                raise ConfigError(
                    f"start[{name!r}] is {value.dtype} on {value.device}, start[{first!r}] is {self.start[first].dtype} on "
                    f"{self.start[first].device}: take one type and device for all"
                )
        self.sizes = [value.numel() for value in self.start.values()]
        #: D, the numbers of all tensors.
        self.numbers = sum(self.sizes)
        self._check_data(batch_size)
        self.rows = len(self.data[0]) if self.data else 0
        self.batch_size = min(batch_size or self.rows, self.rows)
        self._seed = seed
        self._check_start()

    @staticmethod
    def _checked(name: str, value: object) -> Tensor:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"start: {name!r} is no name; keys are texts")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"start[{name!r}] is {kind}; it must be a tensor of floating-point numbers")
        if value.numel() == 0:
            raise ConfigError(f"start[{name!r}] has shape {tuple(value.shape)}: it holds no number")
        if not value.isfinite().all():
            raise ConfigError(f"start[{name!r}] is not finite")
        if value.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"start[{name!r}] is {value.dtype}; take float32, or float64, which small problems can afford"
            )
        return value.detach().clone(memory_format=torch.contiguous_format)

    def _check_data(self, batch_size: int | None) -> None:
        if not self.data:
            for setting, value in (("batch_size", batch_size), ("log_prior", self._log_prior)):
                if value is not None:
                    raise ConfigError(f"{setting} is given without data: a density without rows is taken whole")
            return
        for index, tensor in enumerate(self.data):
            if not isinstance(tensor, Tensor) or tensor.ndim == 0:
                raise ConfigError(
                    f"data[{index}] is {type(tensor).__name__}; it must be a tensor whose first dimension runs over rows"
                )
            if len(tensor) != len(self.data[0]) or len(tensor) == 0:
                raise ConfigError(
                    f"data[{index}] has {len(tensor)} rows, data[0] has {len(self.data[0])}: rows must match, and be some"
                )
        if batch_size is not None and not 1 <= batch_size <= len(self.data[0]):
            raise ConfigError(f"batch_size is {batch_size}; it must be 1 to {len(self.data[0])}, the rows of data")

    def _check_start(self) -> None:
        tensors = self.tensors(self.vector())
        try:
            value = self.log_density(tensors, next(self.batches()))
        except (KeyError, TypeError) as error:
            what = f"KeyError: {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"log_density fails at the start ({what}): it takes a dictionary of {', '.join(self.start)}"
                + (f" and {len(self.data)} tensor(s) of rows" if self.data else "")
            ) from error
        if not value.isfinite():
            raise ConfigError(f"log_density is {value.item()} at the start: choose a start where it is finite")
        if not value.requires_grad:
            raise ConfigError(
                "log_density has no gradient: compute it from the tensors with torch, without detach or item"
            )
        gradients = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
        for name, gradient in zip(self.start, gradients, strict=True):
            if gradient is None:
                raise ConfigError(
                    f"log_density does not depend on {name!r}: it has no posterior; leave it out of start"
                )
            if not gradient.isfinite().all():
                raise ConfigError(f"log_density has no finite gradient by {name!r} at the start: choose another start")

    # ------------------------------------------------------------ vectors and rows

    def vector(self) -> Tensor:
        """The start as a vector (D,): tensors in the order of ``start``, each as ``flatten()`` has it."""
        return torch.cat([value.reshape(-1) for value in self.start.values()])

    def tensors(self, vector: Tensor, grad: bool = True) -> dict[str, Tensor]:
        """A vector (D,) as named tensors; with ``grad``, leaves of a graph."""
        pieces = vector.detach().split(self.sizes)
        found = {name: p.view(s.shape).to(s) for (name, s), p in zip(self.start.items(), pieces, strict=True)}
        return {name: value.clone().requires_grad_() for name, value in found.items()} if grad else found

    def batches(self) -> Iterator[tuple[Tensor, ...] | None]:
        """Rows without end: each pass in a new random order, in batches whose sizes differ by at most one."""
        count, turn = -(-self.rows // self.batch_size) if self.data else 0, 0
        while True:
            if count <= 1:
                yield self.data or None
                continue
            generator = torch.Generator().manual_seed(noise.key(self._seed, "rows", turn) >> 1)
            for rows in torch.randperm(self.rows, generator=generator).tensor_split(count):
                yield tuple(tensor[rows.to(tensor.device)] for tensor in self.data)
            turn += 1

    # ------------------------------------------------------------ values

    def log_density(self, tensors: Mapping[str, Tensor], rows: tuple[Tensor, ...] | None = None) -> Tensor:
        """The scalar log p(theta), estimated from ``rows`` (none: whole, of all rows).

        Raises:
            ConfigError: a function gives another shape, or no tensor.
        """
        if not self.data:
            return _felt(_scalar("log_density", self._log_density(dict(tensors))))
        rows = self.data if rows is None else rows
        terms, count = self._log_density(dict(tensors), *rows), len(rows[0])
        if not isinstance(terms, Tensor) or terms.shape != (count,):
            shape = f"shape {tuple(terms.shape)}" if isinstance(terms, Tensor) else type(terms).__name__
            raise ConfigError(
                f"log_density gives {shape} for {count} rows; with data it must give one number per row, ({count},)"
            )
        total = terms.sum() * (self.rows / count)
        if self._log_prior is not None:
            total = total + _scalar("log_prior", self._log_prior(dict(tensors)))
        return _felt(total)

    def score(self, vector: Tensor, rows: tuple[Tensor, ...] | None = None) -> Tensor:
        """grad log p at a vector (D,), as a vector."""
        tensors = self.tensors(vector)
        with torch.enable_grad():
            value = self.log_density(tensors, rows)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(tensors.values()))]).to(vector)

    def curvature(self, vector: Tensor, rows: tuple[Tensor, ...] | None = None) -> Tensor:
        """The diagonal of -d^2 log p / d theta^2 at a vector, (D,): exact up to 64 numbers, beyond from random signs.

        By derivatives of the gradient; where a function has none of a second order, by differences of gradients.
        """
        count = min(self.numbers, PROBES)
        if self.numbers <= PROBES:
            probes = torch.eye(self.numbers, dtype=vector.dtype, device=vector.device)
        else:
            generator = torch.Generator().manual_seed(noise.key(self._seed, "probes") >> 1)
            probes = torch.randint(0, 2, (count, self.numbers), generator=generator).to(vector) * 2 - 1
        total = torch.zeros_like(vector)
        tensors = self.tensors(vector)
        leaves = list(tensors.values())
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.log_density(tensors, rows), leaves, create_graph=True)
            whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        for probe in probes:
            total -= probe * self._second(whole, leaves, probe, vector, rows)
        return total if self.numbers <= PROBES else total / count

    def _second(
        self, gradient: Tensor, leaves: list[Tensor], probe: Tensor, vector: Tensor, rows: tuple[Tensor, ...] | None
    ) -> Tensor:
        """The second derivative times a vector."""
        if not gradient.requires_grad:  # of a density that is linear
            return torch.zeros_like(vector)
        try:
            found = torch.autograd.grad(gradient, leaves, probe.to(gradient), retain_graph=True, materialize_grads=True)
        except RuntimeError:  # a step of the function has a first derivative only
            scale = torch.finfo(vector.dtype).eps ** (1 / 3) * max(1.0, vector.abs().mean().item())
            direction = probe * scale
            return (self.score(vector + direction, rows) - self.score(vector - direction, rows)) / (2 * scale)
        return torch.cat([each.reshape(-1) for each in found]).to(vector)


def _scalar(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{name} gives {shape}; it must give one number: sum over everything")
    return value.reshape(())


def _felt(value: Tensor) -> Tensor:
    """A value that is not finite has a gradient that is not, either: that of log(x) is finite where x is negative."""
    return value if value.isfinite() else value * torch.nan
