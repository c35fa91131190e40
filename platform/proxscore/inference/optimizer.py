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

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.distributed.tensor import DTensor

from proxscore.inference import noise
from proxscore.inference.gathered import refuse_freed
from proxscore.inference.interrupts import deferred_interrupts
from proxscore.inference.metric import Adaptive
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts.part import Part
from proxscore.inference.parts.points import Points
from proxscore.inference.parts.shards import Shards
from proxscore.inference.parts.solved_block import SolvedBlock
from proxscore.inference.resumable import ResumableOptimizer, steps_taken
from proxscore.inference.step import Draw, ProximalStep
from proxscore.inference.undecided import Undecided


class ProximalScore(ResumableOptimizer):
    """Proximal score matching, with a mean-field Gaussian over the parameters or other families for some of them.

    The loss that the user differentiates is the *average* negative log-likelihood over the data points of a batch
    (micro-batches: their sums divided by the size of the whole batch). The optimizer supplies data size, temperature
    and prior: score = -(data_size / temperature) * gradient - (theta - prior mean) / scale^2.

    State per sampled parameter, with the parameter's own sharding: ``mean``, ``precision``, ``score`` (running mean of
    the gradient), ``square`` (of its square, with the adaptive metric), and ``curvature`` if ``draws`` > 1. With weights and
    gradient that is 6 P numbers at rest for P parameters, 7 P within a step unless ``hold_draw``; one less with the posterior's
    metric, one more for several draws. All of it, and the noise (a function of ``seed`` and the step counter), is in
    ``state_dict``.
    Families other than the mean field, and the gradient solver, hold the parameters of a group together
    (:mod:`proxscore.inference.parts.block`). The arguments, and what becomes of them, are in
    :mod:`proxscore.inference.assembled`.
    """

    # What torch's GradScaler looks for; it sets ``grad_scale`` and ``found_inf`` before ``step`` and deletes them after it.
    _step_supports_amp_scaling = True
    grad_scale: Tensor | None  # there within GradScaler's step alone; none: gradients were unscaled before
    #: Set before ``step`` (as GradScaler does) to decide for all ranks whether the step is skipped; where it is none and
    #: parameters are sharded, ``step`` agrees on it with one scalar all-reduce.
    found_inf: Tensor | bool | None = None
    #: When true, ``step`` fills ``statistics`` (of the local shards): a few more passes over the state.
    monitor = False
    #: Whether a step's arithmetic may begin before the host knows if it is skipped; none: where an accelerator computes.
    #: Blocks of a family or a solver wait all the same.
    run_ahead: bool | None = None
    #: Whether the weights may stay at a single draw from the end of the loop until ``step``, which spares a third of the passes
    #: over the memory, and a number per weight: where ``step`` follows at once. With a closure, ``step`` does so itself.
    hold_draw = False

    @property
    def drawing(self) -> bool:
        """Whether the weights are a draw, and no mean: a draw loop is running, or has left one for the step."""
        return self._drawing or (self._scored and self._holds())

    @property
    def nonfinite(self) -> Tensor:
        """Whether this rank saw a gradient that is not finite in the last draw loop (0 or 1, on the device)."""
        return (~self._gradients.finite().all()).float()

    @torch.no_grad()
    def draws(self, scaler: GradScaler | None = None) -> Iterator[int]:
        """Put draws from the current posterior into the weights, one per iteration of the loop.

        The body runs forward and backward (over several micro-batches, if need be: the same for both draws of a pair).
        Whatever ends the loop, an exception included, the weights are the mean again afterwards. Gradients belong to
        the optimizer here: it clears them itself, and ``zero_grad`` within the loop does nothing.

        Under FSDP2, a forward without backward (an evaluation) leaves the root's weights gathered, blind to a draw that
        is put into the shards: call ``module.reshard()`` after it, as :func:`proxscore.posterior.predict` does.

        Args:
            scaler: scales the losses that the body differentiates (``scaler.scale(loss).backward()``, then
                ``scaler.step(optimizer)``): gradients are divided by its scale as soon as they are there.
        """
        if self._drawing:
            raise RuntimeError("draws() within draws(): finish the first loop before starting another")
        if self._scored:  # no step took the last loop's scores
            self._forget()
        self._drawing, self._scored = True, False
        begun: list[Part] = []
        try:
            self._gradients.start_loop(scaler)
            single = self.draws_per_step == 1 and not self.paired and self._draw_groups.mesh is None
            for part in self._all_parts():
                part.hold = self.hold_draw and single and part.keeps_mean
                part.begin(self.state)
                begun.append(part)
            for index in self._draw_groups.own:
                for number, sign in enumerate((1.0, -1.0) if self.paired else (1.0,)):
                    self._sample(index, sign)
                    self._gradients.before_backward(second=number == 1)
                    yield index * (1 + self.paired) + number
                    if index == self._draw_groups.own[0] and number == 0:
                        self._refuse_freed(begun)
                    self._take(index, sign)
            self._scored = True
        finally:
            with deferred_interrupts():
                for part in begun:
                    part.restore()
                torch.clear_autocast_cache()
                self._drawing = False
                self._gradients.end_loop()
                if not self._scored:
                    self._forget()

    def _sample(self, index: int, sign: float) -> None:
        """Put a draw into the weights."""
        for group, part in self._grouped_parts():
            part.sample(self._draw(group, index, sign))
        torch.clear_autocast_cache()  # an enclosing autocast would go on using its cast of the previous weights

    def _take(self, index: int, sign: float) -> None:
        """Give every part its gradients at the draw that is in the weights."""
        self._gradients.after_backward()
        taken = [(group, part, part.gradients()) for group, part in self._grouped_parts()]
        self._gradients.note_finite([gradient for _, _, gradients in taken for gradient in gradients])
        for group, part, gradients in taken:
            part.take(self._draw(group, index, sign), gradients)

    def _draw(self, group: dict[str, Any], index: int, sign: float) -> Draw:
        """What a group's parts need to know of a draw."""
        return Draw(
            first=index == self._draw_groups.own[0],
            sign=sign,
            paired=self.paired,
            draws=self.draws_per_step,
            scale=self.scale,
            prior_weight=self._prior_weight(group),
            seed=_draw_seed(group, index),
        )

    def _refuse_freed(self, begun: list[Part]) -> None:
        try:
            refuse_freed(dict(self.named_parameters()))
        except RuntimeError:
            begun.clear()  # there is no memory to put the mean back into
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, except between the start of ``draws()`` and ``step()``, when they belong to the optimizer."""
        if not (self._drawing or self._scored):
            super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One proximal step from the scores of the last draw loop (or of a ``closure`` that runs forward and backward).

        Returns:
            The closure's last value, or none.

        Raises:
            RuntimeError: no completed draw loop since the last step, or somebody changed the gradients after it, or the weights
                that hold its draw.
            FloatingPointError: ``max_skipped_steps`` steps in a row were skipped.
        """
        loss = None
        try:
            if closure is not None:
                held, self.hold_draw = self.hold_draw, True
                try:
                    for _ in self.draws():
                        with torch.enable_grad():
                            loss = closure()
                finally:
                    self.hold_draw = held
            if not self._scored:
                raise RuntimeError(
                    "step() needs scores: run `for _ in optimizer.draws(): loss.backward()` to its end first"
                )
            self._gradients.check_untouched("grad_scale" in self.__dict__, getattr(self, "grad_scale", None))
            if any(part.written() for part in self._all_parts()):
                raise RuntimeError(
                    "weights were changed between the draw loop and step(), which needs the draw that hold_draw has left in "
                    "them: change them before the loop or after the step, or set hold_draw to False"
                )
        except BaseException:
            self._forget()
            raise
        with deferred_interrupts():
            self._scored = False
            try:
                self.settle()
                go = self._go()
                if go is not False:
                    for group in self.param_groups:
                        group["skipped_in_a_row"] = 0
                        group["momentum_product"] *= group["momentum"]  # a scheduler may change it from step to step
                    self._draw_groups.sum(tensor for part in self._all_parts() for tensor in part.taken())
                    self._move(None if go is True else go)
            except BaseException:
                self._forget()  # parts that have not moved may have left their draw in the weights
                raise
            if go is False:
                self._forget()
            for group in self.param_groups:
                group["step"] += 1
            self._gradients.clear()  # they hold statistics
        return loss

    def _go(self) -> bool | Tensor:
        """Whether the step is to be taken: as ``found_inf`` says, or else if all ranks' scores are finite.

        Returns:
            The answer; or, where only the device knows it yet, a tensor on it without dimensions.

        Raises:
            FloatingPointError: ``max_skipped_steps`` steps in a row were skipped.
        """
        found, self.found_inf = self.found_inf, None
        if found is None or getattr(self, "grad_scale", None) is not None:  # a GradScaler's is this rank's alone
            found = self.nonfinite
            sharded = any(isinstance(parameter, DTensor) for _, parameter in self.named_parameters())
            if dist.is_initialized() and (sharded or self._draw_groups.mesh is not None):
                dist.all_reduce(found, op=dist.ReduceOp.MAX)
        members = [member for part in self._all_parts() for member in part.members]
        names, finite = [member.name for member in members], self._gradients.finite()
        ahead = found.reshape(()) if isinstance(found, Tensor) and found.device == finite.device else None
        if ahead is not None and not self._may_run_ahead(ahead):
            ahead = None
        if ahead is not None and not self.monitor:  # for statistics the host does wait
            states = [self.state[member.parameter] for member in members]
            counters = [state["step"] for state in states if "step" in state]
            self._undecided = Undecided(ahead, self.param_groups, names, finite, counters)
            return self._undecided.go
        if bool(found):
            self._count_skipped(names, finite)
            return False
        return True if ahead is None else ahead == 0  # then the compiled passes are those of the other steps

    def _may_run_ahead(self, found: Tensor) -> bool:
        """Whether the host need not wait for what ``found`` is."""
        wanted = found.device.type != "cpu" if self.run_ahead is None else self.run_ahead
        return wanted and all(isinstance(part, (Shards, Points)) for part in self._all_parts())

    def _move(self, go: Tensor | None) -> None:
        """Take the proximal step in every part, if ``go`` is none or true, and fill ``statistics`` if they are wanted."""
        monitor = Monitor() if self.monitor else None
        for group, part in self._grouped_parts():
            part.step(self._proximal_step(group, go), monitor)
        torch.clear_autocast_cache()
        if monitor is not None:
            precision_weight, mean_weight = self.penalty.weights(self.param_groups[0]["step"])
            self.statistics = monitor.result() | {"kappa_precision": precision_weight, "kappa_mean": mean_weight}
            solved = [part for part in self._all_parts() if isinstance(part, SolvedBlock)]
            if solved:  # the gradient solver's objective without its penalty, per number
                numbers = sum(member.parameter.numel() for part in solved for member in part.members)
                self.statistics["score_loss"] = sum(part.loss.item() for part in solved) / numbers

    def _proximal_step(self, group: dict[str, Any], go: Tensor | None) -> ProximalStep:
        """The settings of the current step for the parts of a group, schedules and learning rate applied."""
        lr = group["lr"]
        precision_weight, mean_weight = self.penalty.weights(group["step"])
        scheduled = self.penalty.mean / mean_weight
        metric = None
        if self.metric == "adaptive":
            singles = None if self.paired else self.draws_per_step
            metric = Adaptive(scheduled * lr, self.scale, self.square_decay, singles)
        return ProximalStep(
            penalty=self.penalty,
            weights=(precision_weight, mean_weight / lr if lr > 0 else float("inf")),
            score_scale=-self.scale / (1 - group["momentum_product"]),
            momentum=group["momentum"],
            metric=metric,
            max_log_precision_step=self.max_log_precision_step,
            # It follows the mean's schedule: otherwise a step that it binds would never shrink.
            max_mean_step=self.max_mean_step * scheduled * lr,
            prior_weight=self._prior_weight(group),
            factor=scheduled * lr / self.base_lr if lr > 0 else 0.0,
            seed=_draw_seed(group, self.draws_per_step - 1),
            number=steps_taken(group),
            go=go,
        )

    def _prior_weight(self, group: dict[str, Any]) -> float:
        """The factor on the prior's precision in the current step: one, except while the prior enters."""
        return 1.0 if self.prior_schedule is None else self.prior_schedule.factor(group["step"])


def _draw_seed(group: dict[str, Any], index: int) -> int:
    """The seed of a draw's noise in the current step."""
    return noise.key(group["seed"], "draw", group["step"], index)
