"""Proximal score matching as a torch optimizer.

One iteration, with q_t the current variational distribution (the anchor) and s-hat the mini-batch score:

    q_{t+1} = argmin_q  1/2 E_{theta ~ q_t} || grad log q(theta) - s-hat(theta) ||^2_{Sigma_t}  +  P(q_t, q)

Draws come from the fixed anchor: nothing is differentiated through a draw, so the network needs one ordinary forward
and backward per draw, and the mini-batch score enters linearly, so the update's statistics are unbiased. For the
mean-field Gaussian the minimiser has a closed form (:mod:`proxscore.inference.families.mean_field`).
Source: M. Kim, arXiv 2602.05873.

    optimizer = ProximalScore(model.named_parameters(), data_size=50_000)
    for x, y in loader:
        for _ in optimizer.draws():                       # the weights are a draw from q_t
            likelihood.nll(model(x), y).mean().backward()
        optimizer.step()                                  # the proximal step; the weights are the mean again
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from proxscore.inference import noise
from proxscore.inference.blocks import Block, SolvedBlock, block
from proxscore.inference.convergence import KEY, Probed
from proxscore.inference.families import Family, MeanField
from proxscore.inference.gathered import refuse_freed
from proxscore.inference.groups import all_reduce_together, total_norm
from proxscore.inference.initial import INITIAL_NOISE, initial_scales
from proxscore.inference.interrupts import deferred_interrupts
from proxscore.inference.metric import LR, Adaptive, Metric
from proxscore.inference.monitor import Monitor
from proxscore.inference.names import canonical_names
from proxscore.inference.parts import Member, Part
from proxscore.inference.penalties import ForwardKL, NoPenalty, Penalty
from proxscore.inference.points import Points
from proxscore.inference.priors import Assignment, Prior
from proxscore.inference.schedules import Schedule
from proxscore.inference.shards import MeanlessShards, Shards
from proxscore.inference.solver import GradientSolver
from proxscore.inference.step import Draw, ProximalStep


class ProximalScore(torch.optim.Optimizer):
    """Proximal score matching, with a mean-field Gaussian over the parameters or other families for some of them.

    The loss that the user differentiates is the *average* negative log-likelihood over the data points of a batch
    (micro-batches: their sums divided by the size of the whole batch). The optimizer supplies data size, temperature
    and prior: score = -(data_size / temperature) * gradient - (theta - prior mean) / scale^2.

    State per sampled parameter, with the parameter's own sharding: ``mean``, ``precision``, ``score`` (running mean of
    the gradient), ``square`` (of its square, with the adaptive metric), and ``curvature`` if ``draws`` > 1. With weights and
    gradient that is 6 P numbers at rest for P parameters, 7 P within a step; one less with the posterior's metric, one more for
    several draws. All of it, and the noise (a function of ``seed`` and the step counter), is in ``state_dict``.
    Families other than the mean
    field, and the gradient solver, hold the parameters of a group together (:mod:`proxscore.inference.blocks`).

    Args:
        params: ``model.named_parameters()``, or groups (dicts) of named parameters; a group may set its own ``lr``,
            ``momentum`` and ``initial_precision``. Frozen parameters are left alone; a tied one counts once.
        data_size: number of data points N behind the posterior. A larger number than the true one is a colder posterior.
        prior: Gaussian prior and selection of the sampled parameters.
        prior_schedule: factor on the prior's precision over the steps, in [0, 1]: a prior that enters gradually leaves the
            likelihood the first word, where the adaptive metric amplifies the prior's pull wherever gradients are small.
            Only where it ends at one is the posterior that of the whole prior.
        penalty: proximal penalty with its weights and their schedules (in steps).
        family: variational family of the sampled parameters (default: mean-field).
        families: glob pattern of parameter names -> family, for parts of the network, each described jointly; the last
            match counts.
        solver: none takes the closed-form step for families that have one, and a :class:`GradientSolver` with its
            defaults for the others; given, it serves them all.
        metric: of the mean's proximal step (:mod:`proxscore.inference.metric`): ``adaptive``, Adam's, or ``posterior``, with
            the weight ``penalty.mean``.
        lr: with the adaptive metric the learning rate, in Adam's units (default 0.004); with the posterior's a factor on the
            mean's step (default 1). Torch's learning-rate schedulers may change it.
        square_decay: decay of the adaptive metric's running mean of squared gradients, in [0, 1)
            (default 0.999).
        initial_noise: the initial standard deviations relative to each tensor's weights (:mod:`proxscore.inference.initial`;
            0.02 where nothing is given); none is wider than the prior.
        initial_precision: in its place, the initial precision of every sampled parameter divided by data_size / temperature,
            to which the prior's is added; or by parameter name.
        paired: score each draw m + e together with m - e on the same batch (two evaluations): for precisions that have to be
            right, as the gradient that both have in common leaves their curvature statistic.
        draws: draws, or pairs, per step, over all draw groups.
        draw_mesh: one-dimensional mesh over draw groups: processes that hold the same parameters (or the same shards of
            them) and score different draws of a step on the same batch, each ``draws`` / its size. Their scores and
            curvatures are summed before the step, which is that of one process with all the draws.
        keep_mean: false spares the mean-field state a copy of the mean, for more time for the noise.
        momentum: decay of the running mean of the score (bias-corrected), in [0, 1).
        max_log_precision_step: trust region: largest change of a log-precision in a step (of a full covariance: norm of
            the change of the matrix's logarithm, less beyond 32 numbers); none: unlimited.
        max_mean_step: trust region: largest change of a number of the mean in a step, with the adaptive metric in units of lr
            (default 3: Adam's steps rarely reach it), with the posterior's in posterior standard deviations (default 0.1);
            times lr and the mean's schedule. The gradient solver reads no trust region: its learning rate limits the step.
        temperature: the likelihood is raised to the power 1 / temperature.
        point_lr: Adam's learning rate for parameters that are not sampled (times the mean's schedule); default lr, or 0.001
            with the posterior's metric.
        clip_norm: largest 2-norm of a draw's gradient of the mean negative log-likelihood, over all parameters (and shards)
            together; a longer one is scaled down, draw by draw, which biases the scores towards smaller ones. Costs another
            P numbers within a step. ``clip_grad_norm_`` would scale the curvature statistics instead: within the loop, where
            the second draw of a pair adds its gradient to that of the first, and after it, where ``step`` refuses it.
        max_skipped_steps: a step whose scores are not finite is skipped (mean, precision and running means stay); that many
            in a row raise FloatingPointError.
        seed: of the draws.

    Raises:
        ValueError: a setting outside its range, unnamed parameters, a parameter of lower precision than float32, or a
            sharding that cannot be sampled; the message names it.
    """

    # What torch's GradScaler looks for; it sets ``grad_scale`` and ``found_inf`` before ``step`` and deletes them after it.
    _step_supports_amp_scaling = True
    grad_scale: Tensor | None  # there within GradScaler's step alone; none: gradients were unscaled before
    #: Set before ``step`` (as GradScaler does) to decide for all ranks whether the step is skipped; where it is none and
    #: parameters are sharded, ``step`` agrees on it with one scalar all-reduce.
    found_inf: Tensor | bool | None = None

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        data_size: float,
        *,
        prior: Prior | None = None,
        prior_schedule: Schedule | None = None,
        penalty: Penalty | None = None,
        family: Family | None = None,
        families: Mapping[str, Family] | None = None,
        solver: GradientSolver | None = None,
        metric: Metric = "adaptive",
        lr: float | None = None,
        square_decay: float | None = None,
        initial_noise: float | None = None,
        initial_precision: float | Mapping[str, float] | None = None,
        paired: bool = False,
        draws: int = 1,
        draw_mesh: DeviceMesh | None = None,
        keep_mean: bool = True,
        momentum: float = 0.9,
        max_log_precision_step: float | None = 1.0,
        max_mean_step: float | None = None,
        temperature: float = 1.0,
        point_lr: float | None = None,
        clip_norm: float | None = None,
        max_skipped_steps: int = 10,
        seed: int = 0,
    ) -> None:
        positive: dict[str, float | None] = dict(data_size=data_size, temperature=temperature, draws=draws)
        positive |= dict(max_skipped_steps=max_skipped_steps, max_log_precision_step=max_log_precision_step)
        positive |= dict(
            max_mean_step=max_mean_step, point_lr=point_lr, clip_norm=clip_norm, initial_noise=initial_noise
        )
        for setting, value in positive.items():
            if value is not None and not value > 0:
                raise ValueError(f"{setting} is {value}; it must be positive")
        if metric not in get_args(Metric):
            raise ValueError(f"metric is {metric!r}; it must be one of {', '.join(get_args(Metric))}")
        adaptive = metric == "adaptive"
        if square_decay is not None and not (adaptive and 0 <= square_decay < 1):
            raise ValueError(f"square_decay is {square_decay}; it must lie in [0, 1), and is of metric='adaptive'")
        if initial_noise is not None and isinstance(initial_precision, float | int):
            raise ValueError(
                "initial_noise and initial_precision both say how wide the posterior is at the start: give one"
            )
        self.metric, self.square_decay = metric, 0.999 if square_decay is None else square_decay
        self.prior_schedule = prior_schedule
        lr = lr if lr is not None else LR if adaptive else 1.0
        self.base_lr = lr if adaptive else 1.0
        self.prior = prior or Prior()
        self.penalty = penalty or ForwardKL()
        if adaptive and isinstance(self.penalty, NoPenalty):
            raise ValueError("penalty NoPenalty leaves no metric to the mean's step: use metric='posterior'")
        self.family, self.families, self.solver = family or MeanField(), dict(families or {}), solver
        self.paired, self.draws_per_step, self._draw_mesh = paired, draws, draw_mesh
        self.keep_mean = keep_mean
        if draws % self._groups:
            raise ValueError(f"draws is {draws}; it must be a multiple of the number of draw groups, {self._groups}")
        self.max_log_precision_step = max_log_precision_step
        self.max_mean_step = max_mean_step if max_mean_step is not None else 3.0 if adaptive else 0.1
        self.scale = data_size / temperature
        self.data_size, self.temperature = data_size, temperature
        self.point_lr = point_lr if point_lr is not None else lr if adaptive else 1e-3
        self.max_skipped_steps, self.initial_noise = max_skipped_steps, initial_noise or INITIAL_NOISE
        self.clip_norm = clip_norm
        #: When true, ``step`` fills ``statistics`` (of the local shards): a few more passes over the state.
        self.monitor = False
        self.statistics: dict[str, float] = {}
        self._drawing = self._scored = False
        self._finite: Tensor | None = None  # by parameter, of this draw loop
        self._scaler: GradScaler | None = None  # of this draw loop
        self._versions: list[int] = []  # of the statistics in the gradients when the last loop ended
        self._initial = dict(initial_precision) if isinstance(initial_precision, Mapping) else {}
        for name, precision in self._initial.items():
            if not precision > 0:
                raise ValueError(f"initial_precision of {name} is {precision}; it must be positive")
        unnamed = 0.1 if isinstance(initial_precision, Mapping) else initial_precision
        defaults = dict(lr=lr, momentum=momentum, initial_precision=unnamed if initial_noise is None else None)
        counters = dict(step=0, momentum_product=1.0, skipped=0, skipped_in_a_row=0, seed=seed)
        super().__init__(_named(params), defaults | counters)
        self._members = self._assigned()
        self._parts = [self._parts_of(*pair) for pair in zip(self.param_groups, self._members, strict=True)]
        if max_log_precision_step is None and not self.penalty.positive and not self._solved_throughout():
            raise ValueError(
                f"max_log_precision_step is None; penalty {type(self.penalty).__name__} needs it: precisions can turn negative"
            )

    # ------------------------------------------------------------ set-up

    def _assigned(self) -> list[list[Member]]:
        """The trained parameters of each group, with what the prior says of them.

        Raises:
            ValueError: a setting of a group, or a parameter that cannot be trained like this.
        """
        named = self.named_parameters()
        for name, parameter in named:
            _check(name, parameter)
        for pattern in self.families:
            if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in named):
                raise ValueError(f"families: the pattern {pattern!r} matches no parameter, for example {named[0][0]!r}")
        self.prior = self.prior.about_start(named)
        assignments = self.prior.assign(named)
        for setting, given in (("prior.mean", self.prior.mean), ("initial_precision", self._initial)):
            unknown = set(given) - set(assignments)
            if unknown:
                raise ValueError(f"{setting} names {sorted(unknown)[0]!r}, which is no trained parameter")
        groups = []
        names = {id(parameter): name for name, parameter in named}
        for group in self.param_groups:
            for setting, least in (("lr", True), ("initial_precision", False)):
                value = group[setting]
                if value is not None and not (value >= 0 if least else value > 0):
                    raise ValueError(f"{setting} is {group[setting]}; it must be positive")
            if not 0 <= group["momentum"] < 1:
                raise ValueError(f"momentum is {group['momentum']}; it must lie in [0, 1)")
            pairs = [(names[id(p)], p) for p in group["params"]]
            given = group["initial_precision"]
            groups.append(
                [self._member(name, p, assignments[name], self._initial.get(name, given)) for name, p in pairs]
            )
        missing = {m.name: m for members in groups for m in members if m.prior.sampled and m.initial_precision == 0}
        scales = initial_scales({member.name: member.parameter for member in missing.values()})
        for name, member in missing.items():
            member.initial_precision = max((self.initial_noise * scales[name]) ** -2, member.prior.precision)
        return groups

    def _member(self, name: str, parameter: Tensor, prior: Assignment, initial_precision: float | None) -> Member:
        """A member; without an initial precision, that is zero."""
        mean = self.prior.mean.get(name) if prior.precision > 0 else None
        if mean is not None and mean.shape != parameter.shape:
            raise ValueError(f"prior.mean of {name} has shape {tuple(mean.shape)}; it must be {tuple(parameter.shape)}")
        if mean is not None:
            mean = (mean.full_tensor() if isinstance(mean, DTensor) else mean).detach()
        precision = 0.0 if initial_precision is None else initial_precision * self.scale + prior.precision
        return Member(name, parameter, prior, noise.shard_offset(parameter, name), precision, mean)

    def _parts_of(self, group: dict[str, Any], members: list[Member]) -> list[Part]:
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
        adaptive = self.metric == "adaptive"
        if shards:
            kind = Shards if self.keep_mean else MeanlessShards
            parts.append(kind(shards, self.state, self.draws_per_step, adaptive))
        seed = noise.key(group["seed"], "initial")
        for joined in together.values():
            for member in joined:
                self.state[member.parameter] = {}
            parts.append(block(self._family_of(joined[0]), joined, seed, self.solver, self.penalty, adaptive))
        if points:
            parts.append(Points(points, self.state, self.point_lr, self.scale, self.evaluations_per_step))
        for member in members:
            member.prior_mean = None  # the parts hold their piece of it
        return parts

    def _family_of(self, member: Member) -> Family:
        matches = [family for pattern, family in self.families.items() if fnmatch.fnmatchcase(member.name, pattern)]
        return matches[-1] if matches else self.family

    def _solved_throughout(self) -> bool:
        return all(isinstance(part, (SolvedBlock, Points)) for part in self._all_parts())

    def _all_parts(self) -> Iterator[Part]:
        for parts in self._parts:
            yield from parts

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, during construction only: the prior is assigned to all parameters at once."""
        if hasattr(self, "_parts"):
            raise ValueError("parameters cannot be added later: build a new optimizer with all of them")
        super().add_param_group(param_group)

    @property
    def drawing(self) -> bool:
        """Whether a draw loop is running: the weights are a draw, and no mean."""
        return self._drawing

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """(name, parameter) of all parameters; names are those of the module without torch's wrappers."""
        given = [name for group in self.param_groups for name in group["param_names"]]
        return list(zip(canonical_names(given), self._parameters(), strict=True))

    def sampled(self) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """(name, parameter, state) of every parameter with a mean-field posterior in closed form."""
        for part in self._all_parts():
            if isinstance(part, Shards):
                for member in part.all_members:
                    yield member.name, member.parameter, self.state[member.parameter]

    def blocks(self) -> Iterator[Block]:
        """The parameters that a family describes together."""
        for part in self._all_parts():
            if isinstance(part, Block):
                yield part

    def probed(self) -> Iterator[Probed]:
        """What the last steps say of convergence, for every sampled tensor or block: of this rank's shards."""
        for group, parts in zip(self.param_groups, self._parts, strict=True):
            for part in parts:
                yield from part.probed(group["momentum"], _age(group))

    def initial_precisions(self) -> dict[str, float]:
        """The precision that each sampled parameter started with, by name: of the data and the prior."""
        return {m.name: m.initial_precision for members in self._members for m in members if m.prior.sampled}

    def _prior_weight(self, group: dict[str, Any]) -> float:
        """Of the prior in the current step: one, except while it enters."""
        return 1.0 if self.prior_schedule is None else self.prior_schedule.factor(group["step"])

    @property
    def evaluations_per_step(self) -> int:
        """Gradient evaluations (forward and backward passes over the batch) that one step takes, over all draw groups."""
        return self.draws_per_step * (2 if self.paired else 1)

    @property
    def _groups(self) -> int:
        return 1 if self._draw_mesh is None else self._draw_mesh.size()

    @property
    def _own_draws(self) -> range:
        """Indices of the draws, or pairs, that this process scores."""
        first = 0 if self._draw_mesh is None else self._draw_mesh.get_local_rank()
        return range(first, self.draws_per_step, self._groups)

    # ------------------------------------------------------------ the draw loop

    @torch.no_grad()
    def draws(self, scaler: GradScaler | None = None) -> Iterator[int]:
        """Put draws from the current posterior into the weights, one per iteration of the loop.

        The body runs forward and backward (over several micro-batches, if need be: the same for both draws of a pair).
        Whatever ends the loop, an exception included, the weights are the mean again afterwards. Gradients belong to
        the optimizer here: it clears them itself, and ``zero_grad`` within the loop does nothing.

        Under FSDP2, a forward without backward (an evaluation) leaves the root's weights gathered, blind to a draw that
        is put into the shards: call ``module.reshard()`` after it, as :func:`proxscore.posterior.predict` does.

        Args:
            scaler: of the losses that the body differentiates (``scaler.scale(loss).backward()``, then
                ``scaler.step(optimizer)``): gradients are divided by its scale as soon as they are there.
        """
        if self._drawing:
            raise RuntimeError("draws() within draws(): finish the first loop before starting another")
        if self._scored:  # no step took the last loop's scores
            self._forget()
        self._drawing, self._scored, self._finite, self._scaler = True, False, None, scaler
        begun: list[Part] = []
        try:
            for parameter in self._parameters():
                parameter.grad = None
            for part in self._all_parts():
                part.begin(self.state)
                begun.append(part)
            for index in self._own_draws:
                self._sample(index, 1.0)
                held = self._held()
                yield index * (1 + self.paired)
                if index == self._own_draws[0]:
                    self._refuse_freed(begun)
                self._take(index, 1.0, held)
                if self.paired:
                    self._sample(index, -1.0)
                    held = self._held()
                    first = [parameter.grad for parameter in self._parameters()]
                    yield index * 2 + 1
                    if any(a is not None and a is not p.grad for a, p in zip(first, self._parameters(), strict=True)):
                        raise RuntimeError(
                            "gradients were cleared between the two draws of a pair; leave them to the optimizer"
                        )
                    self._take(index, -1.0, held)
            self._scored = True
        finally:
            with deferred_interrupts():
                for part in begun:
                    part.restore()
                torch.clear_autocast_cache()
                self._drawing = False
                if self._scored:
                    self._versions = self._gradient_versions()
                else:
                    self._forget()

    def _refuse_freed(self, begun: list[Part]) -> None:
        try:
            refuse_freed(dict(self.named_parameters()))
        except RuntimeError:
            begun.clear()  # there is no memory to put the mean back into
            raise

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _draw(self, group: dict[str, Any], index: int, sign: float) -> Draw:
        first = index == self._own_draws[0]
        return Draw(
            index=index,
            first=first,
            sign=sign,
            paired=self.paired,
            draws=self.draws_per_step,
            groups=self._groups,
            scale=self.scale,
            prior_weight=self._prior_weight(group),
            seed=_seed(group, index),
        )

    def _sample(self, index: int, sign: float) -> None:
        for group, parts in zip(self.param_groups, self._parts, strict=True):
            for part in parts:
                part.sample(self._draw(group, index, sign))
        torch.clear_autocast_cache()  # an enclosing autocast would go on using its cast of the previous weights

    def _held(self) -> list[Tensor | None] | None:
        """The gradients so far, taken off the parameters, where the next draw's must be seen alone."""
        if self.clip_norm is None and self._scaler is None:
            return None
        held = [parameter.grad for parameter in self._parameters()]
        for parameter in self._parameters():
            parameter.grad = None
        return held

    def _alone(self, held: list[Tensor | None]) -> None:
        """Take the loss scale out of the draw's own gradients, clip them, and add what was held to them."""
        found = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        if self._scaler is not None:
            torch._foreach_mul_([noise.local(gradient) for gradient in found], 1 / self._scaler.get_scale())
        if self.clip_norm is not None:
            factor = (self.clip_norm / total_norm(found)).clamp(max=1.0)
            torch._foreach_mul_([noise.local(gradient) for gradient in found], factor)
        for parameter, before in zip(self._parameters(), held, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else parameter.grad.add_(before)

    def _gradient_versions(self) -> list[int]:
        """How often each gradient was written in place: who else writes to them breaks the step."""
        gradients = (parameter.grad for parameter in self._parameters())
        return [-1 if gradient is None else noise.local(gradient)._version for gradient in gradients]

    def _take(self, index: int, sign: float, held: list[Tensor | None] | None) -> None:
        if all(parameter.grad is None for parameter in self._parameters()):
            raise RuntimeError("no gradients after a draw: call backward() inside the draws() loop")
        for parameter in self._parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:  # of an embedding
                parameter.grad = parameter.grad.to_dense()
        if held is not None:
            self._alone(held)
        gradients = [[part.gradients() for part in parts] for parts in self._parts]
        # The 2-norm is the fastest reduction that any nan or inf passes through (beyond 1e19 it overflows: no loss).
        norms = torch._foreach_norm([g for parts in gradients for part in parts for g in part], 2)
        finite = torch.stack([norm.float() for norm in norms]).isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        for group, parts, found in zip(self.param_groups, self._parts, gradients, strict=True):
            for part, each in zip(parts, found, strict=True):
                part.take(self._draw(group, index, sign), each)

    @property
    def nonfinite(self) -> Tensor:
        """Whether this rank saw a gradient that is not finite in the last draw loop (0 or 1, on the device)."""
        if self._finite is None:
            raise RuntimeError("no scores yet: run the draws() loop first")
        return (~self._finite.all()).float()

    def _forget(self) -> None:
        """Drop the scores that no step took."""
        for part in self._all_parts():
            part.forget()

    def __getstate__(self) -> dict[str, Any]:
        """All of it, for ``copy.deepcopy`` (of module and optimizer together) and pickle."""
        if self._drawing or self._scored:
            raise RuntimeError("an optimizer is copied after step(), not within or after its draw loop")
        return {name: value for name, value in self.__dict__.items() if name != "step"}  # that is a scheduler's wrapper

    def state_dict(self) -> dict[str, Any]:
        """As in torch."""
        for each in self.blocks():
            each.export(self.state)
        for part in self._all_parts():
            part.save_probes(self.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; scores that no step took are forgotten: they belong to the state that is replaced.

        A state of other ``draws`` or ``keep_mean`` is taken over; what these settings add is made from the weights.

        Raises:
            ValueError: the state is that of another family, solver or selection; names the parameter.
        """
        before = {parameter: dict(state) for parameter, state in self.state.items()}
        expected = {parameter: set(state) for parameter, state in self.state.items()}
        for each in self.blocks():  # no export: what is loaded may be the state itself
            expected |= each.names()
        super().load_state_dict(state_dict)
        self._scored = False
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        for parameter, keys in expected.items():
            loaded = self.state[parameter]
            for key in (keys - loaded.keys()) & _REMADE:
                loaded[key] = parameter.detach().clone() if key == "mean" else before[parameter][key]
            for key in (loaded.keys() - keys) & _REMADE:
                del loaded[key]
            if loaded.keys() - {KEY} != keys - {KEY}:
                raise ValueError(
                    f"the saved state of {names[id(parameter)]} holds {_listed(loaded)}, these settings need "
                    f"{_listed(keys)}: build the optimizer with the family, the solver and the prior's selection "
                    "that it was saved with"
                )
        for each in self.blocks():
            each.load(self.state)
        for group, parts in zip(self.param_groups, self._parts, strict=True):
            for part in parts:
                part.load_probes(self.state, _age(group))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, but nothing happens between the start of ``draws()`` and ``step()``."""
        if not (self._drawing or self._scored):
            super().zero_grad(set_to_none)

    # ------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One proximal step from the scores of the last draw loop (or of a ``closure`` that runs forward and backward).

        Returns:
            The closure's last value, or none.

        Raises:
            RuntimeError: no completed draw loop since the last step, or somebody changed the gradients after it.
            FloatingPointError: ``max_skipped_steps`` steps in a row were skipped.
        """
        loss = None
        if closure is not None:
            for _ in self.draws():
                with torch.enable_grad():
                    loss = closure()
        if not self._scored:
            raise RuntimeError(
                "step() needs scores: run `for _ in optimizer.draws(): loss.backward()` to its end first"
            )
        self._check_gradients()
        with deferred_interrupts():
            self._scored = False
            if self._skip():
                self._after_skip()
            else:
                for group in self.param_groups:
                    group["skipped_in_a_row"] = 0
                    group["momentum_product"] *= group["momentum"]  # a scheduler may change it from step to step
                self._combine()
                self._update()
            for group in self.param_groups:
                group["step"] += 1
                for parameter in group["params"]:
                    parameter.grad = None  # it holds statistics, no gradient
        return loss

    def _check_gradients(self) -> None:
        """Refuse what would be wrong without a word: a loss scale in the scores, or statistics that were changed."""
        by_scaler = "grad_scale" in self.__dict__
        if by_scaler and self.grad_scale is not None and self._scaler is None:
            self._forget()
            raise RuntimeError(
                "the losses were scaled by a GradScaler, and the likelihood with them: pass it to the loop, "
                "optimizer.draws(scaler)"
            )
        unscaled = by_scaler and self.grad_scale is None
        if unscaled or self._versions != self._gradient_versions():
            self._forget()
            raise RuntimeError(
                "gradients were changed between the draw loop and step(): they hold curvature statistics there, which "
                "clip_grad_norm_ or GradScaler.unscale_ spoil; use ProximalScore(clip_norm=...) to clip, and "
                "optimizer.draws(scaler)"
            )

    def _skip(self) -> bool:
        found, self.found_inf = self.found_inf, None
        if (
            found is None or getattr(self, "grad_scale", None) is not None
        ):  # what a GradScaler found is this rank's alone
            found = self.nonfinite
            sharded = any(isinstance(parameter, DTensor) for parameter in self._parameters())
            if dist.is_initialized() and (sharded or self._draw_mesh is not None):
                dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def _after_skip(self) -> None:
        for group in self.param_groups:
            group["skipped"] += 1
            group["skipped_in_a_row"] += 1
        self._forget()
        if self.param_groups[0]["skipped_in_a_row"] >= self.max_skipped_steps:
            names = [member.name for part in self._all_parts() for member in part.members]
            assert self._finite is not None
            bad = [name for name, finite in zip(names, self._finite.tolist(), strict=True) if not finite]
            raise FloatingPointError(
                f"{self.max_skipped_steps} steps in a row had scores that are not finite (first parameter: "
                f"{bad[0] if bad else 'on another rank'}); look for bad inputs, or use a larger initial_precision or "
                "penalty.mean"
            )

    def _combine(self) -> None:
        """Sum what the draw groups took."""
        if self._draw_mesh is not None:
            tensors = [tensor for part in self._all_parts() for tensor in part.taken()]
            all_reduce_together(tensors, self._draw_mesh.get_group())

    def _update(self) -> None:
        precision_weight, mean_weight = self.penalty.weights(self.param_groups[0]["step"])
        monitor = Monitor() if self.monitor else None
        for group, parts in zip(self.param_groups, self._parts, strict=True):
            lr = group["lr"]
            weights = precision_weight, (mean_weight / lr if lr > 0 else float("inf"))
            scheduled = self.penalty.mean / mean_weight
            factor = scheduled * lr / self.base_lr if lr > 0 else 0.0
            metric = None
            if self.metric == "adaptive":
                singles = None if self.paired else self.draws_per_step
                metric = Adaptive(scheduled * lr, self.scale, self.square_decay, singles)
            score_scale = -self.scale / (1 - group["momentum_product"])
            step = ProximalStep(
                penalty=self.penalty,
                weights=weights,
                score_scale=score_scale,
                momentum=group["momentum"],
                metric=metric,
                max_log_precision_step=self.max_log_precision_step,
                # It follows the mean's schedule: otherwise a step that it binds would never shrink.
                max_mean_step=self.max_mean_step * scheduled * lr,
                prior_weight=self._prior_weight(group),
                factor=factor,
                seed=_seed(group, self.draws_per_step - 1),
                number=_age(group),
            )
            for part in parts:
                part.step(step, monitor)
        torch.clear_autocast_cache()
        if monitor is not None:
            self.statistics = monitor.result() | {"kappa_precision": precision_weight, "kappa_mean": mean_weight}
            solved = [part for part in self._all_parts() if isinstance(part, SolvedBlock)]
            if solved:  # the gradient solver's objective without its penalty, per number
                numbers = sum(member.parameter.numel() for each in solved for member in each.members)
                self.statistics["score_loss"] = sum(each.loss.item() for each in solved) / numbers


# What a state may lack or have too much of: it follows from the weights, or is made in every step.
_REMADE = {"mean", "curvature", "prior_mean", "square", "step"}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _age(group: dict[str, Any]) -> int:
    """Steps that were not skipped."""
    return int(group["step"] - group["skipped"])


def _seed(group: dict[str, Any], index: int) -> int:
    """Of a draw's noise in the current step."""
    return noise.key(group["seed"], "draw", group["step"], index)


def _check(name: str, parameter: Tensor) -> None:
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"parameter {name} is {parameter.dtype}: keep parameters in float32 and use autocast or FSDP's "
            "MixedPrecisionPolicy for low-precision compute"
        )
    if not (parameter.to_local() if isinstance(parameter, DTensor) else parameter).is_contiguous():
        raise ValueError(
            f"parameter {name} is not contiguous (channels_last?): convert inputs instead of the module, or call "
            ".contiguous() on its parameters"
        )


def _named(params: Iterable[Any]) -> list[Any]:
    """Trained, named parameters only, each once; groups keep their settings."""
    items = list(params)
    if not items:
        raise ValueError("params is empty: pass model.named_parameters()")
    groups = items if isinstance(items[0], dict) else [{"params": items}]
    seen: set[int] = set()
    result = []
    for group in groups:
        kept = []
        for item in group["params"]:
            if not (isinstance(item, tuple) and len(item) == 2):
                raise ValueError("parameters must be named: pass model.named_parameters(), not model.parameters()")
            if item[1].requires_grad and id(item[1]) not in seen:
                seen.add(id(item[1]))
                kept.append(item)
        if kept:
            result.append({**group, "params": kept})
    if not result:
        raise ValueError("params holds no parameter that requires a gradient")
    return result
