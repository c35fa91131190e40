"""The best of many runs is that of a plain loop over their values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxscore.experiments.selection import best, cost
from proxscore.experiments.tables import average, markdown


@given(st.dictionaries(st.text(), st.floats()), st.booleans())
def test_the_best_is_the_first_of_the_finite_values_that_no_other_beats(
    values: dict[str, float], maximise: bool
) -> None:
    record: str | None = None
    for key, value in values.items():
        better = record is not None and (value > values[record] if maximise else value < values[record])
        if math.isfinite(value) and (record is None or better):
            record = key
    assert best(values, maximise) == record


def test_what_is_not_finite_comes_last() -> None:
    assert sorted([math.nan, 2.0, math.inf, -math.inf, 1.0], key=cost)[:2] == [1.0, 2.0]


def test_an_average_has_its_standard_error_and_a_table_its_alignment() -> None:
    assert average([1.0, 2.0, 3.0], 3) == "2.000 ± 0.577"  # 1 / sqrt(3)
    assert [average(values, 1) for values in ([], [2.0], [2.0, 2.0], [1.0, math.inf])] == ["–", "2.0", "2.0", "inf"]
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"


@pytest.mark.parametrize("values", [{}, {"a": math.nan}, {"a": math.inf}])
def test_where_nothing_is_finite_there_is_no_best(values: dict[str, float]) -> None:
    assert best(values) is None
