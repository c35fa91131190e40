"""The same metrics when the rows lie on two ranks (gloo, on this machine)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from proxscore.calibration import ClassificationMetrics
from proxscore.config import ConfigError

ROWS, CLASSES = 90, 4


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_probabilities = torch.randn(ROWS, CLASSES, generator=generator).log_softmax(1)
    return (
        log_probabilities,
        torch.rand(ROWS, generator=generator),
        torch.randint(CLASSES, (ROWS,), generator=generator),
    )


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = {}
    # Unequal numbers of rows and of batches; then a rank without any row.
    for name, batches in {"unequal": [[(0, 20)], [(20, 60), (60, 90)]], "empty": [[(0, 90)], []]}.items():
        metrics = ClassificationMetrics(CLASSES)
        for start, stop in batches[rank]:
            metrics.update(*(values[start:stop] for values in data()))
        with pytest.raises(ConfigError, match="call compute"):
            metrics.reliability_diagram()
        values = metrics.compute()
        if rank == 0:  # draws after compute without the other rank: no collective, or this would hang
            metrics.reliability_diagram()
        results[name] = values, metrics.confidences, metrics.correct
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_with_unequal_rows_agree_with_one_process(tmp_path: Path) -> None:
    alone = ClassificationMetrics(CLASSES)
    alone.update(*data())
    expected = alone.compute()
    # The server imports once what both ranks need; fresh interpreters would each take the seconds of the imports.
    mp.start_processes(worker, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        for values, confidences, correct in torch.load(tmp_path / f"{rank}.pt").values():
            assert values == pytest.approx(expected, abs=1e-12)
            torch.testing.assert_close(confidences, alone.confidences, rtol=0, atol=0)
            assert torch.equal(correct, alone.correct)
