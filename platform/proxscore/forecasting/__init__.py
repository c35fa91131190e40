"""Probabilistic forecasts of time series: data, windows, networks and their predictive distributions."""
