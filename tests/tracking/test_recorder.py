"""From what ranks report to metric points: shards are combined rightly, and every step is recorded once."""

from __future__ import annotations

import gc
import math
import pickle
import threading
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from proxscore.inference import Categorical, ProximalScore
from proxscore.tracking import Recorder, TrackedRun
from proxscore.tracking.recorder import combine


def statistics(weights: torch.Tensor) -> dict[str, float]:
    """What the optimizer says of its shards after a step on these rows of a linear classifier."""
    layer = nn.Linear(5, len(weights), bias=False)
    with torch.no_grad():
        layer.weight.copy_(weights)
    optimizer = ProximalScore(layer.named_parameters(), 100, metric="posterior", initial_precision=0.1, paired=True)
    optimizer.monitor = True
    with torch.no_grad():  # precisions that differ, so that means and extremes do
        for _, _, state in optimizer.sampled():
            state["precision"].mul_(1 + weights.abs())
    for _ in optimizer.draws():
        Categorical().nll(layer(torch.ones(4, 5)), torch.zeros(4, dtype=torch.long)).mean().backward()
    optimizer.step()
    return optimizer.statistics


def test_the_statistics_of_shards_combine_to_those_of_all_their_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    shards = [statistics(torch.randn(rows, 5, generator=generator)) for rows in (2, 7)]
    merged = combine([{"step": 3, "train/nll": 1.5} | shard for shard in shards])
    assert [shard["count"] for shard in shards] == [10, 35]
    for name in ("log_precision", "ratio"):
        mean, low, high = ([shard[f"{name}_{kind}"] for shard in shards] for kind in ("mean", "min", "max"))
        assert mean[0] != mean[1]
        assert merged[f"posterior/{name}_mean"] == pytest.approx((10 * mean[0] + 35 * mean[1]) / 45)
        assert merged[f"posterior/{name}_min"] == min(low)
        assert merged[f"posterior/{name}_max"] == max(high)
    assert merged["posterior/kappa_mean"] == shards[0]["kappa_mean"]
    assert merged["nll/train"] == 1.5
    assert merged["step"] == 3
    assert not {key for key in merged if "count" in key}


def test_a_rank_without_sampled_elements_changes_nothing() -> None:
    shard = {"count": 4, "log_precision_mean": 2.0, "log_precision_min": 1.0, "log_precision_max": 3.0}
    assert combine([shard, {"count": 0}]) == combine([shard])
    assert combine([{"count": 0}, shard]) == combine([shard])


def test_a_proximal_weight_that_holds_the_iterate_still_is_left_out_and_a_loss_that_is_no_number_is_not() -> None:
    merged = combine([{"train/nll": math.nan, "kappa_mean": math.inf, "kappa_precision": 2.0}])
    assert merged.keys() == {"nll/train", "posterior/kappa_precision"}


RESOURCES = {"seconds_data": 0.1, "seconds_forward_backward": 0.3, "rows_per_second": 50.0, "peak_memory_gb": 1.5}


def payload(steps: range, validation: float | None = None, rank: int = 0) -> dict[str, Any]:
    metrics = {} if validation is None else {"validation/nll": validation, "validation/ece": 0.1}
    records = [{"step": step, "train/nll": float(step), "count": 1, "ratio_max": float(rank)} for step in steps]
    last = steps[-1]
    return {
        "step": last,
        "total_steps": 10,
        "epoch": last / 4,
        "seconds": 1.0,
        "records": records,
        "metrics": metrics,
        "resources": RESOURCES,
        "checkpoint": True,  # so that a call returns when its points are recorded
    }


def points(run: TrackedRun, key: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in MlflowClient(run.uri).get_metric_history(run.run_id, key)]


def test_steps_that_a_resumed_run_repeats_are_recorded_once(uri: str) -> None:
    run = TrackedRun(uri, "recorder", "a run")
    lines: list[str] = []
    recorder = Recorder(run.uri, run.run_id, "a run", lines.append)
    for steps, validation in ((range(1, 4), None), (range(4, 7), 0.5)):
        recorder([payload(steps, validation, rank) for rank in range(2)])
    # Within the same driver: workers were lost, and the run repeats from its checkpoint at step 4.
    recorder([payload(range(5, 7), 0.5)])
    # By another driver, which knows the database only.
    other = Recorder(run.uri, run.run_id, "a run", lines.append)
    other([payload(range(3, 8), None)])
    other([payload(range(8, 10), 0.4)])
    assert points(run, "nll/train") == [(step, float(step)) for step in range(1, 10)]
    assert points(run, "posterior/ratio_max")[:6] == [(step, 1.0) for step in range(1, 7)]
    assert points(run, "nll/validation") == [(6, 0.5), (9, 0.4)]
    assert points(run, "epoch") == [(6, 1.5), (9, 2.25)]
    # What a report says of the time since the last one stands at its step: of both ranks, and once.
    assert points(run, "train/rows_per_second") == [(3, 100.0), (6, 100.0), (7, 50.0), (9, 50.0)]
    assert points(run, "system/rank_1/rows_per_second") == [(3, 50.0), (6, 50.0)]
    assert points(run, "time/data") == [(step, 0.1) for step in (3, 6, 7, 9)]


def test_the_progress_says_how_far_how_fast_and_how_good(uri: str) -> None:
    run = TrackedRun(uri, "recorder", "a run")
    lines: list[str] = []
    recorder = Recorder(run.uri, run.run_id, "digits-adamw", lines.append)
    recorder([payload(range(1, 3), 0.5) | {"seconds": 4.0}])
    assert lines == [
        "digits-adamw · step 2/10 (epoch 0.5) · 16 s left · NLL 2.000 · validation NLL 0.500 ECE 0.100 · 0.5 steps/s"
        " · data 25% forward+backward 75% · 1.5 GB"
    ]


def test_a_recorder_travels_to_the_process_that_uses_it(uri: str) -> None:
    run = TrackedRun(uri, "recorder", "a run")
    travelled = pickle.loads(pickle.dumps(Recorder(run.uri, run.run_id, "a run")))
    travelled([payload(range(1, 3))])
    assert points(run, "nll/train") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize(("waiting", "said"), [(0.5, True), (0.1, False)])
def test_a_run_that_waited_for_its_input_says_so_at_its_end(uri: str, waiting: float, said: bool) -> None:
    """Of what happens once, before the first report, nothing counts."""
    run = TrackedRun(uri, "recorder", "a run")
    lines: list[str] = []
    recorder = Recorder(run.uri, run.run_id, "a run", lines.append)
    for step, seconds in ((1, 100.0), (5, waiting), (10, waiting)):
        one = payload(range(step, step + 1)) | {"total_steps": 10}
        one["resources"] = {
            "seconds_data": seconds,
            "seconds_update": 0.5,
            "rows_per_second": 1.0,
            "peak_memory_gb": 0.1,
        }
        recorder([one])
    recorder([one | {"records": [], "resources": {}, "checkpoint": True}])  # of the last checkpoint, at the same step
    found = [line for line in lines if "waiting for input" in line]
    assert len(found) == said
    if said:
        assert "50% of the steps' time" in found[0]
        assert "training.loader_processes" in found[0]


def test_a_recorder_that_is_closed_and_a_run_that_is_over_leave_no_thread(uri: str) -> None:
    """A process may have hundreds of runs, one after the other."""

    def record() -> str:
        tracked = TrackedRun(uri, "threads", "run")
        recorder = Recorder(uri, tracked.run_id, "run", show=None)
        steps = [{"step": step, "train/nll": 1.0} for step in (1, 2)]
        payload = {"step": 2, "total_steps": 9, "epoch": 1.0, "seconds": 1.0, "records": steps, "resources": {}}
        with tracked.running():
            recorder([payload | {"checkpoint": False, "score": 1e9, "metrics": {}}])
            recorder.close()
        return tracked.run_id

    before = set(threading.enumerate())
    run_id = record()
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=20)
        assert not thread.is_alive(), thread.name
    points = MlflowClient(uri).get_metric_history(run_id, "nll/train")
    assert [point.step for point in points] == [1, 2]
