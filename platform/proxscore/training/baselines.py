"""The simple methods that a job's networks are shown beside: judged once, by the process that records, after a training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

from proxscore.tasks import Task
from proxscore.tasks.baselines import BestBaseline

KEY = "baseline"  # in the results of a run


class Beside:
    """The best of them, which no failure of theirs hides a network's result for.

    Args:
        task: whose windows they forecast; its evaluator says which they are.
        show: takes a line before they begin.
    """

    def __init__(self, task: Task, show: Callable[[str], None]) -> None:
        self.task, self.show = task, show

    @cached_property
    def best(self) -> BestBaseline | None:
        """None: the task has none."""
        try:
            return self.task.evaluator.best_baseline(self.show)
        except Exception as error:  # the network's result stands without them
            logging.getLogger(__name__).debug("baselines failed", exc_info=True)
            why = " ".join(str(error).split()) or type(error).__name__
            return BestBaseline("", {}, {}, (f"failed: {why}",))


def line(results: dict[str, Any]) -> str | None:
    """Whether what a run trained is behind the best baseline, in words; none: it was not shown beside any."""
    found = BestBaseline.of_json(results.get(KEY))
    return (
        None if found is None else found.beside(results["test"].get("posterior") or results["test"].get("point") or {})
    )
