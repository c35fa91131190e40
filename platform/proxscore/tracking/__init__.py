"""MLflow: runs with a true status, metrics by step, figures, posteriors."""

from proxscore.tracking.browsing import browse
from proxscore.tracking.recorder import Recorder
from proxscore.tracking.runs import TrackedRun, tracking_uri
from proxscore.tracking.study import Study, study

__all__ = ["Recorder", "Study", "TrackedRun", "browse", "study", "tracking_uri"]
