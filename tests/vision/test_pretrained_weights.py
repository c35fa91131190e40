"""Weights to start from, fitted to other data as timm fits its own; parts that stay, and rates and priors around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from proxscore.config import METHODS, Config, ConfigError, parse
from proxscore.methods import RunLength, Setup
from proxscore.methods.priors import PriorConfig, classifier, prior_of
from proxscore.posterior import Posterior, Samples
from proxscore.posterior.drawn import refresh_batch_norm
from proxscore.vision.models import build_model
from proxscore.vision.task import ModelConfig

VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
NAMES = [("vit_tiny_patch16_224", VIT), ("resnet18", {}), ("mobilenetv3_small_050", {})]


def build(name: str, classes: int = 5, shape: tuple[int, int, int] = (3, 32, 32), **config: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, **config), classes=classes, shape=shape)


def stored(tmp_path: Path, model: nn.Module) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize(("name", "kwargs"), NAMES)
def test_a_local_file_is_adapted_to_classes_channels_and_size_as_timm_adapts_it(
    tmp_path: Path, name: str, kwargs: dict[str, Any]
) -> None:
    size = {"img_size": 32} if "vit" in name else {}
    source = timm.create_model(name, num_classes=7, **kwargs, **size)
    path = stored(tmp_path, source)
    loaded = build(name, classes=5, shape=(1, 48, 48), kwargs=kwargs, weights=path).state_dict()
    # timm's own way, for weights that it knows to be of seven classes and three channels
    overlay = {"state_dict": dict(source.state_dict()), "num_classes": 7}
    larger = {"img_size": 48} if "vit" in name else {}
    theirs = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1, **kwargs, **larger
    )
    head = classifier(theirs)
    changed = 0
    for key, value in theirs.state_dict().items():
        if key.rpartition(".")[0] not in head:
            assert torch.equal(loaded[key], value), key
            changed += value.shape != source.state_dict()[key].shape
    assert changed == (2 if "vit" in name else 1)


def test_a_file_of_the_same_classes_keeps_its_classifier_when_the_size_changes(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, **VIT)
    loaded = build("vit_tiny_patch16_224", shape=(3, 48, 48), kwargs=VIT, weights=stored(tmp_path, source))
    assert torch.equal(loaded.state_dict()["head.weight"], source.state_dict()["head.weight"])
    grey = timm.create_model("resnet18", num_classes=5, in_chans=1)
    again = build("resnet18", shape=(1, 32, 32), weights=stored(tmp_path, grey))
    assert torch.equal(again.state_dict()["conv1.weight"], grey.state_dict()["conv1.weight"])
    colour = build("resnet18", shape=(3, 32, 32), weights=stored(tmp_path, grey)).state_dict()["conv1.weight"]
    assert torch.equal(colour, adapt_input_conv(3, grey.state_dict()["conv1.weight"], base_chans=1))


def test_weights_of_another_network_are_refused_with_what_fits_and_what_does_not(tmp_path: Path) -> None:
    path = stored(tmp_path, timm.create_model("resnet34", num_classes=5))
    with pytest.raises(ConfigError) as caught:
        build("resnet18", weights=path)
    ours, theirs = timm.create_model("resnet18", num_classes=5).state_dict(), timm.create_model("resnet34").state_dict()
    fit = sum(key in theirs and theirs[key].shape == value.shape for key, value in ours.items()) + 2  # the classifier's
    message = str(caught.value)
    assert f"{fit} of the network's {len(ours)} tensors fit" in message
    assert f"{len(theirs.keys() - ours.keys())} of the file are unknown to the network" in message
    assert "\n" not in message


def test_a_posterior_gives_its_mean_network_and_a_training_script_its_state(tmp_path: Path) -> None:
    model = build("resnet18")
    Posterior.of(model).save(tmp_path / "posterior")
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "last.pt")
    for where in ("posterior", "last.pt"):
        loaded = build("resnet18", weights=tmp_path / where).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
    Samples([Posterior.of(model)] * 2).save(tmp_path / "samples")
    with pytest.raises(ConfigError, match=r"set of samples, .* has no mean network"):
        build("resnet18", weights=tmp_path / "samples")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"the folder holds none of posterior\.safetensors"):
        build("resnet18", weights=tmp_path / "empty")


def test_weights_that_the_hub_does_not_give_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        build("resnet18", pretrained=True)
    assert "task.model.pretrained: the weights of resnet18 are not in the hub's cache" in str(caught.value)
    assert "task.model.weights" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="timm has no pretrained weights of small_cnn"):
        build("small_cnn", pretrained=True)


def test_two_starts_at_once_are_refused() -> None:
    for model, reason in (
        ({"pretrained": True, "weights": "w.pt"}, "choose one"),
        ({"kwargs": {"pretrained": True}}, "use task.model.pretrained=true"),
        ({"lora": {}, "frozen": ["body"]}, "leave frozen out"),
    ):
        with pytest.raises(ConfigError, match=reason):
            parse({"task": {"model": model}})


def test_a_zero_head_gives_every_class_the_same_probability() -> None:
    logits = build("resnet18", zero_head=True)(torch.randn(4, 3, 32, 32))
    assert torch.equal(logits, torch.zeros(4, 5))


# ------------------------------------------------------------ parts that stay


def test_frozen_parts_and_their_batch_statistics_stay_and_the_rest_is_trained() -> None:
    model = build("resnet18", frozen=["conv1", "bn1", "layer1.*"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    section = METHODS.section("proximal_score")()
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(5, (8,))
    optimizer = section.build(Setup(model, RunLength(4, 2, 16), losses=lambda: iter([model(images).sum() * 0 + 1])))
    model.train()
    for _ in range(2):
        for _ in optimizer.draws():
            nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for key, value in model.state_dict().items():
        frozen = key.startswith(("conv1", "bn1", "layer1."))
        assert torch.equal(value, before[key]) == frozen, key
    posterior = Posterior.of(model, optimizer)
    assert not any(name.startswith(("conv1", "bn1", "layer1.")) for name in posterior.precision)
    statistics = model.get_buffer("bn1.running_mean").clone(), model.get_buffer("layer2.0.bn1.running_mean").clone()
    refresh_batch_norm(model, [(torch.randn(8, 3, 32, 32), labels)], torch.device("cpu"))
    assert torch.equal(model.get_buffer("bn1.running_mean"), statistics[0])
    assert not torch.equal(model.get_buffer("layer2.0.bn1.running_mean"), statistics[1])


def test_body_leaves_the_classifier_alone_to_be_trained() -> None:
    for name, kwargs in NAMES:
        model = build(name, kwargs=kwargs, frozen=["body"])
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {f"{layer}.{leaf}" for layer in classifier(model) for leaf in ("weight", "bias")}
    for frozen, reason in ((["blocks.9"], "'blocks.9' matches no parameter"), (["*"], "leaves nothing to train")):
        with pytest.raises(ConfigError, match=reason):
            build("resnet18", frozen=frozen)


# ------------------------------------------------------------ rates and priors by layer


@pytest.mark.parametrize("scales", [{"*": 0.01, "fc.*": 1.0}, {"body": 0.01}])
@pytest.mark.parametrize("kind", ["adamw", "sgd", "swag", "elbo", "proximal_score"])
def test_layers_have_the_learning_rates_that_patterns_give(kind: str, scales: dict[str, float]) -> None:
    model = build("resnet18")
    section = METHODS.section(kind).model_validate(
        {"kind": kind, "lr": 0.01, "lr_scales": scales}
        | ({"collect_every": 0.1} if kind == "swag" else {})
        | ({"initial_noise": 0.01} if kind == "proximal_score" else {})
    )
    optimizer = section.build(Setup(model, RunLength(40, 10, 100)))
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        rates = {1e-2 if names[id(p)].startswith("fc.") else 1e-4 for p in group["params"]}
        assert [group.get("peak_lr", group["lr"])] == pytest.approx(sorted(rates))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


@pytest.mark.parametrize(("name", "kwargs"), NAMES)
def test_rates_of_the_body_are_those_of_all_but_timms_classifier(name: str, kwargs: dict[str, Any]) -> None:
    model = build(name, kwargs=kwargs)
    section = METHODS.section("sgd")(lr=1.0, lr_scales={"*": 0.5, "body": 0.1, "*.bias": 0.2})
    of_body = {id(p) for p in model.parameters()} - {id(p) for p in model.get_classifier().parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in section.build(Setup(model, RunLength(40, 10, 100))).param_groups:
        for parameter in group["params"]:
            weights = 0.1 if id(parameter) in of_body else 0.5
            expected = 0.2 if names[id(parameter)].endswith(".bias") else weights
            assert group["peak_lr"] == pytest.approx(expected)


def moved(section: dict[str, Any], factor: float) -> dict[str, Tensor]:
    """How far each tensor of a network moves in a step."""
    torch.manual_seed(0)
    model = build("vit_tiny_patch16_224", kwargs=VIT)
    method = METHODS.section(section["kind"]).model_validate(section | {"lr_scales": {"blocks.0.*": factor}})
    optimizer = method.build(Setup(model, RunLength(40, 10, 100)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(5, (8,))
    for _ in optimizer.draws():
        nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "elbo", "warmup": 0.0},
        {"kind": "proximal_score", "initial_noise": 0.01},
        {"kind": "adamw", "warmup": 0.0},
    ],
)
def test_a_first_step_is_as_long_as_its_layers_rate(section: dict[str, Any]) -> None:
    whole, half = moved(section, 1.0), moved(section, 0.5)
    for name, step in whole.items():
        factor = 0.5 if name.startswith("blocks.0.") else 1.0
        torch.testing.assert_close(half[name], factor * step, rtol=1e-2, atol=2e-6)


def test_layer_decay_is_timms() -> None:
    model = build("vit_tiny_patch16_224", kwargs=VIT)
    optimizer = METHODS.section("adamw")(lr=0.1, layer_decay=0.5).build(Setup(model, RunLength(40, 10, 100)))
    ours = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    theirs = param_groups_layer_decay(model, layer_decay=0.5)
    for group in theirs:
        for parameter in group["params"]:
            assert ours[id(parameter)] == pytest.approx(0.1 * group["lr_scale"])
    assert len({group["lr_scale"] for group in theirs}) == 4
    with pytest.raises(ConfigError, match="'heads' matches no trained parameter"):
        METHODS.section("adamw")(lr_scales={"heads": 2.0}).build(Setup(model, RunLength(40, 10, 100)))
    with pytest.raises(ConfigError, match="does not tell its layers' depths"):
        METHODS.section("adamw")(layer_decay=0.5).build(Setup(nn.Linear(2, 2), RunLength(40, 10, 100)))


def test_the_prior_is_about_the_pretrained_weights_with_a_scale_relative_to_each_tensor(tmp_path: Path) -> None:
    path = stored(tmp_path, timm.create_model("resnet18", num_classes=1000))
    config = parse({"task": {"model": {"name": "resnet18", "weights": str(path)}}})
    assert isinstance(config, Config)
    assert config.method.prior.mean == "initial"
    model = build("resnet18", weights=path)
    prior = prior_of(PriorConfig(mean="initial", relative_scale=0.1, scale=2.0, scales={"layer1.*": 3.0}), model)
    named = dict(model.named_parameters())
    assert not {"fc.weight", "fc.bias"} & prior.mean.keys()
    assert all(torch.equal(value, named[name]) for name, value in prior.mean.items())
    assigned = prior.assign(named.items())
    assert assigned["fc.weight"].precision == pytest.approx(2.0**-2)
    assert assigned["layer1.0.conv1.weight"].precision == pytest.approx(3.0**-2)
    rms = named["layer2.0.conv1.weight"].detach().square().mean().sqrt().item()
    assert assigned["layer2.0.conv1.weight"].precision == pytest.approx((0.1 * rms) ** -2)
    with pytest.raises(ConfigError, match=r"relative_scale=0\.1 is relative to the weights"):
        prior_of(PriorConfig(relative_scale=0.1), model)
