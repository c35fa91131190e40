"""What workers hold: counted on the meta device, against tensors that are there, and against arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import timm
import torch
from PIL import Image
from timm.models import register_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.methods import RunLength, Setup, build_method
from proxscore.training import launch
from proxscore.training.preflight.dry_run import dry_run
from proxscore.training.preflight.memory import count_memory
from proxscore.training.sharding.materialize import materialize
from proxscore.vision.image_task import ImageTask
from proxscore.vision.small_cnn import SmallCNN

HORIZON = RunLength(total_steps=10, steps_per_epoch=5, data_size=100)
VIT = {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three-channel images, enough to be split."""
    folder = tmp_path_factory.mktemp("photographs")
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def tree(model: dict[str, Any], data: dict[str, Any] | None = None, method: Any = None, **training: Any) -> Config:
    return configuration.parse(
        {
            "task": {"model": model, "data": data or {"kind": "digits", "limit": 100}},
            "method": method or {"kind": "proximal_score"},
            "training": {"device": "cpu", "workers": 1, "batch_size": 20} | training,
        }
    )


@pytest.mark.parametrize("name", ["vit_large_patch32_224", "vit_huge_patch14_224"])
@pytest.mark.parametrize("workers", [1, 8])
def test_a_large_network_is_counted_without_being_held(name: str, workers: int, photographs: Path) -> None:
    """Six numbers per parameter, divided by the workers; AdamW four. ViT-H/14 alone would fill 2.5 GB."""
    config = tree({"name": name}, {"kind": "image_folder", "path": str(photographs)}, workers=workers)
    task = ImageTask(config.task)
    process = psutil.Process()
    before = process.memory_info().rss
    counted = count_memory(config, config.method, task)
    assert process.memory_info().rss - before < 200e6
    with torch.device("meta"):
        named = dict(timm.create_model(name, num_classes=2).named_parameters())
        expected = sum(p.numel() for p in named.values())
        scales = sum(
            p.numel() for name, p in named.items() if p.ndim == 1 and name.endswith("weight")
        )  # their prior means
    assert counted.parameters == expected > 300e6
    assert sum(counted.held.values()) == pytest.approx(4 * (6 * expected + scales) / workers)
    assert counted.adamw == pytest.approx(4 * 4 * expected / workers)
    assert (counted.gathered == 0) == (workers == 1)
    assert counted.gathered < 0.25 * 4 * expected  # three of 24 or 32 blocks, and the root


def test_a_dry_run_of_what_this_machine_cannot_hold_prints_the_table_and_takes_no_step(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tree({"name": "vit_large_patch32_224"}, {"kind": "image_folder", "path": str(photographs)}, workers=8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**30}))
    text = dry_run(config)
    needed = 6 * 4 * count_memory(config, config.method, ImageTask(config.task)).parameters / 2**30
    (line,) = (line for line in text.splitlines() if line.startswith("one step here"))
    assert "not taken: it needs " in line
    assert needed < float(line.split(" GiB")[0].split()[-1]) < needed + 4  # activations of a batch of 20
    assert "this machine has 1.00 GiB" in line
    assert f"{1024 * needed / 8:.1f} MiB per worker on 8 worker(s), 8 to a copy" in text


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "adamw"},
        {"kind": "proximal_score"},
        {"kind": "proximal_score", "keep_mean": False},
        {"kind": "proximal_score", "draws": 2, "paired": True, "prior": {"biases": "point", "norms": "flat"}},
        {
            "kind": "proximal_score",
            "families": {"head.*": {"kind": "full_covariance"}, "blocks.*": {"kind": "low_rank"}},
        },
        {"kind": "proximal_score", "family": {"kind": "mixture", "components": 2}},
    ],
    ids=["adamw", "mean field", "no separate mean", "two pairs and points", "several families", "mixture"],
)
def test_what_is_counted_is_what_a_process_holds(method: dict[str, Any]) -> None:
    config = tree(VIT, method=method | ({} if method["kind"] == "adamw" else {"initial_noise": 0.02}))
    task = ImageTask(config.task)
    module = task.build_model()
    built = build_method(config.method, Setup(module, HORIZON))
    assert isinstance(built, torch.optim.Optimizer)
    inputs, targets = task.data.train.__getitems__(list(range(20)))
    for _ in built.draws():
        task.likelihood.nll(module(inputs), targets).mean().backward()
    built.step()
    built.state_dict()
    # What the verdict counts about a few hundred numbers of each tensor is left out.
    state = [value for held in built.state.values() for name, value in held.items() if name != "probes"]
    numbers = sum(value.numel() for value in state if isinstance(value, Tensor) and value.ndim)
    parameters = sum(p.numel() for p in module.parameters())
    assert sum(count_memory(config, config.method, task).held.values()) == 4 * (numbers + 2 * parameters)


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 1), (2, 1), (2, 5)])
def test_activations_are_those_that_the_layers_need_for_their_gradients(workers: int, accumulate: int) -> None:
    """A small CNN keeps each layer's input: images, two ReLUs, two poolings with their indices, hidden units, logits.

    Its convolutions have 4 and 8 channels on 8 x 8 and 4 x 4 pixels; 20 rows of a batch, over workers and micro-batches.
    """
    model = {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 16}}
    config = tree(model, workers=workers, accumulate=accumulate)
    rows = 20 // workers // accumulate
    images, first, second = 64, 4 * 64, 8 * 16
    floats = images + first + first // 4 + second + second // 4 + 16 + 10
    indices = first // 4 + second // 4  # int64
    counted = count_memory(config, config.method, ImageTask(config.task)).activations
    assert counted == pytest.approx(rows * (4 * floats + 8 * indices), rel=0.02)


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator had handed out at once, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize(
    "method",
    [{}, {"paired": True}, {"draws": 2}, {"keep_mean": False}, {"metric": "posterior"}],
    ids=["single", "pairs", "two draws", "no separate mean", "posterior's metric"],
)
def test_a_step_takes_at_most_what_is_counted(method: dict[str, Any]) -> None:
    """Within ten per cent; of a single draw without a buffer for the mean gradient."""
    model = {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "embed_dim": 192, "depth": 4, "num_heads": 2}}
    config = tree(model, method={"kind": "proximal_score", "initial_noise": 0.02} | method, batch_size=8)
    task = ImageTask(config.task)
    counted = count_memory(config, config.method, task)
    module = task.build_model()
    inputs, targets = task.data.train.__getitems__(list(range(8)))
    weights = sum(4 * p.numel() for p in module.parameters())

    def steps() -> None:
        built = build_method(config.method, Setup(module, HORIZON))
        built.hold_draw = True
        for _ in range(2):
            for _ in built.draws():
                task.likelihood.nll(module(inputs), targets).mean().backward()
            built.step()

    assert counted.total == sum(counted.held.values()) + counted.gathered + counted.activations + counted.summed
    assert bool(counted.summed) == (method not in ({}, {"metric": "posterior"}))
    assert weights + peak_of(steps) == pytest.approx(counted.total, rel=0.1)


@register_model
def needs_numbers(pretrained: bool = False, **settings: Any) -> SmallCNN:
    """A network whose construction reads a number from a tensor, as some of timm's do."""
    torch.ones(1).item()
    return SmallCNN(**{key: settings[key] for key in ("num_classes", "in_chans", "img_size")})


def test_a_network_that_cannot_be_counted_is_trained_all_the_same_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tree({"name": "needs_numbers"}, workers=0, epochs=1, storage=str(tmp_path / "runs"))
    tracking = config.tracking.model_copy(update={"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    (outcome,) = launch.run(config.model_copy(update={"tracking": tracking}), lambda line: None)
    assert outcome.results["steps"] > 0
    assert "disk and memory are not checked: needs_numbers cannot be counted" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--dry-run: needs_numbers cannot be counted without its numbers"):
        dry_run(config)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "small_cnn"])
def test_initial_weights_from_the_meta_device_are_distributed_as_the_networks_own(name: str) -> None:
    """Mean and spread of every tensor of 1,000 numbers or more, to four standard errors; constants, to the bit."""
    torch.manual_seed(0)
    ordinary = timm.create_model(name)
    with torch.device("meta"):
        module = timm.create_model(name)
    materialize(module, torch.device("cpu"), seed=3)
    for (key, ours), theirs in zip(module.state_dict().items(), ordinary.state_dict().values(), strict=True):
        if not ours.is_floating_point() or theirs.numel() < 2 or theirs.std() == 0:
            assert torch.equal(ours, theirs), key
        elif theirs.numel() >= 1000:
            error = theirs.std() / theirs.numel() ** 0.5
            assert abs(ours.mean() - theirs.mean()) < 4 * 2**0.5 * error, key
            assert abs(ours.std() / theirs.std() - 1) < 4 / theirs.numel() ** 0.5, key
            assert not torch.equal(ours, theirs)


def test_a_network_with_a_parameter_that_nothing_sets_is_refused_by_name() -> None:
    with torch.device("meta"):
        module = timm.create_model("convnext_atto")
    with pytest.raises(ConfigError, match=r"nothing sets stages.0.blocks.0.gamma.*training.meta_init=false"):
        materialize(module, torch.device("cpu"), seed=0)
