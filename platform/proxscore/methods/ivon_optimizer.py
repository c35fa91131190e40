"""The optimizer of the package ``ivon-opt`` with the loop's interface; :mod:`proxscore.methods.ivon` has its settings.

A mean-field Gaussian N(m, 1 / (ess (h + weight_decay))) whose Hessian estimate h comes from reparametrized gradients. Shen et
al., Variational learning is effective for large deep networks, arXiv 2402.17641. The package keeps flat, concatenated
buffers, so it cannot shard: one worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ivon
import torch
from torch import Tensor, nn

from proxscore.inference import noise
from proxscore.inference.names import named_parameters
from proxscore.methods.steps import Factor, Steps
from proxscore.posterior import NameOf, Posterior


class IVON(Steps, ivon.IVON):
    """The package's optimizer with the loop's interface.

    Its noise is a function of seed and step, an exception in the draw loop leaves the mean in the weights, and its state is
    saved per parameter with its step count, which the package's ``state_dict`` lacks.

    Args:
        module: whose trained parameters are described.
        settings: of ``ivon.IVON``.
    """

    def __init__(
        self, module: nn.Module, factor: Factor, max_skipped_steps: int = 10, seed: int = 0, **settings: Any
    ) -> None:
        named = [(name, p) for name, p in named_parameters(module).items() if p.requires_grad]
        super().__init__([p for _, p in named], **settings)
        self.prepare(factor, max_skipped_steps)
        self.seed = seed
        self.evaluations_per_step = self.mc_samples

    def draws(self) -> Iterator[int]:
        """Put draws into the weights, one per pass of the loop's body; the mean is back afterwards."""
        self._reset_samples()
        for index in range(self.mc_samples):
            self.zero_grad()
            values = [p.data for p in self.parameters()]
            with torch.random.fork_rng([self._device.index or 0] if self._device.type == "cuda" else []):
                torch.manual_seed(noise.key(self.seed, "draw", self.current_step, self._skipped, index) >> 1)
                mean, deviation = self._sample_params()
            done = False
            try:
                yield index
                for p in self.parameters():
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                done = True
            finally:
                if done:
                    self._restore_param_average(True, mean, deviation)
                else:
                    for p, value in zip(self.parameters(), values, strict=True):
                        p.data = value

    @property
    def _skipped(self) -> int:
        return self.param_groups[0]["skipped"]

    @property
    def nonfinite(self) -> Tensor:
        """Whether a gradient of a draw was not finite (0 or 1, on the device)."""
        average: Tensor = self.state["avg_grad"]  # type: ignore[index]  # the package keeps it under a name
        return 1.0 - average.isfinite().all().float()

    def update(self) -> None:
        """One step of the package."""
        ivon.IVON.step(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch has it: ``momentum`` and ``hess`` per parameter."""
        packed, state, index = super().state_dict(), {}, 0
        for group, held in zip(packed["param_groups"], self.param_groups, strict=True):
            flat = {name: group.pop(name) for name in ("momentum", "hess")}
            sizes = [p.numel() for p in held["params"]]
            for p, *rows in zip(held["params"], *(value.split(sizes) for value in flat.values()), strict=True):
                state[index] = {name: row.view_as(p).clone() for name, row in zip(flat, rows, strict=True)}
                index += 1
            group["current_step"] = self.current_step
        return packed | {"state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned."""
        groups = []
        for packed in state_dict["param_groups"]:
            rows = [state_dict["state"][index] for index in packed["params"]]
            flat = {name: torch.cat([row[name].flatten() for row in rows]) for name in ("momentum", "hess")}
            groups.append(packed | {name: value.to(self._device) for name, value in flat.items()})
        super().load_state_dict({"state": {}, "param_groups": groups})
        self.current_step = groups[0]["current_step"]
        self._reset_samples()

    def posterior_from(self, point: Posterior, name_of: NameOf) -> Posterior:
        """The mean-field Gaussian: ess (h + weight_decay) beside the means."""
        (group,) = self.param_groups
        precision = group["ess"] * (group["hess"] + group["weight_decay"])
        pieces = precision.split([p.numel() for p in group["params"]])
        named = zip(group["params"], pieces, strict=True)
        return replace(point, precision={name_of(p): piece.view_as(p) for p, piece in named})
