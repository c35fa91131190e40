"""Batches of training and evaluation: which rank reads which rows, and in what order."""
