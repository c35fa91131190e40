"""Blocks: parameters that one family describes together, and the two solvers of their proximal step.

The optimizer's fast path (mean-field, closed form) needs none of this: it works in place on buckets of shards. A block
flattens its parameters into one vector. Over FSDP2 shards, a shardable family holds this rank's part of the vector, and
sums go over the ranks; any other family is gathered: every rank holds the whole vector and computes the same.

The *closed form* is the family's (:class:`~proxscore.inference.families.base.ClosedForm`). The *gradient solver* takes
``inner_steps`` stochastic gradient steps on the candidate's parameters for

    1/2 E_{theta ~ q_t} || grad log q(theta) - s-hat(theta) ||^2_{Sigma_t}  +  P(q_t, q)

with fresh draws from the anchor q_t and a fresh mini-batch each, and then moves the anchor. With one inner step the
gradient of the penalty, taken at the anchor, is zero: it would do nothing. Source: M. Kim, arXiv 2602.05873.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor import zeros as distributed_zeros

from proxscore.inference import noise
from proxscore.inference.families import ClosedForm, Family, State
from proxscore.inference.families.base import whole
from proxscore.inference.penalties import ForwardKL, NoPenalty, Penalty, Quadratic, ReverseKL
from proxscore.inference.priors import Assignment


@dataclass(frozen=True)
class GradientSolver:
    """Settings of the gradient solver.

    Args:
        inner_steps: optimizer steps for each anchor; more than one, or the penalty does nothing.
        optimizer: a torch optimizer, called as ``optimizer(tensors, lr=lr, **options)``.
        lr: its learning rate, in the families' whitened parameters (all of order one); times the mean's schedule.
        options: its other settings.
    """

    inner_steps: int = 10
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    lr: float = 0.01
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.inner_steps < 2:
            raise ValueError(f"solver.inner_steps is {self.inner_steps}; it must be at least 2: the penalty needs it")
        if not self.lr > 0:
            raise ValueError(f"solver.lr is {self.lr}; it must be positive")


@dataclass
class Member:
    """A parameter of a block: its name, its prior, and where its shard lies in the flattened whole."""

    name: str
    parameter: Tensor
    prior: Assignment
    start: int
    prior_mean: Tensor | None = None


class Layout:
    """Flattened views of a few parameters: of this rank's shards, or of the whole.

    Args:
        family: of the block.
        members: (name, parameter, index of its local shard's first element).
    """

    def __init__(self, family: Family, members: Iterable[tuple[str, Tensor, int]]) -> None:
        self.family = family
        self.members = list(members)
        tensors = [tensor for _, tensor, _ in self.members]
        sharded = [t for t in tensors if isinstance(t, DTensor) and _shards(t) > 1]
        #: Whether vectors hold this rank's shards only.
        self.local = family.shardable and bool(sharded)
        if self.local and len({id(t.device_mesh) for t in sharded if isinstance(t, DTensor)}) > 1:
            raise ValueError(f"family {family.kind}: {self.members[0][0]} and others lie on different device meshes")
        self._group = _group(sharded[0]) if self.local else None
        self.sizes = [noise.local(t).numel() if self.local else t.numel() for t in tensors]
        self.shape, self.size = tensors[0].shape, sum(self.sizes)
        self._streams: dict[tuple[torch.device, torch.dtype], noise.NormalStream] = {}

    def total(self, value: Tensor) -> Tensor:
        """The sum over the shards, differentiable."""
        return all_reduce(value, group=self._group) if self.local else whole(value)

    @property
    def ranks(self) -> int:
        """How many shards there are: a loss that every rank holds counts so often in a backward pass."""
        return dist.get_world_size(self._group) if self.local else 1

    def vector(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors shaped and placed as the parameters, flattened; a trailing dimension more stays a column."""
        pieces = []
        for (_, parameter, _), tensor in zip(self.members, tensors, strict=True):
            columns = tensor.shape[parameter.ndim :]
            if isinstance(tensor, DTensor):
                tensor = tensor.to_local() if self.local else tensor.full_tensor()
            pieces.append(tensor.detach().reshape(-1, *columns))
        return torch.cat(pieces)

    @torch.no_grad()
    def put(self, vector: Tensor, tensors: Iterable[Tensor]) -> None:
        """Write a vector into tensors shaped and placed as the parameters."""
        rows = vector.split(self.sizes)
        for (_, parameter, start), tensor, piece in zip(self.members, tensors, rows, strict=True):
            columns = tensor.shape[parameter.ndim :]
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            flat = local.detach().view(-1, *columns)
            flat.copy_(piece if self.local else piece[start : start + len(flat)])

    def gather(self, vector: Tensor) -> Tensor:
        """The whole of a tensor whose first dimension runs over this rank's part of the vector; every rank must call it."""
        if not self.local or vector.ndim == 0:
            return vector
        tensors = [_empty(parameter, vector.shape[1:]) for _, parameter, _ in self.members]
        self.put(vector, tensors)
        whole_tensors = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
        return torch.cat([t.reshape(-1, *vector.shape[1:]) for t in whole_tensors])

    def normal(self, *words: int | str) -> Tensor:
        """Standard normal numbers for the vector: those of a run that is sharded otherwise, or not at all."""
        tensors = [tensor for _, tensor, _ in self.members]
        result = torch.empty(self.size, device=tensors[0].device, dtype=tensors[0].dtype)
        stream = self._stream(result)
        for (name, parameter, start), piece in zip(self.members, result.split(self.sizes), strict=True):
            first = start if self.local else 0
            for part, values in stream.pieces(noise.key(*words, name), first, len(piece), parameter.numel()):
                piece[part] = values
        return result

    def extra(self, *words: int | str) -> Tensor:
        """The standard normal numbers of a draw that all ranks share."""
        like = self.members[0][1]
        result = torch.empty(self.family.extra, device=like.device, dtype=like.dtype)
        for part, values in self._stream(result).pieces(
            noise.key(*words, "extra", self.members[0][0]), 0, len(result), len(result)
        ):
            result[part] = values
        return result

    def draw(self, state: State, sign: float, *words: int | str) -> Tensor:
        """A draw of the family, as a vector; the same for the same words."""
        return self.family.draw(state, self.normal(*words), self.extra(*words), sign)

    def _stream(self, like: Tensor) -> noise.NormalStream:
        place = like.device, like.dtype
        if place not in self._streams:
            self._streams[place] = noise.NormalStream(*place)
        return self._streams[place]


class Block:
    """A block in training: its anchor, its candidate, and the draws' statistics since the last step.

    Args:
        family, members: what describes what.
        precision: initial precision of each member's numbers.
        seed: of the initial state's noise.
        solver: the gradient solver's settings; none: the closed form.

    Raises:
        ValueError: the family cannot describe these parameters; names the first.
    """

    def __init__(
        self,
        family: Family,
        members: list[Member],
        precision: list[float],
        seed: int,
        solver: GradientSolver | None,
        penalty: Penalty,
    ) -> None:
        self.family, self.members, self.solver, self.penalty = family, members, solver, penalty
        count = sum(member.parameter.numel() for member in members)
        for member in members if family.per_parameter else members[:1]:
            family.check(member.name, member.parameter.shape, count)
        self.layout = Layout(family, [(m.name, m.parameter, m.start) for m in members])
        mean = self.layout.vector(member.parameter for member in members)
        self._prior_precision = self._rows([member.prior.precision for member in members], mean)
        self._prior_mean = torch.zeros_like(mean)
        for member, piece in zip(members, self._prior_mean.split(self.layout.sizes), strict=True):
            if member.prior_mean is not None:
                first = member.start if self.layout.local else 0
                piece.copy_(member.prior_mean.reshape(-1)[first : first + len(piece)])
        self.anchor = family.initial(
            mean, self._rows(precision, mean), self.layout.shape, lambda j: self.layout.normal(seed, "initial", j)
        )
        self._score = torch.zeros_like(mean)  # closed form: running mean of the likelihood's gradient
        self._curvature: Tensor | None = None
        self._first: Tensor | None = None
        self._taken = self._inner = 0
        self.loss = 0.0
        if solver is not None:
            _check_penalty(penalty, family, self.anchor, self.layout)
            self._start(solver)
            self._prepare(solver)

    def _rows(self, values: list[float], like: Tensor) -> Tensor:
        return torch.cat([like.new_full((size,), value) for size, value in zip(self.layout.sizes, values, strict=True)])

    # ------------------------------------------------------------ draws

    def sample(self, sign: float, *words: int | str) -> None:
        """Put a draw from the anchor into the weights."""
        self.layout.put(self.layout.draw(self.anchor, sign, *words), (m.parameter for m in self.members))

    def restore(self) -> None:
        """Put the mean into the weights."""
        self.layout.put(self.family.mean(self.state), (m.parameter for m in self.members))

    def take(self, sign: float, paired: bool, scale: float, momentum: float, draws: int, *words: int | str) -> None:
        """Read the gradients of the mean negative log-likelihood at the draw that is in the weights, and clear them.

        Args:
            sign: 1 for the first draw of a pair, or a single one; -1 for the second.
            scale: data size / temperature.
            draws: of this step.
            words: what the draw was seeded with.
        """
        gradients = []
        for member in self.members:
            assert member.parameter.grad is not None
            gradients.append(member.parameter.grad)
        gradient = self.layout.vector(gradients)
        for each in gradients:  # cleared, not dropped: the second backward of a pair adds to them
            noise.local(each).zero_()
        if paired and sign > 0:
            self._first = gradient
            return
        gradients = [gradient] if self._first is None else [self._first, gradient]
        self._first = None
        if self.solver is None:
            self._statistics(gradients, scale, momentum, draws, words)
        else:
            self._descend(gradients, scale, draws, words)
        self._taken += 1

    def _target_score(self, gradient: Tensor, draw: Tensor, scale: float) -> Tensor:
        return -scale * gradient - self._prior_precision * (draw - self._prior_mean)

    def _statistics(
        self, gradients: list[Tensor], scale: float, momentum: float, draws: int, words: tuple[int | str, ...]
    ) -> None:
        assert isinstance(self.family, ClosedForm)
        self._score.mul_(momentum if self._taken == 0 else 1.0)
        self._score.add_(sum(gradients) / len(gradients), alpha=(1 - momentum) / draws)
        scores = [-scale * gradient for gradient in gradients]
        if len(gradients) == 2:
            draw = [self.layout.draw(self.anchor, sign, *words) for sign in (1.0, -1.0)]
            scores = [self._target_score(g, d, scale) for g, d in zip(gradients, draw, strict=True)]
        curvature = self.family.curvature(self.anchor, self.layout.normal(*words), scores, self._prior_precision)
        self._curvature = curvature / draws if self._curvature is None else self._curvature + curvature / draws

    # ------------------------------------------------------------ the step

    def step(
        self,
        penalty: Penalty,
        weights: tuple[float, float],
        score_scale: float,
        max_log_ratio: float | None,
        max_mean_step: float | None,
        factor: float,
    ) -> None:
        """The proximal step, from what was taken; or one inner step of the gradient solver.

        Args:
            weights: proximal weights (precision, mean) in force.
            score_scale: what the running gradient is multiplied with to be the likelihood's part of the score.
            factor: of the mean's schedule.
        """
        if self.solver is None:
            assert isinstance(self.family, ClosedForm)
            assert self._curvature is not None
            offset = self._prior_precision * (self.family.mean(self.anchor) - self._prior_mean)
            score = score_scale * self._score - offset
            self.family.step(self.anchor, score, self._curvature, penalty, weights, max_log_ratio, max_mean_step)
        else:
            self._inner_step(self.solver, weights, factor)
        self._curvature, self._taken = None, 0
        self.restore()

    def forget(self, *, momentum: bool) -> None:
        """Drop what was taken since the last step, and the running mean of the gradient with it."""
        if momentum:
            self._score.zero_()
        self._curvature, self._first, self._taken = None, None, 0
        if self.solver is not None:
            self._optimizer.zero_grad()

    @property
    def state(self) -> State:
        """The current distribution: the candidate within an anchor's inner steps, else the anchor."""
        if self.solver is None or self._inner == 0:
            return self.anchor
        with torch.no_grad():
            return self.family.candidate(self.anchor, self._leaves)

    # ------------------------------------------------------------ the gradient solver

    def _start(self, solver: GradientSolver) -> None:
        self._leaves = {name: v.requires_grad_() for name, v in self.family.parameters(self.anchor).items()}
        self._optimizer = solver.optimizer(list(self._leaves.values()), lr=solver.lr, **solver.options)
        self._inner = 0

    def _prepare(self, solver: GradientSolver) -> None:
        """Have the inner optimizer make its state, as a checkpoint that is loaded later finds its place by it."""
        for leaf in self._leaves.values():
            leaf.grad = torch.zeros_like(leaf)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._optimizer.step()
        for group in self._optimizer.param_groups:
            group["lr"] = solver.lr
        self._optimizer.zero_grad()
        self._reset_optimizer()

    def _reset_optimizer(self) -> None:
        for values in self._optimizer.state.values():
            for value in values.values():
                if isinstance(value, Tensor):
                    value.zero_()

    @torch.enable_grad()
    def _descend(self, gradients: list[Tensor], scale: float, draws: int, words: tuple[int | str, ...]) -> None:
        """Add the gradient of the score-matching loss of a draw or pair to the candidate's parameters."""
        total, candidate = self.layout.total, self.family.candidate(self.anchor, self._leaves)
        losses = []
        for gradient, sign in zip(gradients, (1.0, -1.0), strict=False):
            draw = self.layout.draw(self.anchor, sign, *words)
            assert not draw.requires_grad  # nothing is differentiated through a draw
            target = self._target_score(gradient, draw, scale)
            difference = self.family.score(candidate, draw, total) - target
            losses.append(0.5 * self.family.norm(self.anchor, difference, total))
        self._words = words
        self._backward(torch.stack(losses).mean() / draws)

    def _backward(self, loss: Tensor) -> None:
        self.loss = loss.item() if self._taken == 0 else self.loss + loss.item()
        (loss / self.layout.ranks).backward()

    def _inner_step(self, solver: GradientSolver, weights: tuple[float, float], factor: float) -> None:
        if self._inner > 0:  # at the anchor itself, its gradient is zero
            with torch.enable_grad():
                penalty = penalty_value(
                    self.penalty, self.family, self.anchor, self._leaves, weights, self._antithetic()
                )
                if penalty is not None:
                    (penalty / self.layout.ranks).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = solver.lr * factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._inner += 1
        if self._inner == solver.inner_steps:
            with torch.no_grad():
                for name, value in self.family.candidate(self.anchor, self._leaves).items():
                    self.anchor[name].copy_(value)
                for name, value in self.family.parameters(self.anchor).items():
                    self._leaves[name].copy_(value)
            self._inner = 0

    def _antithetic(self) -> tuple[Tensor, Tensor, Layout]:
        draws = [self.layout.draw(self.anchor, sign, *self._words) for sign in (1.0, -1.0)]
        return draws[0], draws[1], self.layout

    # ------------------------------------------------------------ storage

    def entries(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; tensors over the vector's rows, or whole ones."""
        found = {f"block.{name}": value for name, value in self.anchor.items()}
        if self.solver is None:
            return found | {"score": self._score}
        for index, (name, leaf) in enumerate(self._leaves.items()):
            found[f"solver.{name}"] = leaf.detach()
            for key, value in self._optimizer.state[list(self._leaves.values())[index]].items():
                if isinstance(value, Tensor):
                    found[f"solver.{name}.{key}"] = value
        return found | {"solver.inner": torch.tensor(float(self._inner))}

    def export(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Write :meth:`entries` into the optimizer's state: by parameter where it is sharded as they are."""
        for name, value in self.entries().items():
            if self._by_parameter(value):
                columns = value.shape[1:]
                for member in self.members:
                    if name not in state[member.parameter]:
                        state[member.parameter][name] = _empty(member.parameter, columns)
                self.layout.put(value, (state[member.parameter][name] for member in self.members))
            else:
                state[self.members[0].parameter][name] = value.detach().clone()

    def load(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Read back what :meth:`export` wrote."""
        with torch.no_grad():
            for name, value in self.entries().items():
                if self._by_parameter(value):
                    value.copy_(self.layout.vector(state[member.parameter][name] for member in self.members))
                elif name == "solver.inner":
                    self._inner = int(state[self.members[0].parameter][name])
                else:
                    value.copy_(state[self.members[0].parameter][name])
        self.forget(momentum=False)

    def _by_parameter(self, value: Tensor) -> bool:
        return self.family.shardable and value.ndim > 0


def penalty_value(
    penalty: Penalty,
    family: Family,
    anchor: State,
    parameters: Mapping[str, Tensor],
    weights: tuple[float, float],
    draws: tuple[Tensor, Tensor, Layout],
) -> Tensor | None:
    """P(anchor, candidate) for the gradient solver, differentiable in the candidate's parameters.

    Where a weight is infinite it is taken as 1e6: the candidate then stays where it is but for rounding.

        forward, reverse    2 kappa_Lambda KL_precision + 2 kappa_m KL_mean; without a closed form (forward only)
                            -2 kappa_Lambda log q(theta) at two mirrored draws from the anchor
        quadratic           kappa_Lambda / 2 E || s - s_t ||^2 of half the difference of mirrored draws (= (R - I) eps),
                            kappa_m E || s - s_t ||^2 of their average (= d)
    """
    if isinstance(penalty, NoPenalty):
        return None
    precision, mean = (min(weight, 1e6) for weight in weights)
    first, second, layout = draws
    candidate = family.candidate(anchor, parameters)
    if isinstance(penalty, Quadratic):
        with torch.no_grad():
            before = [family.score(anchor, draw, layout.total).detach() for draw in (first, second)]
        one, two = (
            family.score(candidate, draw, layout.total) - score
            for draw, score in zip((first, second), before, strict=True)
        )
        curvature = family.norm(anchor, (one - two) / 2, layout.total)
        return precision / 2 * curvature + mean * family.norm(anchor, (one + two) / 2, layout.total)
    parts = family.kl(anchor, candidate, layout.total)
    if isinstance(penalty, ReverseKL):
        parts = family.kl(candidate, anchor, layout.total)
    if parts is not None:
        return 2 * precision * parts[0] + 2 * mean * parts[1]
    density = [family.log_prob(candidate, draw, layout.total) for draw in (first, second)]
    return -precision * (density[0] + density[1])


def _check_penalty(penalty: Penalty, family: Family, anchor: State, layout: Layout) -> None:
    if isinstance(penalty, ReverseKL) and type(family).kl is Family.kl:
        raise ValueError(
            f"penalty reverse_kl: family {family.kind} has no divergence in closed form; use forward_kl or quadratic"
        )
    if not isinstance(penalty, (ForwardKL, ReverseKL, Quadratic, NoPenalty)):
        raise ValueError(f"penalty {type(penalty).__name__} has no form for the gradient solver")


def _shards(tensor: DTensor) -> int:
    """Over how many ranks a tensor is cut."""
    sizes = [tensor.device_mesh.size(d) for d, place in enumerate(tensor.placements) if isinstance(place, Shard)]
    return max(sizes, default=1)


def _group(tensor: DTensor) -> Any:
    """The process group of the ranks that hold a tensor's shards."""
    (dimension,) = (d for d, place in enumerate(tensor.placements) if isinstance(place, Shard))
    return tensor.device_mesh.get_group(dimension)


def _empty(parameter: Tensor, columns: torch.Size) -> Tensor:
    """Zeros of the parameter's shape, with trailing dimensions, placed as it is."""
    shape = (*parameter.shape, *columns)
    if isinstance(parameter, DTensor):
        return distributed_zeros(
            *shape, dtype=parameter.dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
        )
    return parameter.detach().new_zeros(shape)
