"""One step of any method: forward and backward passes over a batch, what all ranks agree on, and the update."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.undecided import Fetched
from proxscore.methods import Method
from proxscore.methods.method import FIRST_BATCHES
from proxscore.training.data.micro_batches import Batch, joined_batch
from proxscore.training.loop.observer import Observer
from proxscore.training.run import Run


class Outcome:
    """What a step found, on its way from the device: whoever looks at it at once waits for all that the device has to do.

    Args:
        common: mean negative log-likelihood, whether the step is skipped, whether a report is due, and rows seen; of all ranks.
        size: rows of the whole batch.
        method: after the step.
    """

    def __init__(self, common: Tensor, size: int, method: Method) -> None:
        self._common, self._size, self._statistics = Fetched(common), size, method.statistics
        self._skipped, self._undecided = method.param_groups[0]["skipped"], method.undecided

    def read(self) -> tuple[dict[str, float], bool]:
        """What to record, and whether a report is due on any rank.

        Recorded are ``train/nll`` (nats per row, mean over the draws, all ranks' rows), ``train/skipped_steps`` so far, the
        method's statistics of this step, if it monitors them, and, if there are any, the number of rows that were left out as
        unreadable.
        """
        average, bad, due_anywhere, seen = self._common.values()
        skipped = self._skipped + (self._undecided and bad > 0)
        record = {"train/nll": average, "train/skipped_steps": float(skipped)}
        if unreadable := self._size - round(seen):
            record["data/skipped_rows"] = float(unreadable)
        return record | self._statistics, due_anywhere > 0


def train_step(
    run: Run,
    method: Method,
    micro_batches: list[Batch],
    size: int,
    step: int,
    due: float = 0.0,
    observer: Observer | None = None,
) -> Outcome:
    """Take one step: its gradient evaluations, one all-reduce of the loss, its update.

    Args:
        method: the optimizer of the run's module.
        micro_batches: this rank's part of a batch.
        size: rows of the whole batch.
        step: its number, from 0.
        due: 1 if this rank's clock says that it is time to report, else 0; -world if it had better wait. Clocks differ, and
            all ranks must report together: what they agree on travels with the loss.
        observer: of the time that the parts of the step take.
    """
    worker = run.worker
    observer = observer or Observer(worker.device)
    nll = torch.zeros((), device=worker.device)
    rows = sum(len(targets) for _, targets in micro_batches)
    method.hold_draw = True  # the step follows at once
    with observer.step():
        with observer.timed("forward_backward"):
            for _ in method.draws():
                # The draws of a pair see the same dropout masks: noise that they share cancels in their difference.
                torch.manual_seed(noise.key(run.config.seed, "dropout", step, worker.data_rank) >> 1)
                nll += forward_backward(run, micro_batches, size)
                observer.count(rows)
        with observer.timed("update"):
            mean_nll = nll / (size * method.evaluations_per_step)
            seen = rows * worker.data_world / worker.world  # draw groups see the same rows
            known = torch.tensor([due, seen], dtype=nll.dtype, device="cpu").to(nll.device, non_blocking=True)
            common = torch.stack([mean_nll, method.nonfinite.to(nll), *known])
            if worker.world > 1:
                dist.all_reduce(common)
            method.found_inf = common[1] > 0
            method.step()
    return Outcome(common, size, method)


def forward_backward(run: Run, micro_batches: list[Batch], size: int) -> Tensor:
    """Run forward and backward over this rank's part of a batch of so many rows, at the weights as they are.

    Returns:
        The sum of its negative log-likelihoods (nats).
    """
    nll = torch.zeros((), device=run.worker.device)
    for number, (inputs, targets) in enumerate(micro_batches):
        _synchronize_gradients(run, number == len(micro_batches) - 1)
        loss = _summed_nll(run, inputs, targets)
        # FSDP averages over ranks; the score is the global batch's mean.
        (loss * (run.worker.data_world / size)).backward()
        nll += loss.detach()
    return nll


def first_losses(run: Run) -> Iterator[Tensor]:
    """Yield average losses of the first batches, in training mode, for a method that looks at data before its first step."""
    assert run.data is not None
    run.module.train()
    for micro_batches, size in run.data.first(FIRST_BATCHES):
        _synchronize_gradients(run, True)
        yield _summed_nll(run, *joined_batch(micro_batches)) * (run.worker.data_world / size)


def _synchronize_gradients(run: Run, wanted: bool) -> None:
    """Let the next backward pass of a sharded module sum gradients over ranks, or keep them for the one after it."""
    if run.worker.mesh is not None:
        run.module.set_requires_gradient_sync(wanted)  # type: ignore[operator]


def _summed_nll(run: Run, inputs: Tensor, targets: Tensor) -> Tensor:
    """Sum the negative log-likelihoods of rows (nats); inputs beyond the targets are padding.

    Of no rows, a sum of zero with zero gradients, which FSDP reduces with the others'.
    """
    device = run.worker.device
    with torch.autocast(device.type, torch.bfloat16, enabled=run.autocast is not None):
        outputs = run.module(inputs.to(device, non_blocking=True))[: len(targets)]
    return run.task.likelihood.nll(outputs, targets.to(device, non_blocking=True)).sum()
