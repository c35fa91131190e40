"""Probabilistic forecasting: GluonTS networks and Koopa by name, windows of series, predictive distributions per step."""
