"""The peak of a process's memory, which a process that trains one network after another counts anew for each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from proxscore.training.loop import observer

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot forget it")
def test_a_peak_is_forgotten() -> None:
    held = torch.ones(50_000_000)
    high = observer.peak_memory(CPU)
    del held
    observer.forget_peak(CPU)
    assert observer.peak_memory(CPU) < high - 1e8


def test_a_trial_begins_where_peaks_cannot_be_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "PEAK", tmp_path / "missing" / "clear_refs")
    observer.forget_peak(CPU)
    assert observer.peak_memory(CPU) > 0
