"""Bounds of a number that a constructor takes, as its type says them: pydantic reads them, and nothing here imports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """Bounds in an annotation: ``rank: Annotated[int, Bounds(ge=1)]``. Where a configuration sets it, pydantic refuses others.

    Args:
        ge, gt, le: at least, more than, at most.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The schema of the number, with these bounds: pydantic's protocol for what stands in an annotation."""
        return handler(source) | {name: bound for name, bound in asdict(self).items() if bound is not None}
