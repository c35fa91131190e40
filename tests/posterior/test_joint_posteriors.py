"""Posteriors with families beside the mean field: draws, files, damaged files, and prediction."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from proxscore.config import FAMILIES, ConfigError
from proxscore.inference import (
    Categorical,
    Distribution,
    FullCovariance,
    GradientSolver,
    Kronecker,
    LowRank,
    MeanField,
    Mixture,
    ProximalScore,
)
from proxscore.inference.families import Family
from proxscore.posterior import Posterior, predict

DRAWS = 2000

#: By name: the families of the head (a weight of 3 x 2 and a bias of 3).
MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "full_covariance": lambda: {"families": {"2.*": FullCovariance()}},
    "low_rank": lambda: {"families": {"2.*": LowRank(2, 0.8)}},
    "kronecker": lambda: {"families": {"2.weight": Kronecker()}},
    "mixture": lambda: {"families": {"2.*": Mixture(2, 1.5, [1.0, 3.0])}},
    "mean_field": lambda: {"families": {"2.*": MeanField()}, "solver": GradientSolver()},
    "mixed": lambda: {"families": {"2.weight": Kronecker(), "2.bias": FullCovariance(), "0.weight": LowRank(1)}},
}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 3)).double()


def trained(kind: str, steps: int = 23) -> tuple[nn.Module, ProximalScore]:
    """A network after a few steps, in the midst of the gradient solver's inner steps."""
    torch.manual_seed(0)
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(),
        50,
        **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | MODELS[kind]()),
    )
    for _ in range(steps):
        for _ in optimizer.draws():
            x, y = torch.randn(10, 4, dtype=torch.float64), torch.randint(3, (10,))
            Categorical().nll(module(x), y).mean().backward()
        optimizer.step()
    return module, optimizer


def posterior(kind: str) -> Posterior:
    return Posterior.of(*trained(kind), {"data": {"classes": 3}})


def moments(family: Family, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and covariance, from the definition of the family."""
    if isinstance(family, Mixture):
        weights = torch.tensor(family.weights, dtype=torch.float64)
        mean = state["means"] @ weights
        offsets = state["means"] - mean[:, None]
        return mean, ((1 / state["precisions"]) @ weights).diag() + (weights * offsets) @ offsets.mT
    if isinstance(family, LowRank):
        return state["mean"], state["variance"].diag() + state["factor"] @ state["factor"].mT
    if isinstance(family, Kronecker):
        return state["mean"], torch.kron(*(state[side] @ state[side].mT for side in ("rows", "columns")))
    if isinstance(family, MeanField):
        return state["mean"], (1 / state["precision"]).diag()
    return state["mean"], state["factor"] @ state["factor"].mT


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) and value.dtype == second[name].dtype for name, value in first.items()
    )


# ------------------------------------------------------------ draws


@pytest.mark.parametrize("kind", MODELS)
def test_draws_have_the_moments_of_the_trained_families(kind: str) -> None:
    """Means and second moments of 2,000 draws within 5 of their standard errors; the body stays mean-field."""
    module, optimizer = trained(kind)
    result = Posterior.of(module, optimizer)
    drawn = [result.draw(index, seed=3) for index in range(DRAWS)]
    joint = [(block.family, block.state, [m.name for m in block.members]) for block in optimizer.blocks()]
    parts = [(*moments(family, state), names) for family, state, names in joint]
    parts += [
        (parameter.detach().flatten(), (1 / state["precision"]).flatten().diag(), [name])
        for name, parameter, state in optimizer.sampled()
    ]
    assert sorted(name for *_, names in parts for name in names) == sorted(
        name for name, _ in module.named_parameters()
    )
    for mean, covariance, names in parts:
        offsets = torch.stack([torch.cat([draw[name].flatten() for name in names]) for draw in drawn]) - mean
        products = offsets[:, :, None] * offsets[:, None, :]
        for sample, expected in ((offsets, torch.zeros_like(mean)), (products, covariance)):
            assert ((sample.mean(0) - expected).abs() < 5 * sample.std(0) / math.sqrt(DRAWS)).all()


@pytest.mark.parametrize("kind", MODELS)
def test_a_draw_is_a_function_of_seed_and_index_and_moves_no_weight(kind: str) -> None:
    module, optimizer = trained(kind)
    result, before = Posterior.of(module, optimizer), [p.detach().clone() for p in module.parameters()]
    draw = result.draw(1, seed=2)
    assert result.random
    assert equal(draw, result.draw(1, seed=2))
    for other in (result.draw(0, seed=2), result.draw(1, seed=3)):
        assert not any(torch.equal(value, draw[name]) for name, value in other.items())
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert not any(value.requires_grad for value in draw.values())


@pytest.mark.parametrize("kind", MODELS)
def test_within_use_the_module_holds_the_draw_and_afterwards_the_mean(kind: str) -> None:
    module, optimizer = trained(kind)
    result, before = Posterior.of(module, optimizer), {n: p.detach().clone() for n, p in module.named_parameters()}
    expected = result.draw(4, seed=1)
    with result.use(module, 4, seed=1):
        assert equal({name: p.detach() for name, p in module.named_parameters()}, expected)
    assert equal({name: p.detach() for name, p in module.named_parameters()}, before)
    with pytest.raises(KeyboardInterrupt), result.use(module, 4, seed=1):
        raise KeyboardInterrupt
    assert equal({name: p.detach() for name, p in module.named_parameters()}, before)


def test_the_kinds_of_families_are_named() -> None:
    assert posterior("low_rank").family == "mean_field+low_rank"
    assert posterior("mean_field").family == "mean_field"
    assert posterior("mixed").family == "mean_field+low_rank+kronecker+full_covariance"


# ------------------------------------------------------------ files


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_posterior_draws_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    result = posterior(kind)
    loaded = Posterior.load(result.save(tmp_path))
    assert loaded.family == result.family
    assert loaded.description == {"data": {"classes": 3}}
    for group in ("mean", "precision", "buffers"):
        assert equal(getattr(loaded, group), getattr(result, group))
    assert len(loaded.joint) == len(result.joint)
    for ours, theirs in zip(result.joint, loaded.joint, strict=True):
        assert ours.names == theirs.names
        assert ours.layout.family.settings() == theirs.layout.family.settings()
        assert equal(ours.state, theirs.state)
    for index in range(3):
        assert equal(loaded.draw(index, seed=5), result.draw(index, seed=5))


@pytest.mark.parametrize("kind", MODELS)
def test_a_gathered_copy_draws_the_same_and_shares_no_memory(kind: str) -> None:
    module, optimizer = trained(kind)
    result = Posterior.of(module, optimizer)
    copy = result.gather()
    expected = result.draw(1, seed=2)
    assert equal(copy.draw(1, seed=2), expected)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
        for block in optimizer.blocks():
            for value in (*block.anchor.values(), *block.state.values()):
                value.add_(1.0)
        for _, _, state in optimizer.sampled():
            state["precision"].mul_(2.0)
    assert equal(copy.draw(1, seed=2), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_the_description_names_families_parameters_and_settings(kind: str, tmp_path: Path) -> None:
    result = posterior(kind)
    described = json.loads((result.save(tmp_path) / "posterior.json").read_text())["joint"]
    for joint, entry in zip(result.joint, described, strict=True):
        assert entry == {"kind": joint.layout.family.kind, "parameters": joint.names} | joint.layout.family.settings()
    tensors = load_file(tmp_path / "posterior.safetensors")
    names = {f"joint.{n}.{name}" for n, joint in enumerate(result.joint) for name in joint.state}
    assert {name for name in tensors if name.startswith("joint.")} == names


def test_a_loaded_posterior_goes_into_a_fresh_network_and_predicts_as_the_first(tmp_path: Path) -> None:
    module, optimizer = trained("mixed")
    result = Posterior.of(module, optimizer)
    loaded, fresh = Posterior.load(result.save(tmp_path)), network()
    loaded.load_into(fresh)
    expected, found = (predict(m, batches, p, draws=5).mean for m, p in ((module, result), (fresh, loaded)))
    assert torch.equal(found, expected)


def test_a_distribution_refuses_to_be_saved_in_one_line(tmp_path: Path) -> None:
    """Before anything is written."""
    family = Distribution(lambda p: torch.distributions.Normal(p["loc"], 1.0), {"loc": torch.zeros(3)})
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(),
        50,
        families={"2.bias": family},
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    with pytest.raises(ConfigError, match="family distribution holds code and cannot be saved") as error:
        Posterior.of(module, optimizer).save(tmp_path / "folder")
    assert "\n" not in str(error.value)
    assert all(kind in str(error.value) for kind in FAMILIES.kinds())
    assert not (tmp_path / "folder").exists()


# ------------------------------------------------------------ damage


def damaged(folder: Path, kind: str, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """A saved posterior whose description and tensors ``change`` has had in its hands."""
    posterior(kind).save(folder)
    description = json.loads((folder / "posterior.json").read_text())
    tensors = load_file(folder / "posterior.safetensors")
    change(description, tensors)
    (folder / "posterior.json").write_text(json.dumps(description))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "posterior.safetensors")
    return folder


def assert_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"damaged posterior: block 0|'normalizing_flow' is not known here: install"
    ) as error:
        Posterior.load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


TENSORS = [
    *(("full_covariance", name) for name in ("mean", "factor")),
    *(("low_rank", name) for name in ("mean", "variance", "factor")),
    *(("kronecker", name) for name in ("mean", "rows", "columns")),
    *(("mixture", name) for name in ("means", "precisions")),
]


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_missing_tensor_of_a_block_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    def remove(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors[f"joint.0.{name}"]

    assert_refused(damaged(tmp_path, kind, remove))


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_tensor_of_the_wrong_size_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    def cut(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[f"joint.0.{name}"] = tensors[f"joint.0.{name}"][:-1]

    assert_refused(damaged(tmp_path, kind, cut))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("low_rank", {"kind": "normalizing_flow"}),
        ("low_rank", {"kind": None}),
        ("low_rank", {"rank": 0}),
        ("low_rank", {"rank": 1}),
        ("low_rank", {"columns": 3}),
        ("mixture", {"components": 3, "weights": None}),
        ("kronecker", {"parameters": ["2.weights"]}),
        ("kronecker", {"parameters": ["2.bias"]}),
        ("full_covariance", {"parameters": ["2.weight"]}),
        ("full_covariance", {"parameters": None}),
        ("full_covariance", {"parameters": []}),
    ],
)
def test_a_description_that_does_not_fit_the_tensors_is_refused(
    kind: str, change: dict[str, Any], tmp_path: Path
) -> None:
    assert_refused(damaged(tmp_path, kind, lambda description, _: description["joint"][0].update(change)))


@pytest.mark.parametrize("entry", ["low_rank", None, 3])
def test_a_block_that_is_no_object_is_refused(entry: Any, tmp_path: Path) -> None:
    assert_refused(damaged(tmp_path, "low_rank", lambda description, _: description.update(joint=[entry])))


@pytest.mark.parametrize("joint", [3, "low_rank", {"kind": "low_rank"}])
def test_blocks_that_are_no_list_are_refused(joint: Any, tmp_path: Path) -> None:
    folder = damaged(tmp_path, "low_rank", lambda description, _: description.update(joint=joint))
    with pytest.raises(ConfigError, match=r"damaged posterior|not a posterior"):
        Posterior.load(folder)


def test_tensors_of_a_block_that_nothing_describes_are_refused(tmp_path: Path) -> None:
    """Else the head would be a point estimate without a word."""
    folder = damaged(tmp_path, "low_rank", lambda description, _: description.update(joint=[]))
    with pytest.raises(ConfigError, match="joint"):
        Posterior.load(folder)


# ------------------------------------------------------------ prediction


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.zeros(6, dtype=torch.long))] * 2


@pytest.mark.parametrize("kind", MODELS)
def test_prediction_averages_the_probabilities_of_different_draws(kind: str) -> None:
    module, optimizer = trained(kind)
    result = Posterior.of(module, optimizer)
    module.eval()
    each = []
    for index in range(6):
        weights = result.draw(index, seed=2)
        with torch.no_grad():
            outputs = torch.cat([torch.func.functional_call(module, weights, (x,)) for x, _ in batches()])
        each.append(outputs.softmax(1))
    assert not any(torch.allclose(each[0], other, atol=1e-3) for other in each[1:])
    predictive = predict(module, batches, result, draws=6, seed=2)
    torch.testing.assert_close(predictive.mean, torch.stack(each).mean(0), rtol=1e-5, atol=1e-6)
    entropies = torch.stack([-(p * p.log()).sum(1) for p in each])
    torch.testing.assert_close(predictive.expected_entropy, entropies.mean(0), rtol=1e-5, atol=1e-6)
