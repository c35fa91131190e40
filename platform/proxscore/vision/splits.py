"""Splits by seed: stratified by class, deterministic, disjoint and exhaustive.

Rows are put into one random order in which every class is spread evenly, so that any run of it holds each class in its
share of the whole; the parts of a split are consecutive runs. With rank r (a random order of the n_c rows of class c)
and u uniform in [0, 1), a row's place in the order is (r + u) / n_c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from proxscore.config import ConfigError

Rows = NDArray[np.int64]


def split_rows(labels: Rows, fractions: Mapping[str, float], *, seed: int) -> dict[str, Rows]:
    """Partition the rows 0..N-1 into the parts named in ``fractions`` and ``train``, which takes what is left.

    Args:
        labels: (N,) classes.
        fractions: part -> fraction of the N rows; a part gets round(fraction * N) of them.
        seed: the same seed and labels give the same parts.

    Returns:
        part -> its row numbers in ascending order.

    Raises:
        ConfigError: a part would be empty.
    """
    counts = {part: round(fraction * len(labels)) for part, fraction in fractions.items()}
    for part, count in counts.items():
        if count == 0:
            setting = f"task.data.{part}_fraction {fractions[part]}"
            raise ConfigError(f"{setting} of {len(labels)} images is none; use a larger fraction or more images")
    if sum(counts.values()) >= len(labels):
        names = " and ".join(f"task.data.{part}_fraction {fractions[part]}" for part in fractions)
        raise ConfigError(f"{names} of {len(labels)} images leave none to train on; use smaller fractions")
    order = stratified_order(labels, (seed, 0))
    bounds = np.cumsum([0, *counts.values()])
    parts = {part: np.sort(order[a:b]) for part, (a, b) in zip(counts, pairwise(bounds), strict=True)}
    return {"train": np.sort(order[bounds[-1] :]), **parts}


def draw_rows(rows: Rows, labels: Rows, count: int, *, seed: int) -> Rows:
    """Draw ``count`` of ``rows`` (M,) with classes ``labels`` (M,), stratified, in ascending order.

    Raises:
        ConfigError: there are fewer than ``count``.
    """
    if count > len(rows):
        raise ConfigError(f"task.data.limit is {count}; there are {len(rows)} training images: use at most that many")
    return np.sort(rows[stratified_order(labels, (seed, 1))[:count]])


def fingerprint(rows: Rows) -> str:
    """SHA-256, in hexadecimal, of the row numbers as little-endian 64-bit integers."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()


def stratified_order(labels: Rows, seed: tuple[int, int]) -> Rows:
    """A random order of rows with classes ``labels`` (N,) in which every class is spread evenly; see the top of this module."""
    # Only Generator.random is used: shuffling algorithms may change between NumPy releases, this stream is kept.
    keys, jitter = np.random.default_rng(seed).random((2, len(labels)))
    by_class = np.lexsort((keys, labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    place = np.empty(len(labels))
    place[by_class] = (np.arange(len(labels)) - np.repeat(starts, counts) + jitter) / np.repeat(counts, counts)
    return np.argsort(place, kind="stable").astype(np.int64)
