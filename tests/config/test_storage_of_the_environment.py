"""A cluster gives its jobs a bucket by the environment, as it gives them a tracking server."""

from __future__ import annotations

import pytest

from proxscore import config as configuration


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "runs"), ("", "runs"), ("s3://bucket/runs", "s3://bucket/runs")]
)
def test_the_environment_names_the_default_storage(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROXSCORE_STORAGE", raising=False)
    if given is not None:
        monkeypatch.setenv("PROXSCORE_STORAGE", given)
    assert configuration.parse({}).training.storage == expected
    assert configuration.parse({"training": {"storage": "here"}}).training.storage == "here"
