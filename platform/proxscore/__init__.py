"""Bayesian deep learning by proximal score matching: training, and predictions that know what they do not know.

``proxscore.load(source)`` opens a saved posterior. The packages below this one are imported by name, as
``proxscore.inference``, so that the method alone needs torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxscore.predictor.opening import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``load``, whose module imports MLflow, is imported when it is first asked for."""
    if name == "load":
        from proxscore.predictor.opening import load

        return load
    raise AttributeError(f"module 'proxscore' has no attribute {name!r}")
