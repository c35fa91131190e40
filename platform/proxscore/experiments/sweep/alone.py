"""A trial of one worker, in the process that Ray Tune has for it: no other process is started.

The process has had other trials before. So what they left is let go of, and the peak of its memory is counted anew.
"""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from typing import Any, Protocol

import ray
import torch
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proxscore import garbage
from proxscore.config import Config
from proxscore.experiments import runner
from proxscore.tracking import Recorder
from proxscore.training.local.worker import LocalWorker
from proxscore.training.worker import Write


class Told(Protocol):
    """What Ray Tune is told of a report; none: nothing."""

    def of(self, report: dict[str, Any]) -> dict[str, float] | None: ...


def run(
    measure: runner.Measure,
    config: Config,
    name: str,
    recorder: Recorder,
    settings: dict[str, Any],
    progress: Told,
    home: str,
) -> dict[str, Any]:
    """Run a trial here, resuming the one of this name if there is one.

    Args:
        measure, config, name, recorder, settings: as of :func:`proxscore.experiments.runner.run`.
        progress: of reports, for Ray Tune.
        home: id of the sweep's node.

    Raises:
        ConfigError: the GPU has too little memory.
        SystemExit: Ray Tune's scheduler has stopped the trial.
    """
    from proxscore.training.loop.observer import forget_peak
    from proxscore.training.preflight import checks

    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    garbage.give_back()
    torch.cuda.empty_cache()  # nothing, where there is no GPU
    forget_peak(device)
    task = config.task.build(verify=False)
    checks.check_gpu(config, config.method, task, device)
    with runner.local_worker(config, name, at_home(recorder, home), TuneWorker, device) as worker:
        worker.progress = progress
        return measure(config, task, worker, settings)


class TuneWorker(LocalWorker):
    """The worker that is Ray Tune's process of a trial."""

    progress: Told

    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        """Report as any other, and tell Ray Tune: its scheduler may end the trial here, behind its checkpoint."""
        super().report(payload, write, wait=wait)
        values = self.progress.of(payload)
        if values is not None:
            self.complete()
            tune.report(values)


def at_home(recorder: Recorder, home: str) -> runner.Sink:
    """The recorder on the sweep's node: a database may lie there, or be reached from there alone."""
    if ray.get_runtime_context().get_node_id() == home:
        return recorder
    there = ray.remote(num_cpus=0)(Recorder).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(home, soft=False)
    )
    held = there.remote(recorder.uri, recorder.run_id, recorder.label, None, kept=recorder.kept)

    def sink(payloads: list[dict[str, Any]]) -> None:
        ray.get(held.__call__.remote(payloads))

    return sink
