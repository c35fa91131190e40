"""A posterior of the digits, and its report, that several tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_posteriors import fitted, report, settings

from proxscore.training.saved import Saved


@pytest.fixture(scope="session")
def digits() -> Saved:
    return fitted(settings())


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def record(digits: Saved, report_folder: Path) -> dict[str, Any]:
    return report(digits, report_folder, outside=("noise", "near:photographs"))
