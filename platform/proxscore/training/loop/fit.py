"""The training loop: reads from top to bottom, and knows the inside of neither task nor method."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from proxscore.config import Config, ConfigError, MethodSection
from proxscore.inference import noise
from proxscore.methods import Method, RunLength, Setup, build_method
from proxscore.methods.ensemble import EnsembleConfig
from proxscore.methods.method import FIRST_BATCHES
from proxscore.posterior import Posterior, Samples
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.diagnostics import Losses
from proxscore.posterior.stacking import stack, wants_stacking
from proxscore.tasks import Task
from proxscore.tracking import say
from proxscore.training import evaluation
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.micro_batches import Batch, together
from proxscore.training.data.norm_rows import least_rows
from proxscore.training.data.streamed import RayTrainingData
from proxscore.training.loop import checkpoint, divergence, ensemble
from proxscore.training.loop.observer import Observer
from proxscore.training.sharding.materialize import materialize
from proxscore.training.sharding.parallelize import parallelize
from proxscore.training.worker import Worker
from proxscore.vision.ray_data import Share, StreamedRows

WORST = 1e9  # score of a checkpoint before any validation: finite, as Ray keeps scores in JSON


def train(config: Config, method_config: MethodSection, epochs: float, task: Task, context: Worker) -> dict[str, Any]:
    """Train one method on a task and evaluate it on the test split.

    Resumes from the context's last checkpoint, if there is one.

    Args:
        epochs: passes over the training data.
        context: where this process runs.

    Returns:
        ``{"test": {variant: metrics}, "steps": ..., "seconds": ...}``; the last checkpoint holds posterior and figures.
    """
    if not method_config.shards:
        context.meshes = None  # the one worker's module stays whole
    return finish(fit_all(config, method_config, epochs, task, context), config, method_config, task)


@dataclass
class Fitted:
    """What the steps of a method left.

    Attributes:
        seconds: of the steps and of what the method did after the last.
        lowest: validation ``nll`` where it was the lowest and the ``epoch`` of that, the NLL at the ``end``, and whether the
            run is ``stopped`` there (1 or 0).
    """

    module: nn.Module
    method: Method
    data: TrainingData | RayTrainingData
    horizon: RunLength
    snapshot: checkpoint.Snapshot
    seconds: float
    verdict: Verdict | None
    lowest: dict[str, float]

    def posterior(self) -> Posterior:
        """Of the module's weights, with what training found of its convergence."""
        description = {} if self.verdict is None else {VERDICT: self.verdict.as_json()}
        return Posterior.of(self.module, self.method, description)


@dataclass
class Trained:
    """What one fit left, or those of all members of an ensemble.

    Attributes:
        fitted: the last (or only) one.
        posterior: of all together.
        context: where the last one ran.
        members: fits.
        seconds: of all.
    """

    fitted: Fitted
    posterior: Posterior
    context: Worker
    members: int
    seconds: float


def fit_all(config: Config, method_config: MethodSection, epochs: float, task: Task, context: Worker) -> Trained:
    """:func:`fit` of a method, or of each member of an ensemble, one after another."""
    if not isinstance(method_config, EnsembleConfig):
        fitted = fit(config, method_config, epochs, task, context)
        return Trained(fitted, fitted.posterior(), context, 1, fitted.seconds)
    members = ensemble.resumed(context)
    while True:
        each = ensemble.member_config(config, len(members))
        place = ensemble.MemberWorker(context, members, method_config.members)
        fitted = fit(each, method_config.of, ensemble.member_epochs(method_config, epochs), task, place)
        members.append(ensemble.finished(fitted.posterior(), fitted.seconds))
        if len(members) == method_config.members:
            samples = Samples(members, ensemble.described(members))
            return Trained(fitted, samples, place, len(members), place.seconds + fitted.seconds)


def fit(
    config: Config,
    method_config: MethodSection,
    epochs: float,
    task: Task,
    context: Worker,
    *,
    until: float | None = None,
    start: Path | None = None,
) -> Fitted:
    """The steps of a method on a task, from the context's last checkpoint on, if there is one.

    Args:
        epochs: of the whole run: what schedules follow.
        until: epochs after which to end; none: at the end of the run.
        start: folder of a checkpoint, of any run, to begin with where the context has none.
    """
    torch.manual_seed(config.seed)
    module = initial_module(config, task, context)
    data = training_data(config, task, context, least_rows(module, task))
    horizon = horizon_of(data.steps_per_epoch, epochs, task)
    first = partial(first_losses, module, task, config, context, data)
    method = build_method(method_config, Setup(module, horizon, config.seed, first, context.draw_mesh))
    progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "score": WORST, "lanes": 0, "skipped_rows": 0, "start": None}
    progress |= {"best_step": 0, "best_score": WORST, "stopped": False}
    snapshot = checkpoint.Snapshot(module, method, progress)
    stop = horizon.total_steps if until is None else step_at(until / epochs, horizon)
    if not restore(snapshot, context) and start is not None:
        checkpoint.load(start, snapshot)
    validated = partial(evaluation.validated, module, task, config, context, method, data)
    losses: Losses | None = None
    validate_at = milestones(config.training.validate_every, horizon)
    save_at = milestones(config.training.checkpoint_every, horizon)
    records: list[dict[str, float]] = []
    reported = time.perf_counter()
    started = reported - progress["seconds"]
    observer = Observer(context.device, config.training.profile)
    section = section_of(method_config, config, context)
    asked = (
        config.tracking.interval == 0
    )  # a report after this step, on all ranks: then the method's statistics are taken
    for micro_batches, size in observer.timed_iterator(batches(data, progress, horizon, context, stop)):
        step = progress["step"]
        last = step + 1 == stop
        validate, save = step + 1 in validate_at or last, step + 1 in save_at and not last
        method.monitor, method.statistics = asked or validate or save, {}
        module.train()
        due = float(time.perf_counter() - reported >= config.tracking.interval)
        if context.busy():
            due = -float(context.world)
        told = partial(divergence.told, step + 1, horizon.total_steps, method_config, section, module)
        with told():
            record, wanted = train_step(module, method, task, micro_batches, size, config, context, step, due, observer)
        if "data/skipped_rows" in record:  # of the step; recorded is their number so far
            progress["skipped_rows"] += record["data/skipped_rows"]
            record["data/skipped_rows"] = progress["skipped_rows"]
        if step == 0:
            progress["start"] = record["train/nll"]
        records.append({"step": step + 1} | record)
        progress |= {"step": step + 1, "seconds": time.perf_counter() - started}
        asked, report = wanted, asked or validate or save
        if report:
            notice = context.leaving() and not last
            save |= notice
            metrics: dict[str, float] = {}
            if validate:
                with told():
                    metrics, seen = validated()
                if seen is not None:
                    losses = replace(seen, start=progress["start"])
                found = method.verdict(losses, horizon.data_size)
                if found is not None:
                    records[-1] |= {f"verdict/{name}": value for name, value in found.metrics.items()}
                nll = metrics.get("nll", math.inf)  # undefined where no target is observed
                progress["score"] = nll if math.isfinite(nll) else WORST
                if progress["score"] < progress["best_score"]:
                    progress |= {"best_step": step + 1, "best_score": progress["score"]}
                    save |= config.training.early_stopping and not last
            payload = report_of(progress, horizon, records, metrics, checkpoint=save)
            if config.training.early_stopping and not validate:
                payload["score"] = WORST  # that of an earlier state would push out its checkpoint
            payload["resources"] = observer.summary()
            with observer.timed("checkpoint" if save else "report"):
                context.report(payload, partial(checkpoint.save, snapshot=snapshot) if save else None, wait=notice)
            records, reported = [], time.perf_counter()
            asked = asked and config.tracking.interval == 0

    early = config.training.early_stopping and until is None and not progress["stopped"]
    if early and 0 < progress["best_step"] < stop:  # zero: no validation had a number
        go_back(snapshot, context)
        _, seen = validated()
        losses = None if seen is None else replace(seen, start=progress["start"])
    lowest = {"nll": progress["best_score"], "epoch": progress["best_step"] / horizon.steps_per_epoch}
    lowest |= {"end": progress["score"], "stopped": float(progress["stopped"])}
    ended = time.perf_counter()
    method.conclude(module, task.likelihood, partial(rows_of, data), horizon.data_size)
    seconds = progress["seconds"] + time.perf_counter() - ended
    return Fitted(module, method, data, horizon, snapshot, seconds, method.verdict(losses, horizon.data_size), lowest)


def section_of(method_config: MethodSection, config: Config, context: Worker) -> str:
    """Where the settings of a method that is fitted are in the configuration."""
    if method_config is config.baseline:
        return "baseline"
    return "method.of" if isinstance(context, ensemble.MemberWorker) else "method"


def rows_of(data: TrainingData | RayTrainingData) -> Iterator[Batch]:
    """One pass over this rank's training rows, in batches."""
    for micro_batches, _ in data.epoch(0):
        for inputs, targets in micro_batches:
            if len(targets):
                yield inputs[: len(targets)], targets  # without padding


def restore(snapshot: checkpoint.Snapshot, context: Worker) -> bool:
    """Go on from the newest checkpoint, or from an older one where its files are damaged.

    Returns:
        Whether there is a checkpoint.

    Raises:
        ConfigError: a checkpoint does not fit, or all of them are damaged.
    """
    damaged = []
    for held in context.checkpoints():
        with held as folder:
            problem = checkpoint.damage(folder)
            found = torch.tensor([problem is not None], dtype=torch.float32, device=context.device)
            if context.world > 1:
                dist.all_reduce(found)
            if not found:
                checkpoint.load(folder, snapshot)
                if context.rank == 0:
                    say(
                        f"going on from the checkpoint at step {snapshot.progress['step']} (processes: {context.world})"
                    )
                return True
        damaged.append(f"{folder}: {problem or 'damaged for another worker'}")
        if context.rank == 0:
            say(f"checkpoint {damaged[-1]}; going back to the one before")
    if damaged:
        raise ConfigError(f"every checkpoint of this run is damaged ({damaged[0]}): take another name")
    return False


def go_back(snapshot: checkpoint.Snapshot, context: Worker) -> None:
    """Take the state of the lowest validation NLL from its checkpoint; the run counts as one that has taken all its steps.

    Raises:
        ConfigError: its checkpoint is gone.
    """
    ended = dict(snapshot.progress)
    for held in context.checkpoints():
        with held as folder:
            if checkpoint.damage(folder) is None and checkpoint.step_of(folder) == ended["best_step"]:
                checkpoint.load(folder, snapshot)
                snapshot.progress |= ended | {"stopped": True}
                if context.rank == 0:
                    say(f"early stopping: back at step {ended['best_step']}, validation NLL {ended['best_score']:.4f}")
                return
    raise ConfigError(
        f"training.early_stopping: the checkpoint of step {ended['best_step']}, where the validation NLL was the lowest "
        f"({ended['best_score']:.4f}), is gone from the run's folder: take another name, or training.early_stopping=false"
    )


def initial_module(config: Config, task: Task, context: Worker) -> nn.Module:
    """The task's network on this process's device, sharded as configured, with its initial weights.

    Raises:
        ConfigError: ``training.meta_init`` for a network that cannot be initialised shard by shard.
    """
    if not config.training.meta_init:
        return parallelize(task.build_model().to(context.device), config.training, context.mesh)
    if config.task.weights is not None:
        raise ConfigError("training.meta_init makes initial weights and task.model.weights reads them: choose one")
    module = parallelize(task.build_model(torch.device("meta")), config.training, context.mesh)
    materialize(module, context.device, config.seed)
    return module


def train_step(
    module: nn.Module,
    method: Method,
    task: Task,
    micro_batches: list[Batch],
    size: int,
    config: Config,
    context: Worker,
    step: int,
    due: float = 0.0,
    observer: Observer | None = None,
) -> tuple[dict[str, float], bool]:
    """One step of any method: its gradient evaluations, one all-reduce of the loss, its update.

    Args:
        due: 1 if this rank's clock says that it is time to report, else 0; -world if it had better wait. Clocks differ, and
            all ranks must report together: what they agree on travels with the loss.
        observer: of the time that the parts of the step take.

    Returns:
        What to record: ``train/nll`` (nats per row, mean over the draws, all ranks' rows), the method's statistics of this
        step, if it monitors them, and, if there are any, the number of rows that were left out as unreadable; and whether a
        report is due on any rank.
    """
    observer = observer or Observer(context.device)
    nll = torch.zeros((), device=context.device)
    rows = sum(len(targets) for _, targets in micro_batches)
    with observer.step():
        with observer.timed("forward_backward"):
            for _ in method.draws():
                # The draws of a pair see the same dropout masks: noise that they share cancels in their difference.
                torch.manual_seed(noise.key(config.seed, "dropout", step, context.data_rank) >> 1)
                nll += score(module, task, micro_batches, size, config, context)
                observer.count(rows)
        with observer.timed("update"):
            mean_nll = nll / (size * method.evaluations_per_step)
            seen = rows * context.data_world / context.world  # draw groups see the same rows
            common = torch.stack([mean_nll, method.nonfinite.to(nll), *nll.new_tensor([due, seen])])
            if context.world > 1:
                dist.all_reduce(common)
            method.found_inf = common[1] > 0
            method.step()
    average, _, due_anywhere, seen = common.tolist()
    record = {"train/nll": average, "train/skipped_steps": float(method.param_groups[0]["skipped"])}
    if unreadable := size - round(seen):
        record["data/skipped_rows"] = float(unreadable)
    return record | method.statistics, due_anywhere > 0


def score(
    module: nn.Module, task: Task, micro_batches: list[Batch], size: int, config: Config, context: Worker
) -> torch.Tensor:
    """Forward and backward passes over this rank's part of a batch, at the weights as they are.

    Returns:
        The sum of its negative log-likelihoods (nats).
    """
    nll = torch.zeros((), device=context.device)
    low = config.training.precision == "bf16" and context.mesh is None  # a sharded module casts by FSDP's policy
    for number, (inputs, targets) in enumerate(micro_batches):
        if context.mesh is not None:
            module.set_requires_gradient_sync(number == len(micro_batches) - 1)  # type: ignore[operator]
        with torch.autocast(context.device.type, torch.bfloat16, enabled=low):
            outputs = module(inputs.to(context.device, non_blocking=True))[: len(targets)]  # beyond: padding
        # Of no rows, a sum of zero with zero gradients, which FSDP reduces with the others'.
        loss = task.likelihood.nll(outputs, targets.to(context.device, non_blocking=True)).sum()
        # FSDP averages over ranks; the score is the global batch's mean.
        (loss * (context.data_world / size)).backward()
        nll += loss.detach()
    return nll


def first_losses(
    module: nn.Module, task: Task, config: Config, context: Worker, data: TrainingData | RayTrainingData
) -> Iterator[torch.Tensor]:
    """Average losses of this rank's part of the first batches, in training mode, for a method that looks at data first."""
    module.train()
    low = config.training.precision == "bf16" and context.mesh is None
    for micro_batches, size in data.first(FIRST_BATCHES):
        if context.mesh is not None:
            module.set_requires_gradient_sync(True)  # type: ignore[operator]
        inputs, targets = together(micro_batches)
        with torch.autocast(context.device.type, torch.bfloat16, enabled=low):
            outputs = module(inputs.to(context.device, non_blocking=True))[: len(targets)]
        loss = task.likelihood.nll(outputs, targets.to(context.device, non_blocking=True)).sum()
        yield loss * (context.data_world / size)


def training_data(config: Config, task: Task, context: Worker, least: int = 1) -> TrainingData | RayTrainingData:
    """The training batches of this rank: from Ray Data where the cluster streams them, else from the task's data set.

    Args:
        least: inputs of a micro-batch; see :func:`proxscore.training.data.norm_rows.least_rows`.
    """
    training = config.training
    if config.task.data.streamed and context.on_ray:
        stream = StreamedRows(task.data.train, Share.of(context.world, training.cpus_per_worker))
        place = context.data_rank, context.data_world
        return RayTrainingData(stream, training.batch_size, *place, config.seed, training.accumulate, least)
    return TrainingData(
        task.data.train,
        training.batch_size,
        context.data_rank,
        context.data_world,
        config.seed,
        training.accumulate,
        training.loader_processes,
        least,
    )


def horizon_of(steps_per_epoch: int, epochs: float, task: Task) -> RunLength:
    """Length of a run of so many epochs."""
    return RunLength(max(round(epochs * steps_per_epoch), 1), steps_per_epoch, len(task.data.train))


def step_at(fraction: float, horizon: RunLength) -> int:
    """The step at which a fraction of the run is over: where a schedule's multipliers change."""
    return min(max(math.ceil(fraction * horizon.total_steps - 1e-6), 1), horizon.total_steps)


def milestones(epochs: float, horizon: RunLength) -> range:
    """Steps that end every so many epochs."""
    interval = max(round(epochs * horizon.steps_per_epoch), 1)
    return range(interval, horizon.total_steps + 1, interval)


def batches(
    data: TrainingData | RayTrainingData, progress: dict[str, Any], horizon: RunLength, context: Worker, stop: int
) -> Iterator[tuple[list[Batch], int]]:
    """Training batches from the progress's step on to the step ``stop``, epoch by epoch.

    Writes the number of ranks that an epoch is begun with into ``progress["lanes"]``: its order depends on it to its end.
    """
    step = progress["step"]
    while step < stop:
        epoch, start = divmod(step, horizon.steps_per_epoch)
        if start == 0:
            progress["lanes"] = context.data_world
        for batch in data.epoch(epoch, start, progress["lanes"]):
            yield batch
            step += 1
            if step == stop:
                return


def report_of(
    progress: dict[str, Any],
    horizon: RunLength,
    records: list[dict[str, float]],
    metrics: dict[str, float],
    *,
    checkpoint: bool,
) -> dict[str, Any]:
    """What a rank tells the driver."""
    return {
        "step": progress["step"],
        "total_steps": horizon.total_steps,
        "epoch": progress["step"] / horizon.steps_per_epoch,
        "seconds": progress["seconds"],
        "records": records,
        "resources": {},
        "checkpoint": checkpoint,
        "score": progress["score"],  # the last validation NLL: what checkpoints are kept by
        "metrics": {f"validation/{name}": value for name, value in metrics.items()},
    }


def finish(trained: Trained, config: Config, method_config: MethodSection, task: Task) -> dict[str, Any]:
    """Test metrics and figures of every variant, the posterior, and the last checkpoint, which holds them all."""
    fitted, posterior, context = trained.fitted, trained.posterior, trained.context
    module, method, horizon, snapshot = fitted.module, fitted.method, fitted.horizon, fitted.snapshot
    posterior.description = evaluation.description(config, method_config, task, horizon) | posterior.description
    results: dict[str, Any] = {}
    if wants_stacking(posterior):

        def predicted(candidate: Posterior) -> Any:
            draws, data = config.evaluation.draws, fitted.data
            return evaluation.predictive_of(candidate, module, task, config, context, "validation", draws, data)

        posterior, results["mixture_weights"] = stack(posterior, predicted)
    with divergence.told(horizon.total_steps, horizon.total_steps, method_config, "method", module):
        tested = evaluation.tested(posterior, module, task, config, context, fitted.data)
        shifted = evaluation.shifted(posterior, module, task, config, context, fitted.data)
    results |= {
        "test": {name: metrics for name, (metrics, _) in tested.items()},
        "shifted": shifted,
        "steps": horizon.total_steps * trained.members,
        "evaluations": horizon.total_steps * method.evaluations_per_step * trained.members,
        "seconds": trained.seconds,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        VERDICT: posterior.description.get(VERDICT),
    }
    if trained.members == 1 and fitted.lowest["epoch"] > 0:
        results["validation"] = fitted.lowest
    gathered = posterior.gather()

    def write(folder: Path) -> None:
        checkpoint.save(folder, snapshot)
        if context.rank == 0:
            gathered.save(folder / "posterior")
            (folder / "figures").mkdir()
            for variant, (_, figures) in tested.items():
                for name, figure in figures().items():
                    figure.savefig(folder / "figures" / f"{name}_{variant}.png", dpi=150)

    context.report(report_of(snapshot.progress, horizon, [], {}, checkpoint=True), write, wait=True)
    return results
