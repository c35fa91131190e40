"""One SQLite database for the tests of this folder: making one takes seconds."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking server's URI."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"
