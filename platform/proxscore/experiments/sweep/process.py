"""The process that Ray Tune has for trials: it imports what they need once."""

from __future__ import annotations

from typing import Any

from proxscore import garbage


def run(settings: dict[str, Any]) -> None:
    """Run a trial; see :func:`proxscore.experiments.sweep.trial.run`."""
    garbage.look_less_often()
    from proxscore.experiments.sweep import trial  # here: it takes seconds

    trial.run(settings)
