"""Saved posteriors at work: opened from a folder or from MLflow, without their training data, to predict what is new."""

from proxscore.predictor.opening import load

__all__ = ["load"]
