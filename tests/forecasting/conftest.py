"""Series as GluonTS entries, small enough for a test to train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

Entries = list[dict[str, Any]]


def make_entries(lengths: tuple[int, ...] = (150, 170, 140), *, features: bool = False, ahead: int = 0) -> Entries:
    """Hourly series with a daily season, missing values, and, if asked for, covariates and static features."""
    random = np.random.default_rng(0)
    entries: Entries = []
    for number, length in enumerate(lengths):
        hours = np.arange(length + ahead)
        level = 10.0**number
        target = level * (3 + np.sin(2 * np.pi * hours / 24 + number) + 0.1 * random.standard_normal(len(hours)))
        target = target[:length].astype(np.float32)
        target[random.random(length) < 0.05] = np.nan
        entry = {"item_id": f"s{number}", "start": pd.Period("2024-03-01 05:00", "h"), "target": target}
        if features:
            entry |= {
                "feat_dynamic_real": random.standard_normal((2, length + ahead)).astype(np.float32),
                "past_feat_dynamic_real": random.standard_normal((1, length)).astype(np.float32),
                "feat_static_cat": [number, number % 2],
                "feat_static_real": [0.5 * number],
            }
        entries.append(entry)
    return entries


@pytest.fixture
def entries() -> Callable[..., Entries]:
    """:func:`make_entries`."""
    return make_entries
