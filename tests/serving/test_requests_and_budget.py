"""What a request may hold; and the draws that a time allows."""

from __future__ import annotations

import json

import pytest

from proxscore.commands.serve import duration
from proxscore.config import ConfigError
from proxscore.serving.budget import LatencyBudget
from proxscore.serving.requests import Limits, RefusedError, parsed

LIMITS = Limits(rows=3, draws=8, bytes=1000)


def test_images_and_tables_are_one_request() -> None:
    options = {"draws": 2, "seed": 1, "return": "all", "quantiles": [0.1]}
    split = {"columns": ["image"], "data": [["YQ=="]]}
    for body in (
        {"images": ["YQ=="]} | options,
        {"dataframe_records": [{"image": "YQ=="}], "params": options},
        {"dataframe_split": split, "params": {"draws": 2, "return": "all"}, "seed": 1, "quantiles": [0.1]},
    ):
        found = parsed(json.dumps(body).encode(), "images", LIMITS)
        assert found.table["image"].tolist() == ["YQ=="]
        assert (found.draws, found.seed, found.all, found.quantiles) == (2, 1, True, (0.1,))
    array = parsed(b'{"images": [[[1, 2], [3, 4]]]}', "images", LIMITS)
    assert array.table["image"].tolist() == [[[1, 2], [3, 4]]]
    series = parsed(b'{"series": [{"t": "2024-01-01", "target": 1.5}]}', "series", LIMITS)
    assert list(series.table.columns) == ["t", "target"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[1]", 400, "the body is a list"),
        (b"{}", 400, "the body has neither"),
        (b'{"images": ["a"], "rows": 1}', 400, "unknown key 'rows'"),
        (b'{"images": []}', 400, "no images in it"),
        (b'{"images": "a"}', 400, "images is a list"),
        (b'{"images": ["a", "b", "c", "d"]}', 413, "4 rows; a request has at most 3"),
        (b'{"images": ["a"], "draws": 9}', 400, "draws is 9; a request has at most 8"),
        (b'{"images": ["a"], "draws": true}', 400, "draws is True"),
        (b'{"images": ["a"], "draws": 1.5}', 400, "draws is 1.5"),
        (b'{"images": ["a"], "seed": -1}', 400, "seed is -1"),
        (b'{"images": ["a"], "return": "some"}', 400, "return is 'some'"),
        (b'{"images": ["a"], "quantiles": [2]}', 400, "quantiles is a list"),
        (b'{"images": ["a"], "quantiles": 2}', 400, "quantiles is a list"),
        (b'{"images": ["a"], "params": [1]}', 400, "params must be an object"),
        (b'{"images": ["a"], "params": {"foo": 1}}', 400, "unknown parameter 'foo'"),
        (b'{"series": [{"a": 1}]}', 400, "give images"),
        (b'{"images": ["a"], "dataframe_records": [{"image": "a"}]}', 400, "one of them"),
        (b'{"dataframe_split": {"columns": ["image"], "data": [["a", "b"]]}}', 400, "dataframe_split: no table"),
        (b'{"dataframe_split": 1}', 400, "dataframe_split: no table"),
        (b'{"dataframe_records": [1]}', 400, "a list of objects"),
    ],
)
def test_other_requests_are_refused_in_a_line(body: bytes, status: int, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as refused:
        parsed(body, "images", LIMITS)
    assert refused.value.status == status
    assert "\n" not in str(refused.value)


def test_as_many_draws_as_there_is_time_for() -> None:
    budget = LatencyBudget(0.1)
    assert budget.draws(1, 50) == 50  # nothing is known yet
    budget.measured(1, (1, 11), (0.011, 0.021))  # ten milliseconds, and one for each draw
    budget.measured(11, (1, 11), (0.02, 0.12))  # ten for each
    assert budget.draws(1, 200) == 80  # 90 ms
    assert budget.draws(1, 50) == 50
    assert budget.draws(11, 200) == 8
    assert 8 < budget.draws(6, 200) < 80
    assert budget.draws(22, 200) == 3  # in proportion beyond the last
    assert budget.draws(1000, 200) == 1  # one at least
    for _ in range(200):
        budget.learn(1, 10, 0.04)  # twice as slow as it was
    assert budget.pace == pytest.approx(2, rel=0.01)
    assert budget.draws(1, 200) == 35
    budget.learn(1, 10, 100.0)  # one pause counts little
    assert budget.draws(1, 200) > 25
    assert LatencyBudget(None).draws(1, 77) == 77


def test_times() -> None:
    assert duration("--latency-budget", "50ms") == 0.05
    assert duration("--latency-budget", "0.2 s") == 0.2
    assert duration("--batch-wait", "0ms") == 0
    for wrong in ("50", "-1ms", "0ms", "1h", ""):
        with pytest.raises(ConfigError, match="give a time such as"):
            duration("--latency-budget", wrong)
