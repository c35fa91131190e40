"""The same forecast metrics when the windows lie on two ranks (gloo, on this machine)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from proxscore.calibration import ForecastMetrics
from proxscore.config import ConfigError

S, B, H, N = 39, 20, 3, 4


def metrics_of(start: int, stop: int) -> ForecastMetrics:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    samples, rows = uniform(S, B, H), (uniform(B, H), uniform(B, H) < 0.8)
    log_density, season_error = -uniform(B, H), uniform(B)
    # 40 ranks in 10 bins: the bin of a step does not depend on the randomisation, which differs between ranks.
    metrics = ForecastMetrics(H, N, bins=10)
    for i in range(start, stop, 4):
        keep = slice(i, min(i + 4, stop))
        metrics.update(
            samples[:, keep],
            *(values[keep] for values in rows),
            season_error=season_error[keep],
            series=torch.arange(B)[keep] % N,
            log_density=log_density[keep],
        )
    return metrics


def results(metrics: ForecastMetrics) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor], Tensor]:
    return metrics.compute(), metrics.by_horizon(), metrics.by_series(), metrics.pit_counts


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = []
    # Unequal numbers of windows and of batches; then a rank without any.
    for shares in (((0, 3), (3, B)), ((0, B), (B, B))):
        metrics = metrics_of(*shares[rank])
        with pytest.raises(ConfigError, match="call compute"):
            metrics.by_horizon()
        metrics.compute()
        found.append(results(metrics))  # a second time: the first left the sums of this rank as they were
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_with_unequal_windows_agree_with_one_process(tmp_path: Path) -> None:
    expected = results(metrics_of(0, B))
    # The server imports once what both ranks need; fresh interpreters would each take the seconds of the imports.
    mp.start_processes(worker, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        for values, by_horizon, by_series, counts in torch.load(tmp_path / f"{rank}.pt"):
            assert values == pytest.approx(expected[0], abs=1e-12)
            torch.testing.assert_close(by_horizon, expected[1], equal_nan=True)
            torch.testing.assert_close(by_series, expected[2], equal_nan=True)
            assert counts.tolist() == expected[3].tolist()
