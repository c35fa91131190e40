"""The settings of schedules and of the gradient solver: sections of a configuration, apart from what they build.

The method itself needs torch alone; these need pydantic, and are imported with a configuration.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

import torch
from pydantic import Field

from proxscore.config.section import Section
from proxscore.inference.schedules import Kind, Schedule
from proxscore.inference.solver import GradientSolver


class ScheduleConfig(Section):
    """How a proximal step (the inverse of a proximal weight) moves over the run; see :class:`Schedule`."""

    kind: Kind = "constant"  # how the step falls after the warm-up
    unit: Literal["steps", "epochs"] = "steps"  # of warmup and length
    warmup: float = Field(0, ge=0)  # over which the step grows from zero
    length: float | None = Field(None, gt=0)  # null: the rest of the run
    end: float = Field(0.0, ge=0)  # the last step as a fraction of the first, of all kinds but constant and power
    power: float = Field(0.5, gt=0)  # of kind=power: the step falls as time to the minus this
    multipliers: list[float] = Field([])  # of equal parts of the run: what a population has learned

    def build(self) -> Schedule:
        """The schedule, still in its own units; see :meth:`Schedule.resolve`."""
        return Schedule(**self.model_dump() | {"multipliers": tuple(self.multipliers)})


class SolverConfig(Section):
    """The gradient solver. ``optimizer`` is a name of ``torch.optim``."""

    inner_steps: int = Field(10, ge=2, le=100_000)  # gradient steps for each step of the posterior
    optimizer: str = "Adam"  # a name of torch.optim
    lr: float = Field(0.01, gt=0)  # of that optimizer
    options: dict[str, Any] = Field({})  # that the optimizer takes beside

    def build(self) -> GradientSolver:
        """The solver.

        Raises:
            ValueError: ``optimizer`` is none of ``torch.optim``, or does not take the options.
        """
        optimizer: Any = getattr(torch.optim, self.optimizer, None)
        known = isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)
        if not known:
            names = [name for name, value in vars(torch.optim).items() if isinstance(value, type)]
            near = difflib.get_close_matches(self.optimizer, names, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else "for example 'Adam'"
            raise ValueError(f"solver.optimizer is {self.optimizer!r}, no optimizer of torch.optim; {hint}")
        solver = GradientSolver(self.inner_steps, optimizer, self.lr, self.options)
        solver.build([torch.zeros(1)])
        return solver
