"""Posteriors on disk: bit for bit, readable, without pickle, without Ray or MLflow; damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from proxscore.config import ConfigError
from proxscore.inference import Categorical, ProximalScore
from proxscore.posterior import Posterior

DESCRIPTION = {
    "architecture": {"name": "mlp", "width": 6},
    "data": {"classes": 3},
    "versions": {"torch": torch.__version__},
}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


@pytest.fixture
def posterior() -> Posterior:
    torch.manual_seed(0)
    module = network()
    optimizer = ProximalScore(module.named_parameters(), 50, metric="posterior", initial_precision=0.1, paired=True)
    for _ in range(2):
        for _ in optimizer.draws():
            Categorical().nll(module(torch.randn(10, 4)), torch.randint(3, (10,))).mean().backward()
        optimizer.step()
    return Posterior.of(module, optimizer, DESCRIPTION)


def test_a_saved_posterior_comes_back_bit_for_bit_and_draws_the_same(posterior: Posterior, tmp_path: Path) -> None:
    loaded = Posterior.load(posterior.save(tmp_path / "deep" / "folder"))
    for group in ("mean", "precision", "buffers"):
        ours, theirs = getattr(posterior, group), getattr(loaded, group)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert loaded.description == DESCRIPTION
    for index in range(3):
        ours, theirs = posterior.draw(index, seed=4), loaded.draw(index, seed=4)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_point_estimate_is_saved_and_loaded_as_one(tmp_path: Path) -> None:
    module = network()
    loaded = Posterior.load(Posterior.of(module).save(tmp_path))
    assert loaded.family == "point"
    assert torch.equal(loaded.mean["2.weight"], module[2].weight)


def test_the_folder_holds_safetensors_and_readable_json_and_nothing_else(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["posterior.json", "posterior.safetensors"]
    text = (tmp_path / "posterior.json").read_text()
    assert json.loads(text) == {"format": 1, "family": "mean_field", "tensors": 15, **DESCRIPTION}
    assert len(text.splitlines()) > 5  # indented, for people
    with safe_open(tmp_path / "posterior.safetensors", "pt") as file:  # an independent reader
        assert torch.equal(file.get_tensor("mean.0.weight"), posterior.mean["0.weight"])
        assert torch.equal(file.get_tensor("precision.2.bias"), posterior.precision["2.bias"])


def test_loading_into_a_fresh_module_brings_mean_weights_and_buffers(posterior: Posterior, tmp_path: Path) -> None:
    module = Posterior.load(posterior.save(tmp_path)).load_into(network())
    expected = posterior.mean | posterior.buffers
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_buffers_that_do_not_fit_are_named(posterior: Posterior) -> None:
    with pytest.raises(
        ConfigError, match=r"buffer 1\.running_mean is \(6,\) torch.float32 there, no such buffer in the model"
    ):
        posterior.load_into(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)))


@pytest.mark.parametrize("name", ["posterior.json", "posterior.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "binary"])
def test_missing_and_damaged_files_are_one_line_errors(
    name: str, damage: str, posterior: Posterior, tmp_path: Path
) -> None:
    file = posterior.save(tmp_path) / name
    if damage == "missing":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(
            {"truncated": content[: len(content) // 2], "empty": b"", "binary": b"\xff\xfe\x00" * 99}[damage]
        )
    with pytest.raises(ConfigError, match=name if damage == "missing" else "damaged posterior") as error:
        Posterior.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": 2}'])
def test_a_description_of_something_else_is_refused(content: str, posterior: Posterior, tmp_path: Path) -> None:
    (posterior.save(tmp_path) / "posterior.json").write_text(content)
    with pytest.raises(ConfigError, match=r"posterior\.json: not a posterior of format 1"):
        Posterior.load(tmp_path)


def test_tensors_of_something_else_are_refused(posterior: Posterior, tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(2)}, posterior.save(tmp_path) / "posterior.safetensors")
    with pytest.raises(ConfigError, match=r"not the tensors of a posterior \(encoder\.weight\)"):
        Posterior.load(tmp_path)


def test_a_fresh_process_without_ray_and_mlflow_loads_it(posterior: Posterior, tmp_path: Path) -> None:
    """And draws what this process draws."""
    posterior.save(tmp_path)
    script = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        "from proxscore.posterior import Posterior\n"
        "import torch\n"
        f"draw = Posterior.load({str(tmp_path)!r}).draw(1, seed=2)\n"
        f"torch.save(draw, {str(tmp_path / 'draw.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)
    expected = posterior.draw(1, seed=2)
    for name, value in torch.load(tmp_path / "draw.pt", weights_only=True).items():
        assert torch.equal(value, expected[name])
