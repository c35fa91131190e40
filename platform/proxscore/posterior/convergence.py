"""Whether a posterior arrived, as a posterior carries it: one of three answers, with reasons, and what its sds stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

Answer = Literal["converged", "still moving", "diverged"]
KEY = "verdict"
COLD = "a cold posterior's intervals are not credible intervals"


@dataclass(frozen=True)
class Verdict:
    """What training found of its own convergence; see :func:`proxscore.posterior.diagnostics.verdict`.

    Attributes:
        answer: ``converged``, ``still moving`` or ``diverged``.
        reasons: why it is not converged: what moves, by how much, and what to set; one line each.
        failures: what is wrong with the posterior even if nothing moves any more.
        notes: what its standard deviations stand for, and what could not be judged.
        metrics: numbers behind it.
        temperature, data_size: of the posterior: its likelihood is that of ``data_size`` points to the power 1 / temperature.
        rows: of the training data, where they are known.
    """

    answer: Answer
    reasons: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    data_size: float = 0.0
    rows: int | None = None

    @property
    def sound(self) -> bool:
        """Converged, and nothing is wrong with it."""
        return self.answer == "converged" and not self.failures

    @property
    def cold(self) -> bool:
        """Whether its likelihood counts the data more than once."""
        return self.rows is not None and self.data_size / self.temperature > self.rows * (1 + 1e-6)

    @property
    def scale(self) -> str:
        """The temperature and data size that stand beside every standard deviation."""
        if self.rows is None and self.data_size == 1:  # of a density
            return f"temperature {self.temperature:g}, the density as it is given"
        rows = "" if self.rows is None else f" ({self.rows:,} rows)"
        return f"temperature {self.temperature:g}, effective data size {self.data_size:,.0f}{rows}"

    @property
    def warning(self) -> str | None:
        """One line for whoever uses the posterior; none of a sound one."""
        if self.sound:
            return None
        first = [*self.reasons, *self.failures]
        more = f" (and {len(first) - 1} more)" if len(first) > 1 else ""
        return f"this posterior is {self.answer}{': ' if first else ''}{first[0] if first else ''}{more}"

    def lines(self) -> list[str]:
        """All of it: the answer first."""
        beside = f"{self.answer} ({self.scale})" + ("" if not self.cold else f": {COLD}")
        return [beside, *self.reasons, *self.failures, *self.notes]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a description."""
        plain = asdict(self)
        return plain | {key: list(plain[key]) for key in ("reasons", "failures", "notes")}

    @classmethod
    def of_all(cls, each: Sequence[Verdict]) -> Verdict:
        """Of the members of an ensemble: the worst answer, with every member's reasons; numbers are the last member's."""
        worst = max((one.answer for one in each), key=get_args(Answer).index)
        count = len(each)

        def numbered(key: str) -> tuple[str, ...]:
            return tuple(
                f"member {k + 1} of {count}: {line}" for k, one in enumerate(each) for line in getattr(one, key)
            )

        return replace(each[-1], answer=worst, reasons=numbered("reasons"), failures=numbered("failures"))

    @classmethod
    def of_json(cls, value: Any) -> Verdict | None:
        """Read what :meth:`as_json` gave; none where it is anything else."""
        if not isinstance(value, Mapping) or value.get("answer") not in get_args(Answer):
            return None
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        for key in ("reasons", "failures", "notes"):
            known[key] = tuple(str(line) for line in known.get(key, ()))
        return cls(**known)
