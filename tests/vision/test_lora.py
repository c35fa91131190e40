"""Low-rank adapters: what is trained, what is saved, and that merging changes no prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from proxscore.config import METHODS, ConfigError
from proxscore.methods import RunLength, Setup
from proxscore.posterior import Posterior, predict
from proxscore.training.saved import load
from proxscore.vision.lora import adapters
from proxscore.vision.merging import merged
from proxscore.vision.models import build_model
from proxscore.vision.task import ModelConfig

VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
DIGITS = {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}


def build(name: str = "vit_tiny_patch16_224", kwargs: Any = VIT, lora: Any = None) -> nn.Module:
    config = ModelConfig.model_validate({"name": name, "kwargs": kwargs, "lora": lora or {"rank": 4}})
    return build_model(config, classes=5, shape=(3, 32, 32))


def trained(model: nn.Module, **settings: Any) -> Posterior:
    section = METHODS.section("proximal_score").model_validate({"initial_noise": 0.1, "lr": 0.05, **settings})
    optimizer = section.build(Setup(model, RunLength(6, 3, 24)))
    torch.manual_seed(0)
    for _ in range(6):
        images, labels = torch.randn(8, 3, 32, 32), torch.randint(5, (8,))
        for _ in optimizer.draws():
            nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return Posterior.of(model, optimizer, {"task": {"kind": "vision", "model": {"lora": {"rank": 4}}, "data": {}}})


def test_adapters_change_nothing_at_the_start_and_are_all_that_is_trained() -> None:
    torch.manual_seed(3)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, **VIT)
    torch.manual_seed(3)
    model = build()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = [f"blocks.{b}.attn.{layer}" for b in range(2) for layer in ("qkv", "proj")]
    assert names == {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"} | {
        "head.weight",
        "head.bias",
    }


FAMILIES = ["mean_field", "full_covariance", "low_rank", "kronecker", "mixture"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_describes_the_adapters_alone(family: str) -> None:
    model = build(lora={"rank": 1, "targets": ["qkv"]})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    which = "families" if family != "mean_field" else "family"
    value = {"*lora_*": {"kind": family}} if family != "mean_field" else {"kind": family}
    posterior = trained(model, **{which: value}, prior={"scale": 0.1})
    assert posterior.varying == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


def test_the_merged_network_predicts_what_the_adapters_do_draw_by_draw() -> None:
    model = build()
    posterior = trained(model)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, **VIT).eval()
    images = torch.randn(16, 3, 32, 32)
    samples = merged(posterior, model, 3, seed=5)
    model.eval()
    outputs = []
    with torch.no_grad():
        for index in range(3):
            with posterior.use(model, index, 5):
                expected = model(images)
            with samples.use(samples.load_into(plain), index, 0):
                outputs.append(plain(images))
            torch.testing.assert_close(outputs[-1], expected, rtol=1e-4, atol=1e-5)
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3
        mean = merged(posterior, model, 0, seed=5)
        assert mean.family == "point"
        torch.testing.assert_close(mean.load_into(plain)(images), model(images), rtol=1e-4, atol=1e-5)
    assert "lora" not in mean.description["task"]["model"]


def test_targets_that_fit_nothing_or_do_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no linear layer or convolution is called 'query'; .* attn\.qkv"):
        build(lora={"targets": ["query"]})
    # this network reads the weight of its fused projection without calling the layer
    eva = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    with pytest.raises(ConfigError, match=r"the network never calls blocks\.0\.attn\.qkv"):
        build("eva02_tiny_patch14_224", eva | {"img_size": 32, "qkv_fused": True}, {"targets": ["attn.qkv"]})


def test_adapters_on_the_meta_device_are_shaped_as_those_with_numbers() -> None:
    config = ModelConfig.model_validate({"kwargs": VIT, "lora": {"rank": 4}})
    with torch.device("meta"):
        model = build_model(config, classes=5, shape=(3, 32, 32))
    assert all(p.is_meta for p in model.parameters())
    shapes = {name: (p.shape, p.requires_grad) for name, p in model.named_parameters()}
    assert shapes == {name: (p.shape, p.requires_grad) for name, p in build().named_parameters()}
    assert len(adapters(model)) == 4


@pytest.mark.parametrize("draws", [None, 0, 3])
def test_a_run_with_adapters_is_saved_and_evaluated_kept_or_merged(tmp_path: Path, draws: int | None) -> None:
    from proxscore.config import parse
    from proxscore.training.launch import run

    lora = {"rank": 2, "merged_draws": draws}
    tree = {
        "name": "adapters",
        "task": {"model": {"name": "vit_tiny_patch16_224", "kwargs": DIGITS, "lora": lora}, "data": {"kind": "digits"}},
        "method": {"kind": "proximal_score", "initial_noise": 0.1},
        "training": {"epochs": 0.5, "workers": 0, "device": "cpu", "storage": str(tmp_path)},
        "evaluation": {"draws": 3, "validation_draws": 1},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    (outcome,) = run(parse(tree), lambda line: None)
    saved = load(str(outcome.folder / "posterior"), [])
    task = saved.config.task.build()
    module = saved.posterior.load_into(task.build_model())
    assert bool(getattr(saved.config.task.model, "lora", None)) == (draws is None)
    batches = [task.data.test.__getitems__(range(len(task.data.test)))]
    nll = -predict(module, batches, saved.posterior, draws=3).log_density.mean().item()
    tested = outcome.results["test"]["mean" if draws == 0 else "posterior"]
    assert nll == pytest.approx(tested["nll"], rel=1e-4)
