"""Schedules of the proximal step over the run.

A proximal weight kappa is the inverse of a step, so a schedule multiplies the *step* by a factor f(t) in [0, 1], as
learning-rate schedules do, and the weight follows as

    kappa(t) = kappa / f(t),        f(t) = 0  meaning  kappa = infinity: the iterate stays where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

Kind = Literal["constant", "linear", "cosine", "exponential", "power"]


@dataclass(frozen=True)
class Schedule:
    """Factor f(t) on a proximal step; t counts ``unit`` (steps or epochs) since the start of the run.

    During warm-up f rises linearly to one over ``warmup`` units. Then, with s the time since warm-up and L the length:

    ============  =====================================================
    constant      1
    linear        1 - (1 - end) s / L
    cosine        end + (1 - end) (1 + cos(pi s / L)) / 2
    exponential   end ** (s / L)
    power         (1 + s / L) ** (-power)
    ============  =====================================================

    Past L, linear, cosine and exponential stay at ``end``. With ``multipliers`` m_1 ... m_n, f is multiplied by m_i in the i-th
    of n equal parts of the run (a schedule that a population has learned; f may then exceed 1).

    Args:
        kind: one of the names above.
        warmup: length of the warm-up, in units.
        length: L, in units; none means the rest of the run (for ``power``: one unit). See :meth:`resolve`.
        end: final factor, in [0, 1]; must be positive for ``exponential``.
        power: exponent of ``power``, positive.
        unit: what t, ``warmup`` and ``length`` count.
        multipliers: positive factors of equal parts of the run.
        total: length of the run in steps, for ``multipliers``; :meth:`resolve` fills it in.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    kind: Kind = "constant"
    warmup: float = 0
    length: float | None = None
    end: float = 0.0
    power: float = 0.5
    unit: Literal["steps", "epochs"] = "steps"
    multipliers: tuple[float, ...] = ()
    total: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"schedule kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        if self.unit not in ("steps", "epochs"):
            raise ValueError(f"schedule unit is {self.unit!r}; it must be steps or epochs")
        if self.warmup < 0:
            raise ValueError(f"schedule warmup is {self.warmup}; it must be zero or positive")
        if self.length is not None and self.length <= 0:
            raise ValueError(f"schedule length is {self.length}; it must be positive")
        if not 0 <= self.end <= 1:
            raise ValueError(f"schedule end is {self.end}; it must lie in [0, 1]")
        if self.kind == "exponential" and self.end == 0:
            raise ValueError("schedule end is 0; an exponential schedule needs a positive end, for example 0.01")
        if self.power <= 0:
            raise ValueError(f"schedule power is {self.power}; it must be positive")
        if not all(0 < multiplier < math.inf for multiplier in self.multipliers):
            raise ValueError(f"schedule multipliers are {list(self.multipliers)}; they must be positive")

    def resolve(self, total_steps: int, steps_per_epoch: int) -> Schedule:
        """The same schedule counted in steps, with its length filled in from the length of the run (in steps)."""
        scale = steps_per_epoch if self.unit == "epochs" else 1
        warmup = self.warmup * scale
        if self.length is not None:
            length = self.length * scale
        else:
            length = float(scale) if self.kind == "power" else max(total_steps - warmup, 1.0)
        return replace(self, unit="steps", warmup=warmup, length=length, total=total_steps)

    def factor(self, step: int) -> float:
        """f at a step (counted from zero).

        Raises:
            ValueError: the schedule still counts epochs or has no length; call :meth:`resolve` first.
        """
        if self.unit != "steps":
            raise ValueError(
                "a schedule in epochs must be resolved to steps: schedule.resolve(total_steps, steps_per_epoch)"
            )
        return self._shape(step) * self._multiplier(step)

    def _multiplier(self, step: int) -> float:
        if not self.multipliers:
            return 1.0
        if self.total is None:
            raise ValueError("multipliers need the length of the run: call schedule.resolve(...)")
        return self.multipliers[min(step * len(self.multipliers) // self.total, len(self.multipliers) - 1)]

    def _shape(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (math.floor(self.warmup) + 1)
        since = step - self.warmup
        if self.kind == "constant":
            return 1.0
        if self.kind == "power":
            return (1 + since / (self.length or 1.0)) ** -self.power
        if self.length is None:
            raise ValueError(f"a {self.kind} schedule needs a length: give one, or call schedule.resolve(...)")
        progress = min(since / self.length, 1.0)
        if self.kind == "linear":
            return 1 - (1 - self.end) * progress
        if self.kind == "cosine":
            return self.end + (1 - self.end) * (1 + math.cos(math.pi * progress)) / 2
        return self.end**progress
