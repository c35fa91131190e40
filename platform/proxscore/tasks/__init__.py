"""What a task is, for whoever writes one; README.md in this folder says how to add one."""

from proxscore.tasks.classification import ClassificationEvaluator
from proxscore.tasks.evaluator import Evaluator, Predictive
from proxscore.tasks.task import Task

__all__ = ["ClassificationEvaluator", "Evaluator", "Predictive", "Task"]
