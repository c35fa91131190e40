"""A posterior that someone else has made: its description may ask for nothing but a network and the data it was judged on."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from proxscore.config import ConfigError
from proxscore.posterior import Posterior
from proxscore.training import saved

if TYPE_CHECKING:
    from conftest import Main, Trained

Change = Callable[[dict[str, Any]], None]


class Watch:
    """What this process opens and connects to while it is looked at."""

    def __init__(self) -> None:
        self.on = False
        self.others: set[int | None] = set()  # threads that earlier tests left running
        self.opened: list[str] = []
        self.connected: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or threading.get_ident() in self.others:
            return
        if event in ("socket.connect", "socket.getaddrinfo"):
            self.connected.append(f"{event} {arguments[1:]}")
        if event == "open":
            self.opened.append(str(arguments[0]))


@pytest.fixture(scope="module")
def _hook() -> Watch:
    watch = Watch()
    sys.addaudithook(watch)  # for good: there is no way to remove one
    return watch


@pytest.fixture
def watch(_hook: Watch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if threading.get_ident() in _hook.others:
            return connect(self, address)
        _hook.connected.append(str(address))
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    _hook.others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    _hook.opened.clear()
    _hook.connected.clear()
    _hook.on = True
    yield _hook
    _hook.on = False


@pytest.fixture
def foreign(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], Path]:
    """A copy of the trained posterior with a changed description."""
    monkeypatch.chdir(tmp_path)

    def make(change: Change) -> Path:
        folder = tmp_path / "posterior"
        shutil.copytree(Path(trained.result["runs"][1]["folder"]) / "posterior", folder, dirs_exist_ok=True)
        file = folder / "posterior.json"
        description = json.loads(file.read_text())
        change(description)
        file.write_text(json.dumps(description))
        return folder

    return make


def bait(tmp_path: Path) -> Path:
    """Files that a description can name: weights, and a folder as Hugging Face has it."""
    folder = tmp_path / "bait"
    folder.mkdir()
    network = timm.create_model("small_cnn", width=4, hidden=8, img_size=8)
    save_file(network.state_dict(), folder / "model.safetensors")
    torch.save(network.state_dict(), folder / "model.pt")
    config = {"architecture": "small_cnn", "num_classes": 10, "pretrained_cfg": {"file": str(folder / "model.pt")}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


HARMLESS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pretrained": lambda folder: {"pretrained": True},
    "a url": lambda folder: {"pretrained": True, "pretrained_cfg": {"url": "http://203.0.113.7/w.pt"}},
    "an overlay": lambda folder: {"pretrained": True, "pretrained_cfg_overlay": {"hf_hub_id": "a/b"}},
    "a file": lambda folder: {"pretrained": True, "pretrained_cfg": {"file": str(folder / "model.pt")}},
    "a checkpoint": lambda folder: {"checkpoint_path": str(folder / "model.pt")},
    "a cache": lambda folder: {"pretrained": True, "cache_dir": str(folder)},
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_where_weights_would_come_from_is_left_out(
    kind: str, foreign: Callable[[Change], Path], evaluate: Main, watch: Watch, tmp_path: Path
) -> None:
    folder = bait(tmp_path)
    source = foreign(lambda it: it["task"]["model"]["kwargs"].update(HARMLESS[kind](folder)))
    watch.opened.clear()
    assert evaluate([str(source), "--draws", "2", "--output", "scores"]) == 0
    assert not watch.connected
    assert not [path for path in watch.opened if path.startswith(str(folder))]


def test_weights_that_a_description_names_are_not_read_but_those_of_the_command_line_are(
    foreign: Callable[[Change], Path], evaluate: Main, watch: Watch, tmp_path: Path
) -> None:
    folder = bait(tmp_path)
    file = str(folder / "model.safetensors")
    source = foreign(lambda it: it["task"]["model"].update(weights=file))
    watch.opened.clear()
    assert evaluate([str(source), "--draws", "0"]) == 0
    assert evaluate([str(foreign(lambda it: it["task"]["model"].update(pretrained=True))), "--draws", "0"]) == 0
    assert not watch.connected
    assert not [path for path in watch.opened if path.startswith(str(folder))]
    absent = saved.load(str(source), [f"task.model.weights={file}"]).config.task.model
    assert str(absent.weights) == file  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:a/b", "local-dir:{bait}", "../{bait}", "nothing"])
def test_a_network_from_elsewhere_is_refused(
    name: str,
    foreign: Callable[[Change], Path],
    evaluate: Main,
    watch: Watch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = bait(tmp_path)
    source = foreign(lambda it: it["task"]["model"].update(name=name.format(bait=folder)))
    watch.opened.clear()
    assert evaluate([str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source / 'posterior.json'}: task.model.name is ")
    assert error.count("\n") == 1
    assert not watch.connected
    assert not [path for path in watch.opened if path.startswith(str(folder))]


def test_a_keyword_that_shapes_no_network_is_refused(
    foreign: Callable[[Change], Path], evaluate: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    source = foreign(lambda it: it["task"]["model"]["kwargs"].update(backdoor="http://203.0.113.7"))
    assert evaluate([str(source)]) == 2
    assert "task.model.kwargs has 'backdoor'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4, "drop_path_rate": 0.1}),
        ("resnet18", {"drop_rate": 0.1, "drop_block_rate": 0.1, "block_args": {"attn_layer": "se"}, "in_chans": 1}),
        (
            "efficientnet_b0",
            {"bn_eps": 1e-3, "bn_momentum": 0.1, "drop_rate": 0.1, "num_classes": 3, "act_layer": "relu"},
        ),
        ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}),
        ("swin_tiny_patch4_window7_224", {"window_size": 4, "embed_dim": 24, "depths": [1, 1]}),
        ("mixer_s32_224", {"num_blocks": 2}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}),
        ("regnetx_002", {"output_stride": 16}),
        ("mobilenetv3_small_050", {"drop_rate": 0.2}),
        ("densenet121", {"growth_rate": 4}),
    ],
)
def test_keywords_of_networks_are_kept(name: str, kwargs: dict[str, Any]) -> None:
    from proxscore.vision.architecture import described

    assert described({"name": name, "kwargs": kwargs}, "here")["kwargs"] == kwargs


@pytest.mark.parametrize(
    "model",
    [
        {"name": "hf-hub:a/b"},
        {"name": "SimpleFeedForward", "kwargs": {"ckpt_path": "{bait}/model.pt"}},
        {"name": "SimpleFeedForward", "kwargs": {"trainer_kwargs": {"default_root_dir": "{bait}"}}},
    ],
)
def test_a_forecaster_takes_nothing_from_elsewhere(model: dict[str, Any], tmp_path: Path, watch: Watch) -> None:

    bait(tmp_path)
    model = json.loads(json.dumps(model).replace("{bait}", str(tmp_path / "bait")))
    task = {"kind": "forecasting", "model": model, "data": {"kind": "taylor"}}
    features = {"known": [], "past": [], "static_real": [], "categories": {}}
    description = {"task": task, "data": {"frequency": "30min", "features": features}}
    Posterior({"w": torch.zeros(2)}, {"w": torch.ones(2)}, {}, description).save(tmp_path / "posterior")
    watch.opened.clear()
    with pytest.raises(ConfigError, match=r"task\.model"):
        saved.load(str(tmp_path / "posterior"), []).config.task.build()
    assert not watch.connected
    assert not [path for path in watch.opened if "bait" in path]


MISSHAPEN: dict[str, Change] = {
    "no task": lambda it: it.pop("task"),
    "a task that is a text": lambda it: it.update(task="vision"),
    "a task that is a list": lambda it: it.update(task=[1]),
    "no model": lambda it: it["task"].pop("model"),
    "a model that is null": lambda it: it["task"].update(model=None),
    "no data": lambda it: it["task"].pop("data"),
    "data that are a number": lambda it: it["task"].update(data=3),
    "a name that is a number": lambda it: it["task"]["model"].update(name=3),
    "keywords that are a list": lambda it: it["task"]["model"].update(kwargs=[1]),
    "a kind that is a list": lambda it: it["task"].update(kind=[1]),
    "another kind": lambda it: it["task"].update(kind="speech"),
    "a key of another version": lambda it: it["task"].update(more=1),
    "classes that are a text": lambda it: it["task"]["data"].update(kind="idx", path="x", classes="many"),
    "a format that is a text": lambda it: it.update(format="1"),
}


@pytest.mark.parametrize("kind", MISSHAPEN)
@pytest.mark.parametrize("name", ["evaluate", "forecast"])
def test_a_description_of_another_shape_is_named(
    kind: str,
    name: str,
    foreign: Callable[[Change], Path],
    job: Callable[[str], Main],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = foreign(MISSHAPEN[kind])
    assert job(name)([str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source / 'posterior.json'}: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "method", [None, "adamw", [1], {}, {"kind": "adamw"}, {"kind": "proximal_score", "draws": "x"}]
)
def test_a_diagnosis_of_a_posterior_of_another_method_is_refused(
    method: Any, foreign: Callable[[Change], Path], evaluate: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    source = foreign(lambda it: it.update(method=method))
    assert evaluate([str(source), "--diagnose", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
