"""What a task is, for whoever writes one; README.md in this folder says how to add one."""

from proxscore.tasks.classification import ClassificationJudge
from proxscore.tasks.judge import Judge, Predictive
from proxscore.tasks.task import Task

__all__ = ["ClassificationJudge", "Judge", "Predictive", "Task"]
