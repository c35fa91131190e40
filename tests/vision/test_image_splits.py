"""Splits by seed."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from proxscore.config import ConfigError
from proxscore.vision.data import load_images
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.splits import draw_rows, fingerprint, split_rows

LABELS = np.random.default_rng(7).choice(5, size=1003, p=[0.5, 0.3, 0.15, 0.045, 0.005])
FRACTIONS = {"validation": 0.1, "test": 0.2}


def test_parts_are_disjoint_exhaustive_sorted_and_of_the_stated_size() -> None:
    parts = split_rows(LABELS, FRACTIONS, seed=3)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1003))
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 702, "validation": 100, "test": 201}
    assert all((np.diff(rows) > 0).all() for rows in parts.values())


@pytest.mark.parametrize("seed", range(20))
def test_every_part_and_every_draw_holds_each_class_in_its_share_to_within_two_rows(seed: int) -> None:
    parts = split_rows(LABELS, FRACTIONS, seed=seed)
    whole = np.bincount(LABELS, minlength=5)
    for rows in parts.values():
        assert np.abs(np.bincount(LABELS[rows], minlength=5) - whole * len(rows) / len(LABELS)).max() <= 2
    train = parts["train"]
    drawn = draw_rows(train, LABELS[train], 200, seed=seed)
    assert len(set(drawn)) == 200
    assert set(drawn) <= set(train)
    share = np.bincount(LABELS[train], minlength=5) * 200 / len(train)
    assert np.abs(np.bincount(LABELS[drawn], minlength=5) - share).max() <= 2


def test_the_seed_alone_decides_which_rows_and_each_row_is_equally_likely() -> None:
    first, again = split_rows(LABELS, FRACTIONS, seed=1), split_rows(LABELS.copy(), FRACTIONS, seed=1)
    assert all(np.array_equal(first[part], again[part]) for part in first)
    draws = [draw_rows(first["train"], LABELS[first["train"]], 50, seed=seed).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    labels = np.repeat([0, 1], [8, 32])
    hits = sum(np.isin(np.arange(40), split_rows(labels, {"test": 0.25}, seed=s)["test"]) for s in range(2000))
    # 2000 draws of probability 1/4: mean 500, standard deviation 19.4; 40 rows within 4.5 of them
    assert np.abs(hits - 500).max() < 4.5 * 19.4


def test_the_fingerprint_is_the_sha256_of_the_row_numbers() -> None:
    rows = np.array([3, 1, 2**40])
    assert fingerprint(rows) == hashlib.sha256(struct.pack("<3q", 3, 1, 2**40)).hexdigest()


def test_empty_parts_and_too_large_limits_are_refused() -> None:
    for fractions, text in [
        ({"validation": 0.01}, "task.data.validation_fraction 0.01 of 12 images is none"),
        ({"validation": 0.5, "test": 0.5}, "leave none to train on"),
    ]:
        with pytest.raises(ConfigError, match=text):
            split_rows(np.zeros(12, dtype=np.int64), fractions, seed=0)
    with pytest.raises(ConfigError, match=r"task.data.limit is 2000; there are 1258 training images"):
        load_images(DigitsConfig(limit=2000))


def test_the_record_holds_what_repeats_the_split() -> None:
    data = load_images(DigitsConfig(split_seed=5, limit=100))
    record = data.splits
    assert record["seed"] == 5
    assert record["fractions"] == {"validation": 0.1, "test": 0.2}
    assert record["counts"] == {"train": 100, "validation": 180, "test": 359}
    assert record["sha256"]["train"] == hashlib.sha256(data.train.rows.astype("<i8").tobytes()).hexdigest()
    assert load_images(DigitsConfig(split_seed=5, limit=100)).splits == record
    other = load_images(DigitsConfig(split_seed=6, limit=100)).splits
    assert all(other["sha256"][part] != record["sha256"][part] for part in record["sha256"])
