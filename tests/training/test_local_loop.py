"""The loop in one plain process: resume, bad batches, checkpoints, and switches that must not change what is learnt."""

from __future__ import annotations

import math
import resource
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, DivergedError
from proxscore.methods import RunLength
from proxscore.posterior import Posterior
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.fit import checkpoint
from proxscore.training.loop.run_length import milestones
from proxscore.training.loop.train import train
from proxscore.vision.image_task import ImageTask
from proxscore.vision.images import ImageDataset

VIT = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.1},
}
RESNET = {"name": "resnet10t", "kwargs": {"channels": [8, 8, 8, 8], "stem_width": 8}}  # BatchNorm: its statistics count
PAIRS = {"kind": "proximal_score", "paired": True, "initial_noise": 0.02}  # nothing is measured at the start
METHODS: dict[str, dict[str, Any]] = {
    "proximal_score": {"kind": "proximal_score"},
    "adamw": {"kind": "adamw", "lr": 5e-3},
}
# A head and a block with families of their own, in closed form and by the gradient solver.
FAMILIES: dict[str, Any] = {
    "kind": "proximal_score",
    "families": {"head.*": {"kind": "full_covariance"}, "blocks.0.*": {"kind": "low_rank", "rank": 2}},
}
STEPS_PER_EPOCH = 4
Records = list[dict[str, float]]


def tree(method: str = "proximal_score", model: dict[str, Any] = VIT, **training: Any) -> Config:
    """A run of three epochs of four steps, whose last batch is smaller: 120, 120, 120, 40 of 400 rows."""
    return configuration.parse(
        {
            "name": "small",
            "task": {"model": model, "data": {"kind": "digits", "limit": 400}},
            "method": (METHODS | {"families": FAMILIES, "pairs": PAIRS})[method],
            "training": {"epochs": 3, "batch_size": 120, "workers": 0, "device": "cpu"} | training,
            "evaluation": {"draws": 2, "validation_draws": 1},
            "tracking": {"interval": 0},
        }
    )


class Run:
    """One run in a folder; ``go`` starts or resumes it, and dies at a step if asked."""

    def __init__(self, folder: Path, config: Config, task: ImageTask | None = None) -> None:
        self.folder, self.config, self.task = folder, config, task or ImageTask(config.task)
        self.records: Records = []
        self.validation: list[dict[str, float]] = []
        self.watch: Callable[[dict[str, Any]], None] = lambda payload: None

    def go(self, die_at: int | None = None) -> dict[str, Any]:
        def sink(payloads: list[dict[str, Any]]) -> None:
            (payload,) = payloads
            self.watch(payload)
            self.records += payload["records"]
            self.validation += [payload["metrics"]] if payload["metrics"] else []
            if payload["step"] == die_at:
                raise InterruptedError

        with LocalWorker(self.folder, torch.device("cpu"), sink, self.config.training.keep_checkpoints) as worker:
            return train(self.config, self.config.method, self.config.training.epochs, self.task, worker)

    @property
    def nll(self) -> list[float]:
        return [record["train/nll"] for record in self.records]

    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").iterdir())

    def posterior(self) -> Posterior:
        return Posterior.load(self.checkpoints()[-1] / "posterior")


@pytest.mark.parametrize(("method", "model"), [*((m, VIT) for m in (*METHODS, "families")), ("proximal_score", RESNET)])
def test_a_run_that_died_and_was_resumed_is_bit_for_bit_the_run_that_did_not(
    method: str, model: dict[str, Any], tmp_path: Path
) -> None:
    config = tree(method, model)
    whole, broken = Run(tmp_path / "whole", config), Run(tmp_path / "broken", config)
    results = whole.go()
    with pytest.raises(InterruptedError):
        broken.go(die_at=7)  # in the second epoch, three steps after the checkpoint of the first
    died_with = len(broken.records)
    resumed = broken.go()
    assert resumed["test"] == results["test"]
    assert resumed["steps"] == results["steps"] == 3 * STEPS_PER_EPOCH

    again = broken.records[died_with:]
    assert [record["step"] for record in again] == list(range(5, 13))  # from the checkpoint at step 4 on, not from 0
    assert [record["train/nll"] for record in again] == whole.nll[4:]
    ours, theirs = broken.posterior(), whole.posterior()
    assert ours.mean.keys() == theirs.mean.keys()
    assert ours.precision.keys() == theirs.precision.keys()
    assert bool(ours.precision) == (method != "adamw")
    assert [joint.names[0] for joint in ours.joint] == (
        ["blocks.0.norm1.weight", "head.weight"] if method == "families" else []
    )
    for one, other in zip(ours.joint, theirs.joint, strict=True):
        for name, tensor in one.state.items():
            assert torch.equal(tensor, other.state[name]), name
    assert bool(ours.buffers) == (model is RESNET)
    for group in ("mean", "precision", "buffers"):
        for name, tensor in getattr(ours, group).items():
            assert torch.equal(tensor, getattr(theirs, group)[name]), name


def test_a_finished_run_started_again_trains_nothing_and_reports_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path, tree(epochs=1))
    first, trained = run.go(), len(run.records)
    second = run.go()
    assert second["test"] == first["test"]
    assert len(run.records) == trained


@pytest.mark.parametrize("keep", [1, 3])
def test_the_best_checkpoints_and_the_newest_are_kept_and_only_that_holds_posterior_and_figures(
    keep: int, tmp_path: Path
) -> None:
    """Validated at steps 4, 8 and 12, saved at every second: a checkpoint's score is the last one known."""
    run = Run(tmp_path, tree(keep_checkpoints=keep, checkpoint_every=0.5))
    run.go()
    known = [1e9, *(metrics["validation/nll"] for metrics in run.validation)]
    scores = {step: known[step // 4] for step in range(2, 13, 2)}
    best = sorted(scores, key=lambda step: (scores[step], -step))[:keep]
    assert [path.name for path in run.checkpoints()] == [f"step-{step:09d}" for step in sorted({*best, 12})]
    for path in run.checkpoints():
        assert (path / "posterior").exists() == (path / "figures").exists() == (path.name == "step-000000012")
    assert {f.name for f in (run.checkpoints()[-1] / "figures").iterdir()} == {
        "reliability_posterior.png",
        "reliability_mean.png",
    }


def cut_short(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_file(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def lose_the_metadata(folder: Path) -> None:
    (folder / "checkpoint.json").write_bytes((folder / "checkpoint.json").read_bytes()[:50])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, " bytes) cannot be read"),
        (lose_a_file, "is missing; going back"),
        (lose_the_metadata, "cannot be read"),
    ],
)
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(
    damage: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = Run(tmp_path / "whole", tree()), Run(tmp_path / "broken", tree())
    results = whole.go()
    with pytest.raises(InterruptedError):
        broken.go(die_at=11)
    damage(broken.checkpoints()[-1])
    died_with = len(broken.records)
    assert broken.go()["test"] == results["test"]
    assert [record["step"] for record in broken.records[died_with:]] == list(range(5, 13))
    output = capsys.readouterr().out
    assert "step-000000008" in output
    assert said in output


def test_a_run_without_a_sound_checkpoint_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, tree())
    with pytest.raises(InterruptedError):
        run.go(die_at=11)
    for folder in run.checkpoints():
        cut_short(folder)
    with pytest.raises(
        ConfigError, match=r"every checkpoint of this run is damaged \(.*bytes\).*\): take another name"
    ):
        run.go()


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_step_and_the_last_one_remains(
    tmp_path: Path,
) -> None:
    """The operating system refuses to write more than some kilobytes into a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = Run(tmp_path, tree())

    def fill(payload: dict[str, Any]) -> None:
        if payload["step"] == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    run.watch = fill
    try:
        with pytest.raises(RuntimeError, match=r"^the checkpoint at step 8 cannot be written: .*File too large"):
            run.go()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in run.checkpoints()] == ["step-000000004"]
    run.watch = lambda payload: None
    trained = len(run.records)
    run.go()
    assert [record["step"] for record in run.records[trained:]] == list(range(5, 13))


@pytest.mark.parametrize(
    "other",
    [
        tree(model={**VIT, "kwargs": {**VIT["kwargs"], "embed_dim": 24}}),
        tree(model={**VIT, "kwargs": {**VIT["kwargs"], "depth": 3}}),
        tree("adamw"),
    ],
    ids=["width", "depth", "method"],
)
def test_a_checkpoint_of_another_architecture_or_method_is_refused_in_one_line(other: Config, tmp_path: Path) -> None:
    Run(tmp_path, tree(epochs=1)).go()
    with pytest.raises(
        (ConfigError, DivergedError), match=r"checkpoint .*step-000000004 does not fit this model and method"
    ) as refusal:
        Run(tmp_path, other).go()
    assert "\n" not in str(refusal.value)


def test_an_interrupt_while_a_checkpoint_is_written_is_an_interrupt(tmp_path: Path) -> None:
    class Interrupted(checkpoint.Snapshot):
        def state_dict(self) -> dict[str, Any]:
            raise KeyboardInterrupt

    module = torch.nn.Linear(1, 1)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, Interrupted(module, torch.optim.SGD(module.parameters()), {}))


class NoNumbers(Dataset[tuple[Tensor, int]]):
    """The rows of another data set, none of them a number."""

    def __init__(self, rows: ImageDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = self.rows.__getitems__(indices)
        return images * math.nan, labels


class OneBadRow(Dataset[tuple[Tensor, int]]):
    """The rows of another data set, one of them not a number."""

    def __init__(self, rows: ImageDataset, bad: int) -> None:
        self.rows, self.bad, self.labels = rows, bad, rows.labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = self.rows.__getitems__(indices)
        images[torch.tensor(indices) == self.bad] = math.nan
        return images, labels


@pytest.mark.parametrize("method", METHODS)
def test_the_step_of_a_batch_that_is_not_finite_is_skipped_counted_and_recorded(method: str, tmp_path: Path) -> None:
    task = ImageTask(tree().task)
    task.data = replace(task.data, train=OneBadRow(task.data.train, bad=17))  # type: ignore[arg-type]
    run = Run(tmp_path, tree(method), task)
    results = run.go()
    bad = [math.isnan(nll) for nll in run.nll]
    assert len(bad) == 12
    assert [sum(bad[first : first + STEPS_PER_EPOCH]) for first in (0, 4, 8)] == [
        1,
        1,
        1,
    ]  # the row comes once an epoch
    counted = [record["train/skipped_steps"] for record in run.records]
    assert counted == [sum(bad[: step + 1]) for step in range(12)]
    for metrics in results["test"].values():
        assert all(math.isfinite(value) for value in metrics.values())
    for tensor in (*run.posterior().mean.values(), *run.posterior().precision.values()):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_batches_that_are_never_finite_end_the_run_with_an_error(method: str, tmp_path: Path) -> None:
    config = tree(method, model={"name": "small_cnn"})
    task = ImageTask(config.task)  # type: ignore[arg-type]
    task.data = replace(task.data, train=NoNumbers(task.data.train))
    with pytest.raises(
        (ConfigError, DivergedError), match=r"10 steps in a row|loss of the first batches is not finite at the start"
    ):
        Run(tmp_path, config, task).go()


# How far a switch may move the loss: not at all, by the order of sums, by the eight bits of a bfloat16's significand.
SWITCHES: list[tuple[dict[str, Any], float]] = [
    ({"activation_checkpointing": True}, 0.0),
    ({"loader_processes": 1}, 0.0),
    ({"accumulate": 3}, 1e-4),
    ({"precision": "bf16"}, 4e-3),
    ({"activation_checkpointing": True, "precision": "bf16", "accumulate": 2}, 4e-3),
]
LOOSEST = max(tolerance for _, tolerance in SWITCHES)
ONLY_TRAIN = {"validate_every": 100, "checkpoint_every": 100}
NO_DROPOUT = {**VIT, "kwargs": {**VIT["kwargs"], "proj_drop_rate": 0.0}}  # masks depend on the cut into micro-batches


@pytest.fixture(scope="module")
def plain_curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    curves = {}
    for method in METHODS:
        run = Run(tmp_path_factory.mktemp(method), tree(method, NO_DROPOUT, **ONLY_TRAIN))
        run.go()
        curves[method] = run.nll
    return curves


@pytest.mark.parametrize(
    ("switch", "tolerance"), SWITCHES, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("method", METHODS)
def test_a_switch_leaves_the_loss_curve_where_it_was(
    method: str, switch: dict[str, Any], tolerance: float, plain_curves: dict[str, list[float]], tmp_path: Path
) -> None:
    run = Run(tmp_path, tree(method, NO_DROPOUT, **ONLY_TRAIN, **switch))
    run.go()
    assert run.nll == pytest.approx(plain_curves[method], rel=tolerance, abs=0)
    assert max(run.nll) / min(run.nll) > 1 + 2 * LOOSEST  # the curve moves by more: equality says something


@pytest.mark.slow
def test_compiling_leaves_the_loss_curve_where_it_was(plain_curves: dict[str, list[float]], tmp_path: Path) -> None:
    for method in METHODS:
        run = Run(tmp_path / method, tree(method, NO_DROPOUT, **ONLY_TRAIN, compile=True))
        run.go()
        assert run.nll == pytest.approx(plain_curves[method], rel=1e-4)


def test_dropout_masks_are_shared_by_a_pair_and_differ_between_steps(tmp_path: Path) -> None:
    masks: list[Tensor] = []

    class Watched(ImageTask):
        def build_model(self) -> torch.nn.Module:
            module = super().build_model()
            dropout = next(m for m in module.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0)
            dropout.register_forward_hook(lambda m, _, output: m.training and masks.append(output == 0))
            return module

    config = tree("pairs", epochs=0.5)
    Run(tmp_path, config, Watched(config.task)).go()
    steps = [masks[first : first + 2] for first in range(0, len(masks), 2)]
    assert len(steps) == 2
    for one, other in steps:
        assert torch.equal(one, other)
    assert not torch.equal(steps[0][0], steps[1][0])


def test_milestones_are_the_ends_of_so_many_epochs() -> None:
    length = RunLength(total_steps=25, steps_per_epoch=10, data_size=1000)
    assert set(milestones(1, length)) == {10, 20}
    assert set(milestones(0.5, length)) == {5, 10, 15, 20, 25}
    assert set(milestones(100, length)) == set()
    assert set(milestones(0.001, length)) == set(range(1, 26))  # never more often than every step


def test_validation_comes_after_every_epoch_and_after_the_last_step(tmp_path: Path) -> None:
    run = Run(tmp_path, tree(epochs=1.5))
    run.go()
    assert len(run.validation) == 2
    assert all({"validation/nll", "validation/ece"} <= set(metrics) for metrics in run.validation)
