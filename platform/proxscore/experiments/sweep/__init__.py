"""Ray Tune: search spaces, searchers, sweeps of Ray Train runs, and what they leave in MLflow. Needs the extra ``tune``."""

from proxscore.config.extras import need

need("tune", "a search of settings")
