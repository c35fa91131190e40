"""Draws of a large network, made anew each time they are used: into the module, or beside a pass that still runs.

On a GPU the next draw is made on a stream of its own, into one set of tensors beside the weights, while the network runs under
the present one; then it is copied. On the CPU the passes take all cores already, and a draw is made in its place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.posterior.posterior import Posterior


class Ahead:
    """Makes the weights of draws, however few of them fit into memory: at most one beside that in the module.

    Args:
        posterior: whose means are not the module's weights.
        parameters: of the module, those in which draws differ.
        seed: of the draws.
    """

    def __init__(self, posterior: Posterior, parameters: Mapping[str, Tensor], seed: int) -> None:
        self._posterior, self._parameters, self._seed = posterior, parameters, seed
        self._spare: dict[str, Tensor] = {}
        self._begun: int | None = None
        cuda = all(parameter.is_cuda for parameter in parameters.values())
        self._stream = torch.cuda.Stream() if cuda else None

    def put(self, index: int | None) -> None:
        """Put the weights of a draw into the module."""
        assert index is not None
        if self._stream is None or self._begun != index:
            self._posterior.put(self._parameters, index, self._seed)
            return
        torch.cuda.current_stream().wait_stream(self._stream)
        self._begun = None
        targets = [noise.local(parameter) for parameter in self._parameters.values()]
        with torch.no_grad():
            torch._foreach_copy_(targets, [noise.local(self._spare[name]) for name in self._parameters])

    def begin(self, index: int | None) -> None:
        """Begin with a draw that will be put into the module next; returns at once."""
        if self._stream is None or index is None:
            return
        if not self._spare:
            self._spare = {name: torch.empty_like(p.detach()) for name, p in self._parameters.items()}
        self._stream.wait_stream(torch.cuda.current_stream())  # what was made before has been copied
        with torch.cuda.stream(self._stream):
            self._posterior.put(self._spare, index, self._seed)
        self._begun = index

    def copy(self, index: int | None) -> dict[str, Tensor]:
        """The weights of a draw by name, flat and local, in tensors of their own."""
        assert index is not None
        made = {name: torch.empty_like(parameter.detach()) for name, parameter in self._parameters.items()}
        self._posterior.put(made, index, self._seed)
        return {name: noise.local(weights) for name, weights in made.items()}


def shares_weights(posterior: Posterior, parameters: Mapping[str, Tensor]) -> bool:
    """Whether means of the posterior are the weights of the module, as of one in training."""
    members = getattr(posterior, "members", [posterior])
    return any(
        noise.local(member.mean[name]).data_ptr() == noise.local(parameter).data_ptr()
        for member in members
        for name, parameter in parameters.items()
        if name in member.mean and parameter.numel()
    )
