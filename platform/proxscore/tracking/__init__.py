"""MLflow: runs with a true status, metrics by step, figures, posteriors."""

from proxscore.tracking.recorder import Recorder, say
from proxscore.tracking.runs import TrackedRun, tracking_uri

__all__ = ["Recorder", "TrackedRun", "say", "tracking_uri"]
