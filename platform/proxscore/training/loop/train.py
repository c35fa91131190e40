"""A method from its first step to its results: one network, or the members of an ensemble one after another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxscore.config import Config, MethodSection
from proxscore.inference import ProximalScore
from proxscore.posterior import Posterior, Samples
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.stacking import stack, wants_stacking
from proxscore.tasks import Task
from proxscore.training import evaluation
from proxscore.training.initial_network import InitialNetwork
from proxscore.training.loop import checkpoint, divergence, ensemble
from proxscore.training.loop.fit import Fitted, fit, report_of
from proxscore.training.worker import Worker


def train(
    config: Config,
    settings: MethodSection,
    epochs: float,
    task: Task,
    worker: Worker,
    built: InitialNetwork | None = None,
) -> dict[str, Any]:
    """Train one method on a task and evaluate it on the test split.

    Resumes from the worker's last checkpoint, if there is one.

    Args:
        settings: of the method.
        epochs: passes over the training data.
        worker: where this process runs.
        built: the network, where the start-up checks have built it.

    Returns:
        ``{"test": {variant: metrics}, "steps": ..., "seconds": ...}``; the last checkpoint holds posterior and figures.
    """
    if not settings.shards:
        worker.meshes = None  # the one worker's module stays whole
    return finish(fit_all(config, settings, epochs, task, worker, built))


@dataclass(frozen=True)
class Trained:
    """A trained method: what one fit left, or those of all members of an ensemble.

    Attributes:
        settings: of the method.
        fitted: the last (or only) one.
        posterior: of all together.
        members: fits.
        seconds: of all.
    """

    settings: MethodSection
    fitted: Fitted
    posterior: Posterior
    members: int
    seconds: float

    @property
    def evaluations(self) -> int:
        """Gradient evaluations of all fits."""
        return self.fitted.length.total_steps * self.fitted.method.evaluations_per_step * self.members


def fit_all(
    config: Config,
    settings: MethodSection,
    epochs: float,
    task: Task,
    worker: Worker,
    built: InitialNetwork | None = None,
) -> Trained:
    """Fit a method's network, or each member of an ensemble one after another; see :func:`proxscore.training.loop.fit.fit`."""
    if settings.member is settings:
        fitted = fit(config, settings, epochs, task, worker, built=built)
        return Trained(settings, fitted, fitted.posterior(), 1, fitted.seconds)
    members, count = ensemble.finished_members(worker), settings.member_count()
    while True:
        each = ensemble.member_config(config, len(members))
        own = ensemble.MemberWorker(worker, members, count)
        fitted = fit(each, settings.member, settings.member_epochs(epochs), task, own)
        members.append(ensemble.finished(fitted.posterior(), fitted.seconds, worker.mesh is not None))
        if len(members) == count:
            samples = Samples(members, ensemble.joint_verdict(members))
            return Trained(settings, fitted, samples, count, own.seconds + fitted.seconds)


def finish(trained: Trained) -> dict[str, Any]:
    """Evaluate what was trained, and write the last checkpoint, which holds results, figures and the posterior."""
    fitted, posterior, settings = trained.fitted, trained.posterior, trained.settings
    run, length, snapshot = fitted.run, fitted.length, fitted.snapshot
    posterior.description = evaluation.description(settings, run.task, length) | posterior.description
    results: dict[str, Any] = {}
    if wants_stacking(posterior):
        draws = run.config.evaluation.draws
        posterior, results["mixture_weights"] = stack(
            posterior, lambda candidate: evaluation.predict(run, candidate, "validation", draws)
        )
    with divergence.explained(length.total_steps, length.total_steps, settings, "method", run.module):
        tested, corrected = evaluation.evaluate_variants(run, posterior)
        shifted = evaluation.evaluate_shifts(run, posterior)
    validated = evaluation.validated(run, posterior)
    for name, each in corrected.items():
        validated |= each.saved if name in ("posterior", "point") else {}
    posterior.description |= {"validation": validated}
    kept = run.task.saved_as(posterior, run.module, run.config.evaluation.seed)
    statistics = evaluation.draw_statistics(run, posterior) if kept is posterior else None
    results |= {
        "validated": validated,
        "test": {name: metrics for name, (metrics, _) in tested.items()},
        "shifted": shifted,
        "steps": length.total_steps * trained.members,
        "evaluations": trained.evaluations,
        "seconds": trained.seconds,
        "parameters": sum(parameter.numel() for parameter in run.module.parameters()),
        VERDICT: posterior.description.get(VERDICT),
    }
    if isinstance(fitted.method, ProximalScore):
        results["fused"] = fitted.method.fused
    if corrected:
        results["corrected"] = {name: each.details for name, each in corrected.items()}
    if trained.members == 1 and fitted.lowest["epoch"] > 0:
        results["validation"] = fitted.lowest

    def write(folder: Path) -> None:
        checkpoint.save(folder, snapshot)
        checkpoint.save_posterior(folder / "posterior", kept, run.worker.rank, statistics)
        if run.worker.rank == 0:
            (folder / "figures").mkdir()
            for variant, (_, figures) in tested.items():
                for name, figure in figures().items():
                    figure.savefig(folder / "figures" / f"{name}_{variant}.png", dpi=150)

    run.worker.report(report_of(snapshot.progress, length, [], {}, checkpoint=True), write, wait=True)
    return results
