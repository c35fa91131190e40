"""Proximal score matching as a torch optimizer.

One iteration, with q_t the current variational distribution (the anchor) and s-hat the mini-batch score:

    q_{t+1} = argmin_q  1/2 E_{theta ~ q_t} || grad log q(theta) - s-hat(theta) ||^2_{Sigma_t}  +  P(q_t, q)

Draws come from the fixed anchor: nothing is differentiated through a draw, so the network needs one ordinary forward
and backward per draw, and the mini-batch score enters linearly, so the update's statistics are unbiased. For the
mean-field Gaussian the minimiser has a closed form (:mod:`proxscore.inference.families.mean_field`).
Source: M. Kim, arXiv 2602.05873.

    optimizer = ProximalScore(model.named_parameters(), data_size=50_000)
    for x, y in loader:
        for _ in optimizer.draws():                       # the weights are a draw from q_t; a pair by default
            likelihood.nll(model(x), y).mean().backward()
        optimizer.step()                                  # the proximal step; the weights are the mean again
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adam import adam

from proxscore.inference import noise
from proxscore.inference.blocks import Block, Member
from proxscore.inference.families import ClosedForm, Family, MeanField
from proxscore.inference.families.mean_field import Bucket, split
from proxscore.inference.monitor import Monitor
from proxscore.inference.penalties import ForwardKL, Penalty
from proxscore.inference.priors import Assignment, Prior, canonical
from proxscore.inference.solver import GradientSolver

# Elements that one pass of in-place operations covers; three temporaries of that size live at once. On the CPU large
# enough that the calls cost less than the arithmetic, small enough for the cache; elsewhere a kernel's worth of work.
_BUCKET = {"cpu": 1 << 17}
_BUCKET_ACCELERATOR = 1 << 22


@dataclass
class _Slot(Member):
    """A trained parameter of this optimizer; its block, if it is not on the fast path."""

    block: Block | None = None

    @property
    def fast(self) -> bool:
        """Sampled from a mean-field Gaussian and updated in closed form, in place on its shard."""
        return self.prior.sampled and self.block is None


@dataclass
class _Shard:
    """Flat local views of a sampled parameter and its state, from the start of a draw loop to the step after it.

    Making them for every pass over the parameters would cost more than the arithmetic on small tensors.
    """

    slot: _Slot
    weights: Tensor
    mean: Tensor
    precision: Tensor
    score: Tensor
    curvature: Tensor | None
    prior_mean: Tensor | None
    gradient: Tensor | None = None


class ProximalScore(torch.optim.Optimizer):
    """Proximal score matching, with a mean-field Gaussian over the parameters or other families for some of them.

    The loss that the user differentiates is the *average* negative log-likelihood over the data points of a batch
    (micro-batches: their sums divided by the size of the whole batch). The optimizer supplies data size, temperature
    and prior: score = -(data_size / temperature) * gradient - (theta - prior mean) / scale^2.

    State per sampled parameter, with the parameter's own sharding: ``mean``, ``precision``, ``score`` (running mean of
    the gradient), and ``curvature`` if ``draws`` > 1. With weights and gradient that is 5 P (6 P) numbers. All of it,
    and the noise (a function of ``seed`` and the step counter), is in ``state_dict``. Families other than the mean
    field, and the gradient solver, hold the parameters of a group together (:mod:`proxscore.inference.blocks`).

    Args:
        params: ``model.named_parameters()``, or groups (dicts) of named parameters; a group may set its own ``lr``,
            ``momentum`` and ``initial_precision``. Frozen parameters are left alone; a tied one counts once.
        data_size: number of data points N behind the posterior. A larger number than the true one is a colder
            posterior, and eases training on small data: 100,000 trained networks on 1,258 and 10,000 images.
        prior: Gaussian prior and selection of the sampled parameters.
        penalty: proximal penalty with its weights and their schedules (in steps).
        family: variational family of the sampled parameters (default: mean-field).
        families: glob pattern of parameter names -> family, for parts of the network, each described jointly; the last
            match counts.
        solver: none takes the closed-form step for families that have one, and a :class:`GradientSolver` with its
            defaults for the others; given, it serves them all.
        lr: factor on the mean's proximal step, for torch's learning-rate schedulers.
        initial_precision: the initial precision of every sampled parameter, divided by data_size / temperature; or by
            parameter name (:mod:`proxscore.inference.curvature` estimates it from data). What matters is the noise it
            makes: 1 / sqrt(precision) about 0.01 trained CNNs and Vision Transformers alike.
        paired: score each draw m + e together with m - e on the same batch (two evaluations).
        draws: draws, or pairs, per step.
        momentum: decay of the running mean of the score (bias-corrected), in [0, 1).
        max_log_precision_step: trust region: largest change of a log-precision in a step; none: unlimited.
        max_mean_step: trust region: largest change of a mean in a step, in posterior standard deviations; times the
                mean's schedule.
        temperature: the likelihood is raised to the power 1 / temperature.
        point_lr: Adam's learning rate for parameters that are not sampled (times the mean's schedule).
        max_skipped_steps: a step whose scores are not finite is skipped (mean and precision stay, momentum restarts);
            that many in a row raise FloatingPointError.
        seed: of the draws.

    Raises:
        ValueError: a setting outside its range, unnamed parameters, a parameter of lower precision than float32, or a
            sharding that cannot be sampled; the message names it.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        data_size: float,
        *,
        prior: Prior | None = None,
        penalty: Penalty | None = None,
        family: Family | None = None,
        families: Mapping[str, Family] | None = None,
        solver: GradientSolver | None = None,
        lr: float = 1.0,
        initial_precision: float | Mapping[str, float] = 0.1,
        paired: bool = True,
        draws: int = 1,
        momentum: float = 0.9,
        max_log_precision_step: float | None = 1.0,
        max_mean_step: float | None = 0.1,
        temperature: float = 1.0,
        point_lr: float = 1e-3,
        max_skipped_steps: int = 10,
        seed: int = 0,
    ) -> None:
        positive: dict[str, float | None] = dict(data_size=data_size, temperature=temperature, draws=draws)
        positive |= dict(max_skipped_steps=max_skipped_steps, max_log_precision_step=max_log_precision_step)
        positive |= dict(max_mean_step=max_mean_step, point_lr=point_lr)
        for setting, value in positive.items():
            if value is not None and not value > 0:
                raise ValueError(f"{setting} is {value}; it must be positive")
        self.prior = prior or Prior()
        self.penalty = penalty or ForwardKL()
        if max_log_precision_step is None and not self.penalty.positive:
            raise ValueError(
                f"max_log_precision_step is None; penalty {type(self.penalty).__name__} needs it: precisions can turn negative"
            )
        self.family, self.families, self.solver = family or MeanField(), dict(families or {}), solver
        self._fast = MeanField()  # of the parameters that are in no block
        self.paired, self.draws_per_step = paired, draws
        self.max_log_precision_step, self.max_mean_step = max_log_precision_step, max_mean_step
        self.scale = data_size / temperature
        self.data_size, self.temperature = data_size, temperature
        self.point_lr, self.max_skipped_steps = point_lr, max_skipped_steps
        #: Set before ``step`` (as torch's GradScaler does) to decide for all ranks whether the step is skipped; where
        #: it is none and parameters are sharded, ``step`` agrees on it with one scalar all-reduce.
        self.found_inf: Tensor | bool | None = None
        #: When true, ``step`` fills ``statistics`` (of the local shards): a few more passes over the state.
        self.monitor = False
        self.statistics: dict[str, float] = {}
        self._drawing = self._scored = False
        self._shards: list[list[_Shard]] = []
        self._nonfinite: Tensor | None = None
        self._streams: dict[tuple[torch.device, torch.dtype], noise.NormalStream] = {}
        self._initial = dict(initial_precision) if isinstance(initial_precision, Mapping) else {}
        for name, value in self._initial.items():
            if not value > 0:
                raise ValueError(f"initial_precision of {name} is {value}; it must be positive")
        everywhere = 0.1 if isinstance(initial_precision, Mapping) else initial_precision
        defaults = dict(lr=lr, momentum=momentum, initial_precision=everywhere)
        counters = dict(step=0, momentum_steps=0, skipped=0, skipped_in_a_row=0, seed=seed)
        super().__init__(_named(params), defaults | counters)
        self._slots = [self._slots_of(group) for group in self.param_groups]
        self._assign_prior()
        self._blocks = [self._blocks_of(*pair) for pair in zip(self.param_groups, self._slots, strict=True)]

    # ------------------------------------------------------------ set-up

    def _slots_of(self, group: dict[str, Any]) -> list[_Slot]:
        for setting, low in (("lr", True), ("initial_precision", False)):
            if not (group[setting] >= 0 if low else group[setting] > 0):
                raise ValueError(f"{setting} is {group[setting]}; it must be positive")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum is {group['momentum']}; it must lie in [0, 1)")
        slots = []
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            name = canonical(name)
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
            slots.append(_Slot(name, parameter, Assignment(True, 0.0), noise.shard_offset(parameter, name)))
        return slots

    def _assign_prior(self) -> None:
        slots = [slot for group in self._slots for slot in group]
        assignments = self.prior.assign([(slot.name, slot.parameter) for slot in slots])
        for setting, named in (("prior.mean", self.prior.mean), ("initial_precision", self._initial)):
            unknown = set(named) - set(assignments)
            if unknown:
                raise ValueError(f"{setting} names {sorted(unknown)[0]!r}, which is no trained parameter")
        for group, members in zip(self.param_groups, self._slots, strict=True):
            for slot in members:
                slot.prior = assignments[slot.name]
                if not (slot.prior.sampled and self._in_block(slot)):
                    self.state[slot.parameter] = self._initial_state(slot, group)

    def _family_of(self, slot: _Slot) -> Family:
        matches = [family for pattern, family in self.families.items() if fnmatch.fnmatchcase(slot.name, pattern)]
        return matches[-1] if matches else self.family

    def _in_block(self, slot: _Slot) -> bool:
        return self.solver is not None or not isinstance(self._family_of(slot), MeanField)

    def _blocks_of(self, group: dict[str, Any], slots: list[_Slot]) -> list[Block]:
        for pattern in self.families:
            if not any(fnmatch.fnmatchcase(slot.name, pattern) for members in self._slots for slot in members):
                raise ValueError(
                    f"families: the pattern {pattern!r} matches no parameter, for example {slots[0].name!r}"
                )
        blocks: list[Block] = []
        together: dict[int, list[_Slot]] = {}
        for slot in (slot for slot in slots if slot.prior.sampled and self._in_block(slot)):
            family = self._family_of(slot)
            together.setdefault(id(slot) if family.per_parameter else id(family), []).append(slot)
        for members in together.values():
            family = self._family_of(members[0])
            solver = self.solver or (None if isinstance(family, ClosedForm) else GradientSolver())
            for slot in members:
                slot.prior_mean = self._prior_mean(slot)
                self.state[slot.parameter] = {}
            precision = [self._initial_precision(slot, group) for slot in members]
            block = Block(family, list(members), precision, noise.key(group["seed"], "initial"), solver, self.penalty)
            for slot in members:
                slot.block = block
            blocks.append(block)
        return blocks

    def _prior_mean(self, slot: _Slot) -> Tensor | None:
        """The whole tensor of a parameter's prior mean, if it has one that counts.

        Raises:
            ValueError: it is of another shape.
        """
        mean = self.prior.mean.get(slot.name)
        if mean is None or not slot.prior.precision > 0:
            return None
        if mean.shape != slot.parameter.shape:
            raise ValueError(
                f"prior.mean of {slot.name} has shape {tuple(mean.shape)}; it must be {tuple(slot.parameter.shape)}"
            )
        return (mean.full_tensor() if isinstance(mean, DTensor) else mean).detach()

    def _initial_precision(self, slot: _Slot, group: dict[str, Any]) -> float:
        return self._initial.get(slot.name, group["initial_precision"]) * self.scale + slot.prior.precision

    def _initial_state(self, slot: _Slot, group: dict[str, Any]) -> dict[str, Any]:
        parameter = slot.parameter.detach()
        prior_mean = self._prior_mean(slot)
        state: dict[str, Any] = {}
        if slot.prior.sampled:
            precision = torch.full_like(parameter, self._initial_precision(slot, group))
            state = {"mean": parameter.clone(), "precision": precision}
            state["score"] = torch.zeros_like(parameter)
            if self.draws_per_step > 1:
                state["curvature"] = torch.zeros_like(parameter)
        else:
            state = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state["step"] = torch.zeros(())
        if prior_mean is not None:
            state["prior_mean"] = torch.zeros_like(parameter)
            shard = noise.local(state["prior_mean"])
            shard.copy_(prior_mean.reshape(-1)[slot.start : slot.start + len(shard)])
        return state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, during construction only: the prior is assigned to all parameters at once."""
        if hasattr(self, "_slots"):
            raise ValueError("parameters cannot be added later: build a new optimizer with all of them")
        super().add_param_group(param_group)

    def sampled(self) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """(name, parameter, state) of every parameter with a mean-field posterior on the fast path."""
        for slot in (slot for group in self._slots for slot in group):
            if slot.fast:
                yield slot.name, slot.parameter, self.state[slot.parameter]

    def initial_precisions(self) -> dict[str, float]:
        """The precision that each sampled parameter started with, by name: of the data and the prior."""
        groups = zip(self.param_groups, self._slots, strict=True)
        return {s.name: self._initial_precision(s, g) for g, slots in groups for s in slots if s.prior.sampled}

    def blocks(self) -> Iterator[Block]:
        """The parameters that a family describes together."""
        for blocks in self._blocks:
            yield from blocks

    @property
    def evaluations_per_step(self) -> int:
        """Gradient evaluations (forward and backward passes over the batch) that one step takes."""
        return self.draws_per_step * (2 if self.paired else 1)

    # ------------------------------------------------------------ the draw loop

    @torch.no_grad()
    def draws(self) -> Iterator[int]:
        """Put draws from the current posterior into the weights, one per iteration of the loop.

        The body runs forward and backward (over several micro-batches, if need be: the same for both draws of a pair).
        Whatever ends the loop, an exception included, the weights are the mean again afterwards. Gradients belong to
        the optimizer here: it clears them itself, and ``zero_grad`` within the loop does nothing.

        Under FSDP2, a forward without backward (an evaluation) leaves the root's weights gathered, blind to a draw that
        is put into the shards: call ``module.reshard()`` after it, as :func:`proxscore.posterior.predict` does.
        """
        if self._drawing:
            raise RuntimeError("draws() within draws(): finish the first loop before starting another")
        if self._scored:  # the last loop's scores are in the running mean, but no step counted them
            self._forget_scores()
        self._drawing, self._scored, self._nonfinite = True, False, None
        slots = [[s for s in group if s.parameter.requires_grad] for group in self._slots]
        for slot in (slot for group in slots for slot in group):
            slot.parameter.grad = None
        self._shards = [[self._shard(slot) for slot in group if slot.fast] for group in slots]
        for shards in filter(None, self._shards):
            torch._foreach_copy_([s.mean for s in shards], [s.weights for s in shards])
        try:
            for index in range(self.draws_per_step):
                self._sample(index)
                yield index * (1 + self.paired)
                if self.paired:
                    first = self._take_first(slots, index)
                    yield index * 2 + 1
                    self._check_pair(slots, first)
                self._take(slots, index)
            self._scored = True
        finally:
            self._restore()
            self._drawing = False
            if not self._scored:
                self._forget_scores()
                self._shards = []

    def _shard(self, slot: _Slot) -> _Shard:
        state = self.state[slot.parameter]
        mean, precision, score = (noise.local(state[name]) for name in ("mean", "precision", "score"))
        curvature, prior_mean = (noise.local(state[n]) if n in state else None for n in ("curvature", "prior_mean"))
        return _Shard(slot, noise.local(slot.parameter), mean, precision, score, curvature, prior_mean)

    def _sample(self, index: int) -> None:
        for group, shards, members, blocks in zip(
            self.param_groups, self._shards, self._slots, self._blocks, strict=True
        ):
            seed = noise.key(group["seed"], "draw", group["step"], index)
            for slot in members:
                if slot.prior.sampled:  # the gradients of the others are summed over the draws
                    slot.parameter.grad = None
            for block in blocks:
                block.sample(1.0, seed)
            for shard in shards:
                slot, weights, mean, precision = shard.slot, shard.weights, shard.mean, shard.precision
                stream, count, total = self._stream(weights), weights.numel(), slot.parameter.numel()
                for piece, values in stream.pieces(noise.key(seed, slot.name), slot.start, count, total):
                    if values.numel() == count:
                        self._fast.sample_(weights, mean, precision, values)
                    else:
                        self._fast.sample_(weights[piece], mean[piece], precision[piece], values)
        torch.clear_autocast_cache()  # an enclosing autocast would go on using its cast of the previous weights

    def _take_first(self, slots: list[list[_Slot]], index: int) -> list[Tensor | None]:
        """Between the draws of a pair: fold the first gradient into the running score, reflect the weights.

        The gradient is left negated, so that the second backward accumulates g_minus - g_plus without a buffer.
        """
        self._fill_gradients(slots)
        self._detect(slots)
        for group, buckets in self._buckets():
            decay, weight = self._decay(group, index)
            for bucket in buckets:
                torch._foreach_mul_(bucket.score, decay)
                torch._foreach_add_(bucket.score, bucket.statistic, alpha=weight)
                torch._foreach_neg_(bucket.statistic)
                self._fast.reflect_(bucket)
        self._take_blocks(1.0, index)
        for group, blocks in zip(self.param_groups, self._blocks, strict=True):
            for block in blocks:
                block.sample(-1.0, noise.key(group["seed"], "draw", group["step"], index))
        torch.clear_autocast_cache()
        return [slot.parameter.grad for group in slots for slot in group]

    def _take_blocks(self, sign: float, index: int) -> None:
        for group, blocks in zip(self.param_groups, self._blocks, strict=True):
            seed = noise.key(group["seed"], "draw", group["step"], index)
            for block in blocks:
                block.take(sign, self.paired, self.scale, group["momentum"], self.draws_per_step, seed)

    def _check_pair(self, slots: list[list[_Slot]], first: list[Tensor | None]) -> None:
        after = [slot.parameter.grad for group in slots for slot in group]
        if any(a is not b for a, b in zip(first, after, strict=True)):
            raise RuntimeError("gradients were cleared between the two draws of a pair; leave them to the optimizer")

    def _take(self, slots: list[list[_Slot]], index: int) -> None:
        """After a draw or pair: complete the running score, and turn the gradient into the curvature statistic."""
        self._fill_gradients(slots)
        self._detect(slots)
        scale = self.scale / 2 if self.paired else self.scale
        for group, buckets in self._buckets():
            decay, weight = self._decay(group, index)
            for bucket in buckets:
                if self.paired:  # the score holds g_plus already: g_plus + (g_minus - g_plus) / 2 is the pair's mean
                    torch._foreach_add_(bucket.score, bucket.statistic, alpha=weight / 2)
                else:
                    torch._foreach_mul_(bucket.score, decay)
                    torch._foreach_add_(bucket.score, bucket.statistic, alpha=weight)
                self._fast.curvature_(bucket, scale, self.paired)
        self._take_blocks(-1.0 if self.paired else 1.0, index)
        if self.draws_per_step > 1:
            for shard in (shard for shards in self._shards for shard in shards):
                assert shard.curvature is not None
                assert shard.gradient is not None
                shard.curvature.mul_(index > 0).add_(shard.gradient, alpha=1 / self.draws_per_step)

    def _decay(self, group: dict[str, Any], index: int) -> tuple[float, float]:
        """Factors on the running score and on a new gradient; the average over a step's draws is one update."""
        return (group["momentum"] if index == 0 else 1.0), (1 - group["momentum"]) / self.draws_per_step

    def _fill_gradients(self, slots: list[list[_Slot]]) -> None:
        parameters = [slot.parameter for group in slots for slot in group]
        if all(parameter.grad is None for parameter in parameters):
            raise RuntimeError("no gradients after a draw: call backward() inside the draws() loop")
        for parameter in parameters:
            if parameter.grad is None:  # not part of this forward: its likelihood is flat, the prior still counts
                parameter.grad = torch.zeros_like(parameter)
        for shard in (shard for shards in self._shards for shard in shards):
            assert shard.slot.parameter.grad is not None
            shard.gradient = noise.local(shard.slot.parameter.grad)

    def _detect(self, slots: list[list[_Slot]]) -> None:
        """Note (on the device) whether any gradient is not finite."""
        gradients = [s.gradient for shards in self._shards for s in shards if s.gradient is not None]
        points = (s.parameter.grad for group in slots for s in group if not s.fast)
        gradients += [noise.local(gradient) for gradient in points if gradient is not None]
        # The 2-norm is the fastest reduction that any nan or inf passes through (beyond 1e19 it overflows: no loss).
        bad = ~torch.stack([norm.float() for norm in torch._foreach_norm(gradients, 2)]).isfinite().all()
        self._nonfinite = bad if self._nonfinite is None else self._nonfinite | bad

    @property
    def nonfinite(self) -> Tensor:
        """Whether this rank saw a gradient that is not finite in the last draw loop (0 or 1, on the device)."""
        if self._nonfinite is None:
            raise RuntimeError("no scores yet: run the draws() loop first")
        return self._nonfinite.float()

    def _restore(self) -> None:
        for shards in filter(None, self._shards):
            torch._foreach_copy_([s.weights for s in shards], [s.mean for s in shards])
        for block in self.blocks():
            block.restore()
        torch.clear_autocast_cache()

    def state_dict(self) -> dict[str, Any]:
        """As in torch."""
        for block in self.blocks():
            block.export(self.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; scores that no step took are forgotten: they belong to the state that is replaced."""
        super().load_state_dict(state_dict)
        self._scored, self._shards = False, []
        for block in self.blocks():
            block.load(self.state)

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
            RuntimeError: no completed draw loop since the last step.
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
        self._scored = False
        if self._skip():
            self._after_skip()
        else:
            for group in self.param_groups:
                group["skipped_in_a_row"] = 0
                group["momentum_steps"] += 1
            self._update()
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                parameter.grad = None  # it holds statistics, no gradient
        self._shards = []
        return loss

    def _skip(self) -> bool:
        found, self.found_inf = self.found_inf, None
        if found is None:
            found = self.nonfinite
            if dist.is_initialized() and any(isinstance(s.parameter, DTensor) for g in self._slots for s in g):
                dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def _after_skip(self) -> None:
        for group in self.param_groups:
            group["skipped"] += 1
            group["skipped_in_a_row"] += 1
        self._forget_scores()
        if self.param_groups[0]["skipped_in_a_row"] >= self.max_skipped_steps:
            named = ((s.name, s.parameter.grad) for group in self._slots for s in group)
            bad = next((name for name, g in named if g is not None and not noise.local(g).isfinite().all()), "unknown")
            raise FloatingPointError(
                f"{self.max_skipped_steps} steps in a row had scores that are not finite (first parameter: {bad}); "
                "look for bad inputs, or use a larger initial_precision or penalty.mean"
            )

    def _forget_scores(self) -> None:
        """Start the running means anew: a part of a loop, or something that is not finite, may have been folded in."""
        for group in self.param_groups:
            group["momentum_steps"] = 0
        for block in self.blocks():
            block.forget(momentum=True)
        for _, _, state in self.sampled():
            for statistic in ("score", "curvature"):
                if statistic in state:
                    noise.local(state[statistic]).zero_()

    def _update(self) -> None:
        step = self.param_groups[0]["step"]
        precision_weight, mean_weight = self.penalty.weights(step)
        monitor = Monitor() if self.monitor else None
        slots = [[s for s in group if s.parameter.requires_grad] for group in self._slots]
        for group, buckets in self._buckets("curvature" if self.draws_per_step > 1 else "gradient"):
            factor = group["lr"]
            weights = precision_weight, (mean_weight / factor if factor > 0 else float("inf"))
            # The trust region of the mean follows its schedule: otherwise a step that it binds would never shrink.
            max_mean_step = None if self.max_mean_step is None else self.max_mean_step * self.penalty.mean / weights[1]
            score_scale = -self.scale / (1 - group["momentum"] ** group["momentum_steps"])
            for bucket in buckets:
                ratio = self._fast.update_(
                    bucket, self.penalty, weights, score_scale, self.max_log_precision_step, max_mean_step
                )
                if monitor is not None:
                    monitor.add(bucket.precision, ratio)
        for group, blocks in zip(self.param_groups, self._blocks, strict=True):
            for block in blocks:
                factor = group["lr"] * self.penalty.mean / mean_weight
                max_mean_step = None if self.max_mean_step is None else self.max_mean_step * factor
                score_scale = -self.scale / (1 - group["momentum"] ** group["momentum_steps"])
                weights = precision_weight, self.penalty.mean / factor if factor > 0 else float("inf")
                block.step(self.penalty, weights, score_scale, self.max_log_precision_step, max_mean_step, factor)
        for group, members in zip(self.param_groups, slots, strict=True):
            self._update_points([s for s in members if not s.prior.sampled], group, mean_weight)
        torch.clear_autocast_cache()
        if monitor is not None:
            self.statistics = monitor.result() | {"kappa_precision": precision_weight, "kappa_mean": mean_weight}
            solved = [block for block in self.blocks() if block.solver is not None]
            if solved:  # the gradient solver's objective without its penalty, per number
                numbers = sum(member.parameter.numel() for block in solved for member in block.members)
                self.statistics["score_loss"] = sum(block.loss for block in solved) / numbers

    def _update_points(self, slots: list[_Slot], group: dict[str, Any], mean_weight: float) -> None:
        """Adam on the parameters that are not sampled, on the mean gradient over the draws plus the prior's."""
        if not slots:
            return
        gradients = []
        for slot in slots:
            assert slot.parameter.grad is not None
            gradient = noise.local(slot.parameter.grad).div_(self.evaluations_per_step)
            if slot.prior.precision > 0:
                weights, prior_mean = noise.local(slot.parameter), self.state[slot.parameter].get("prior_mean")
                pull = weights if prior_mean is None else weights - noise.local(prior_mean)
                gradient.add_(pull, alpha=slot.prior.precision / self.scale)
            gradients.append(gradient)
        states = [self.state[slot.parameter] for slot in slots]
        adam(
            [noise.local(slot.parameter) for slot in slots],
            gradients,
            [noise.local(state["exp_avg"]) for state in states],
            [noise.local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.point_lr * group["lr"] * self.penalty.mean / mean_weight,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    # ------------------------------------------------------------ views of the state

    def _buckets(self, statistic: str = "gradient") -> Iterator[tuple[dict[str, Any], Iterator[Bucket]]]:
        """The sampled parameters of each group, cut into buckets."""
        for group, shards in zip(self.param_groups, self._shards, strict=True):
            if shards:
                size = _BUCKET.get(shards[0].weights.device.type, _BUCKET_ACCELERATOR)
                columns = ("weights", "mean", "precision", "score", statistic, "prior_mean")
                rows = [(tuple(getattr(s, name) for name in columns), s.slot.prior.precision) for s in shards]
                yield group, split(rows, size)

    def _stream(self, like: Tensor) -> noise.NormalStream:
        place = like.device, like.dtype
        if place not in self._streams:
            self._streams[place] = noise.NormalStream(*place)
        return self._streams[place]


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
