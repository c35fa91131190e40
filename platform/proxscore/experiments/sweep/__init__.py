"""Ray Tune: search spaces, searchers, sweeps of Ray Train runs, and what they leave in MLflow."""
