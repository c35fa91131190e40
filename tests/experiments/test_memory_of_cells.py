"""The memory of a comparison's cell, in a process that has had others before."""

from __future__ import annotations

import pytest
import torch

from proxscore.experiments.comparison.cell import PeakMemory
from proxscore.training.loop.observer import forgets_peak

CPU = torch.device("cpu")


@pytest.mark.skipif(not forgets_peak(), reason="this system cannot forget a peak")
def test_a_cell_is_counted_as_if_it_were_the_first_of_its_process() -> None:
    """Within 20 MB: 200 MB that the first one takes, and leaves behind, are not the second one's."""
    cell = PeakMemory(CPU)
    base = cell.bytes()
    left = torch.ones(50_000_000)
    assert cell.bytes() - base == pytest.approx(200e6, abs=20e6)
    cell = PeakMemory(CPU)
    assert cell.bytes() == pytest.approx(base, abs=20e6)
    own = torch.ones(25_000_000)
    del own
    assert cell.bytes() - base == pytest.approx(100e6, abs=20e6)
    del left
