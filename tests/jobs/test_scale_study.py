"""The study of scale: its estimates beside published throughputs, and what must hold of any prediction."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).resolve().parents[2] / "jobs" / "studies" / "speed"


@pytest.fixture(scope="module")
def scale() -> Any:
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    sys.path.append(str(STUDY))
    try:
        import scale
    finally:
        sys.path.remove(str(STUDY))
        sys.dont_write_bytecode = before
    return scale


def test_the_throughput_of_128_gpus_follows_from_that_of_eight(scale: Any) -> None:
    """torchtitan's Llama 3 8B on H100s, eager and compiled: published, and within five per cent."""
    rows = scale.published_rows(True)
    predicted = [row for row in rows if row[1].startswith("128 x H100")]
    assert len(predicted) == 2
    for row in predicted:
        assert abs(float(row[4].rstrip("%"))) < 5


def test_operations_of_a_decoder_are_six_a_weight_and_token_and_those_of_attention(scale: Any) -> None:
    """As torchtitan counts them, 6 N + 12 layers x width x tokens, without the embedding's look-up."""
    network, size = scale.counted("Llama 3 8B", 8192), scale.SIZES["Llama 3 8B"]
    assert network.numbers == pytest.approx(8.03e9, rel=1e-3)
    multiplied = network.numbers - size.words * size.width
    expected = 6 * multiplied + 12 * size.layers * size.width * 8192
    assert sum(network.operations.values()) / 8192 == pytest.approx(expected, rel=0.001)


def test_predictions_are_of_every_method_and_a_pair_costs_two_single_draws(scale: Any) -> None:
    found = scale.predictions(True)
    assert len(scale.cells(found)[0]) == len(scale.HEADER)
    assert [list(row) for row in scale.rows(True)] == [scale.HEADER] * len(found)  # as the study of speed takes it
    of = {(line.gpus, line.way.name): line for line in found}
    for gpus in scale.QUICK_GPUS:
        adamw, single, pairs = (of[gpus, name] for name in ("AdamW", "single draws", "pairs"))
        assert adamw.throughput > single.throughput > pairs.throughput > 0.45 * single.throughput
        assert adamw.step.sent == single.step.sent
        assert single.memory > adamw.memory
    figure = scale.figure(found)
    assert [line.get_label() for line in figure.axes[0].lines] == [way.name for way in scale.WAYS]
