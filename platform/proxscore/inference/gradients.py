"""The parameters' gradients in a draw loop: those of each draw alone, and whether they are finite and left untouched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from proxscore.inference import noise
from proxscore.inference.groups import total_norm


class Gradients:
    """The gradients of an optimizer's parameters, from the start of a draw loop to its step.

    They add up over draws as torch adds them, except where a draw's own gradient is needed: to take a loss scale out of it,
    and to clip it. Then those before are set aside while the draw's backward pass runs.

    Args:
        clip_norm: largest 2-norm of a draw's gradient; none: not clipped.
    """

    def __init__(self, parameters: Sequence[Tensor], clip_norm: float | None) -> None:
        self._parameters, self._clip_norm = parameters, clip_norm
        self._scaler: GradScaler | None = None
        self._aside: list[Tensor | None] | None = None
        self._first_of_pair: list[Tensor | None] = []
        self._versions: list[int] = []  # of the statistics in the gradients when the last loop ended
        self._finite: Tensor | None = None  # by parameter

    def start_loop(self, scaler: GradScaler | None) -> None:
        """Drop all gradients before the first draw; ``scaler``: of the losses."""
        self._scaler, self._finite = scaler, None
        self.clear()

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def before_backward(self, second: bool) -> None:
        """Prepare for a draw's backward pass; the gradient of the ``second`` of a pair adds to that of the first."""
        self._aside = None
        if self._clip_norm is not None or self._scaler is not None:
            self._aside = self._current()
            self.clear()
        self._first_of_pair = self._current() if second else []

    def after_backward(self) -> None:
        """Take up a draw's gradients: make them dense, take the loss scale out, clip them, add those set aside.

        Raises:
            RuntimeError: there are none, or those of a pair's first draw are gone.
        """
        aside, first = self._aside, self._first_of_pair
        self._aside, self._first_of_pair = None, []
        if any(a is not None and a is not p.grad for a, p in zip(first, self._parameters, strict=False)):
            raise RuntimeError("gradients were cleared between the two draws of a pair; leave them to the optimizer")
        if all(parameter.grad is None for parameter in self._parameters):
            raise RuntimeError("no gradients after a draw: call backward() inside the draws() loop")
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:  # of an embedding
                parameter.grad = parameter.grad.to_dense()
        if aside is None:
            return
        found = [gradient for gradient in self._current() if gradient is not None]
        if self._scaler is not None:
            shares = [noise.local(gradient) for gradient in found]
            one = torch.ones((), device=shares[0].device)  # scaled where it is: get_scale() would wait for a GPU
            torch._foreach_mul_(shares, self._scaler.scale(one).reciprocal())
        if self._clip_norm is not None:
            factor = (self._clip_norm / total_norm(found)).clamp(max=1.0)
            torch._foreach_mul_([noise.local(gradient) for gradient in found], factor)
        for parameter, before in zip(self._parameters, aside, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else parameter.grad.add_(before)

    def note_finite(self, gradients: list[Tensor]) -> None:
        """Note which of a draw's gradients are finite: the local ones of the parameters that take part, in order."""
        # The 2-norm is the fastest reduction that any nan or inf passes through (beyond 1e19 it overflows: no loss).
        norms = torch._foreach_norm(gradients, 2)
        finite = torch.stack([norm.float() for norm in norms]).isfinite()
        self._finite = finite if self._finite is None else self._finite & finite

    def finite(self) -> Tensor:
        """Whether the gradients of all draws of the loop were finite, by parameter that takes part.

        Raises:
            RuntimeError: there were no draws.
        """
        if self._finite is None:
            raise RuntimeError("no scores yet: run the draws() loop first")
        return self._finite

    def end_loop(self) -> None:
        """Remember the gradients as they are: from now on they hold statistics, which only the step may change."""
        self._aside, self._first_of_pair = None, []  # an error may have left them, and their memory
        self._versions = self._written()

    def check_untouched(self, grad_scaler: bool, loss_scale: Tensor | None) -> None:
        """Refuse what would be wrong without a word: a loss scale in the scores, or statistics that were changed.

        Args:
            grad_scaler: the step is a GradScaler's.
            loss_scale: the scale that it has not taken out of the gradients; none: it has.
        """
        if grad_scaler and loss_scale is not None and self._scaler is None:
            raise RuntimeError(
                "the losses were scaled by a GradScaler, and the likelihood with them: pass it to the loop, "
                "optimizer.draws(scaler)"
            )
        if (grad_scaler and loss_scale is None) or self._versions != self._written():
            raise RuntimeError(
                "gradients were changed between the draw loop and step(): they hold curvature statistics there, which "
                "clip_grad_norm_ or GradScaler.unscale_ spoil; use ProximalScore(clip_norm=...) to clip, and "
                "optimizer.draws(scaler)"
            )

    def _current(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self._parameters]

    def _written(self) -> list[int]:
        """How often each gradient has been written in place, as torch counts it."""
        return [-1 if gradient is None else noise.local(gradient)._version for gradient in self._current()]
