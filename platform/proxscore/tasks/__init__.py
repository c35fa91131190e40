"""What a task is, for whoever writes one; README.md in this folder says how to add one."""

from proxscore.tasks.classification import ClassificationEvaluator
from proxscore.tasks.evaluator import Evaluator, Predictive
from proxscore.tasks.multi_label import MultiLabelEvaluator
from proxscore.tasks.regression import RegressionEvaluator
from proxscore.tasks.task import Task

__all__ = ["ClassificationEvaluator", "Evaluator", "MultiLabelEvaluator", "Predictive", "RegressionEvaluator", "Task"]
