"""Networks by name, fitted to the data, and the weights they start from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from proxscore.config import ConfigError
from proxscore.vision.models import build_model
from proxscore.vision.task import ModelConfig

SMALL_VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def build(name: str = "small_cnn", classes: int = 10, shape: tuple[int, int, int] = (1, 8, 8), **config: Any) -> Any:
    return build_model(ModelConfig(name=name, **config), classes=classes, shape=shape)


def refused(**config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(**config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_small_cnn_is_the_written_out_network_with_80602_parameters() -> None:
    model = build(shape=(1, 28, 28))
    assert sum(p.numel() for p in model.parameters()) == 160 + 4640 + (1568 * 48 + 48) + (48 * 10 + 10) == 80602
    images = torch.randn(3, 1, 28, 28)
    state = model.state_dict()
    x = images
    for name in ("conv1", "conv2"):
        x = torch.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    x = (x.flatten(1) @ state["fc.weight"].T + state["fc.bias"]).relu()
    torch.testing.assert_close(model(images), x @ state["head.weight"].T + state["head.bias"])


def test_small_cnn_is_created_by_timm_for_any_channels_and_size() -> None:
    model = timm.create_model("small_cnn", in_chans=3, img_size=(20, 33), num_classes=4, width=4)
    assert model(torch.zeros(2, 3, 20, 33)).shape == (2, 4)
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(torch.zeros(2, 3, 20, 33)).shape == (2, 7)
    assert "at least 4x4" in refused(shape=(1, 3, 9))


@pytest.mark.parametrize(("name", "channels"), [("small_cnn", 1), ("resnet18", 3)])
def test_channels_last_changes_the_memory_format_and_not_the_result(name: str, channels: int) -> None:
    plain = build(name, shape=(channels, 32, 32)).eval()
    fast = build(name, shape=(channels, 32, 32), channels_last=True).eval()
    fast.load_state_dict(plain.state_dict())
    formats = []
    fast.get_submodule("conv2" if name == "small_cnn" else "layer1").register_forward_pre_hook(
        lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    images = torch.randn(5, channels, 32, 32)
    torch.testing.assert_close(fast(images), plain(images), atol=1e-5, rtol=1e-5)
    assert formats == [True]
    assert all(parameter.is_contiguous() for parameter in fast.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("resnet18", {}), ("vit_tiny_patch16_224", SMALL_VIT), ("small_cnn", {}), ("mobilenetv3_small_050", {})],
)
def test_models_take_classes_channels_and_image_size_from_the_data(name: str, kwargs: dict[str, Any]) -> None:
    model = build(name, classes=7, shape=(2, 32, 24), kwargs=kwargs)
    assert model(torch.zeros(3, 2, 32, 24)).shape == (3, 7)


def test_image_size_in_the_keywords_goes_first() -> None:
    vit = {**SMALL_VIT, "img_size": 16, "dynamic_img_size": True}
    assert build("vit_tiny_patch16_224", kwargs=vit).pos_embed.shape == (1, 1 + 16, 32)
    assert build("vit_tiny_patch16_224", kwargs=SMALL_VIT).pos_embed.shape == (1, 1 + 4, 32)


def test_the_trial_run_leaves_batch_statistics_the_random_stream_and_training_mode_alone() -> None:
    torch.manual_seed(0)
    model = build("mobilenetv3_small_050", shape=(3, 32, 32))
    after = torch.rand(())
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv3_small_050", num_classes=10)
    assert torch.equal(after, torch.rand(()))
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.training


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    message = refused(name="vit_tny_patch16_224")
    assert "'vit_tny_patch16_224'" in message
    assert "vit_tiny_patch16_224" in message


def test_settings_that_contradict_the_data_or_the_network_are_named() -> None:
    assert "task.model.kwargs.num_classes is 3; the data have 10" in refused(kwargs={"num_classes": 3})
    assert "task.model.kwargs.in_chans is 3; the data have 1" in refused(kwargs={"in_chans": 3})
    assert "widht=8" in refused(kwargs={"widht": 8})
    assert "cannot take 1x8x8 images" in refused(name="vit_tiny_patch16_224")
    assert "expected (2, 10)" in refused(name="resnet18", kwargs={"features_only": True})
    assert build(kwargs={"num_classes": 10, "in_chans": 1}) is not None


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_by_name(tmp_path: Path, suffix: str) -> None:
    state = build().state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = build(weights=path).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_a_head_of_another_class_number_keeps_its_initialisation_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    state = build(name, classes=3).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.manual_seed(1)
    fresh = build(name).state_dict()
    torch.manual_seed(1)
    with caplog.at_level(logging.INFO, "proxscore"):
        loaded = build(name, weights=tmp_path / "w.safetensors").state_dict()
    head = {"small_cnn": "head", "resnet18": "fc"}[name]
    for key, value in loaded.items():
        if name == "small_cnn" and key.startswith("fc"):
            assert torch.equal(value, state[key])
        assert torch.equal(value, (fresh if key.startswith(f"{head}.") else state)[key])
    assert f"head of 3 classes not loaded; left at its initialisation: {head}.weight, {head}.bias" in caplog.text


def test_weights_that_do_not_fit_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    state = build().state_dict()
    path = tmp_path / "w.pt"

    def message(content: Any) -> str:
        torch.save(content, path)
        text = refused(weights=path)
        assert str(path) in text
        return text

    lacking = message({k: v for k, v in state.items() if k != "conv1.bias"})
    assert "7 of the network's 8 tensors fit; 1 are missing, such as 'conv1.bias'" in lacking
    more = message({**state, "more": torch.zeros(1)})
    assert "8 of the network's 8 tensors fit; 1 of the file are unknown to the network, such as 'more'" in more
    wide = message({**state, "fc.weight": torch.zeros(48, 200)})
    assert "1 have another shape, such as 'fc.weight': (48, 200), and (48, 128) here" in wide
    # a classifier that differs in more than its classes is no head of other classes
    assert "such as 'head.weight': (3, 47)" in message({**state, "head.weight": torch.zeros(3, 47)})
    assert "'epoch' is a int; save the state dict of tensors alone" in message({**state, "epoch": 3})
    assert "holds a list" in message([1, 2])


def test_unreadable_weights_are_refused_by_name_and_code_in_them_is_not_run(tmp_path: Path) -> None:
    # as pickles they end in errors of various kinds
    for content in (
        b"not weights at all",
        b"root:x:0:0:root:/root:/bin/bash\n",
        b"0",
        b"s",
        b"h\x00.",
        b"",
        b"\x80\x02}K\x01s.",
    ):
        for suffix in (".pt", ".safetensors"):
            path = tmp_path / f"broken{suffix}"
            path.write_bytes(content)
            text = refused(weights=path)
            assert f"task.model.weights {path}: neither safetensors nor a state dict: " in text
            assert "\n" not in text
    torch.save(Path("/tmp"), tmp_path / "object.pt")  # unpickling would call a constructor
    assert "neither safetensors nor a state dict" in refused(weights=tmp_path / "object.pt")
    assert "no such file" in refused(weights=tmp_path / "absent.pt")
