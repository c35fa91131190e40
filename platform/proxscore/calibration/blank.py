"""Where figures begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches, outside pyplot's state: nothing to close, and no display needed."""
    from matplotlib.figure import Figure  # here: of the workers of a cluster one alone draws

    return Figure(figsize=(width, height), dpi=150, layout="constrained")
