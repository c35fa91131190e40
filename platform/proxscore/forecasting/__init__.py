"""Time series: their data, networks by name and Koopa, and forecasting as a task."""
